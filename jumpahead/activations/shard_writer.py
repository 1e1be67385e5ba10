"""Writing activations to disk, in any number of processes; `shard_folder.py` says what the files are.

The groups of a file follow from rows per group and `shard_mib` alone, and every file names its own content. So each
process finds out what is missing by itself: process i of n writes the files i − 1, i − 1 + n, …, and the one that finds
all files complete marks the index as complete. A killed process continues with its first missing file. A torn file is
written again; a file whose bytes changed is refused, by name, when the affected group is first read.

    bytes = rows · (Σ_sites d · itemsize + 12)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.activations.disk_size import bytes_per_row, disk_full_advice
from jumpahead.activations.origins.live import Live
from jumpahead.activations.row_files import ColumnSpec, RowFileReader, write_row_file
from jumpahead.activations.shard_folder import (
    ADDED_SITES_FOLDER,
    HARVEST_COMMAND,
    INDEX,
    LABELS,
    SCHEMA,
    InputsOf,
    ShardFolder,
    shard_folders,
    shard_name,
)
from jumpahead.activations.writer_rank import WriterRank, lock_shards
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.formatting import format_bytes
from jumpahead.progress import Phase, Progress, Silent
from jumpahead.storage.atomic import remove_temporaries_of
from jumpahead.storage.digests import digest_json
from jumpahead.storage.folders import free_disk_bytes
from jumpahead.storage.json_files import read_json, write_json

SHARD_MIB = 256.0
"""Approximate size of a file by default."""


class _ShardPlan(NamedTuple):
    """The content of all files of a folder; every process computes the same."""

    live: Live
    groups: list[tuple[int, int]]
    """The groups [first, last) of every file."""
    columns: dict[str, ColumnSpec]
    """The tensors of every file: activations by site, and the labels."""

    def rows(self, shard: int) -> list[int]:
        """Return the number of rows of every group of a file."""
        first, last = self.groups[shard]
        return self.live.rows_per_group[first:last].tolist()

    def bytes(self, shard: int) -> int:
        """Return the bytes of a file without its header."""
        return sum(self.rows(shard)) * sum(column.bytes_per_row for column in self.columns.values())

    def info(self, shard: int) -> dict[str, Any]:
        """Return what identifies a file's content, which is stored in its header."""
        return {"digest": self.live.digest, "groups": list(self.groups[shard])}

    def index_json(self, inputs: str, *, complete: bool) -> dict[str, Any]:
        """Return the content of activations.json."""
        return {
            "schema": SCHEMA, "digest": self.live.digest, "inputs": inputs,
            "contexts_digest": self.live.contexts.digest, "sites": self.live.widths,
            "dtype": str(self.live.dtype).removeprefix("torch."), "contexts_per_group": self.live.contexts.batch,
            "complete": complete, "shards": self.groups, "rows_per_group": self.live.rows_per_group.tolist(),
        }  # fmt: skip


def write_missing_sites(
    live_at: Callable[[Sequence[str]], Live],
    folder: str | Path,
    sites: Sequence[str],
    inputs_of: InputsOf = lambda _: "",
    *,
    shard_mib: float = SHARD_MIB,
    rank: WriterRank = WriterRank(),
    progress: Progress | None = None,
) -> bool:
    """Write this process's part of the missing activations at these sites; return whether all are complete then.

    Existing files are not touched. A folder that was begun is completed with the sites it has; sites that are in no
    folder are written to the folder itself or, if that has an index, below `added_sites`. live_at: returns the
    activations at some sites. Raises the errors of `write_shards`.
    """
    folder, is_complete, wanted = Path(folder), True, list(sites)
    todo: list[tuple[Path, Sequence[str]]] = []
    for path in shard_folders(folder):
        one = ShardFolder(path)
        is_done = one.is_complete and one.index["inputs"] == inputs_of(list(one.sites))
        if not one.sites.keys() & set(wanted) or not (is_done or one.sites.keys() <= set(sites)):
            _require_same_inputs(one, live_at(sites), inputs_of(list(one.sites)))
        else:
            wanted = [site for site in wanted if site not in one.sites]
            if not is_done or one.sites.keys() <= set(sites):  # `write_shards` compares these with the LM
                todo.append((path, list(one.sites)))
    if wanted:
        is_begun = (folder / INDEX).exists()
        todo.append((folder / ADDED_SITES_FOLDER / digest_json(sorted(wanted))[:12] if is_begun else folder, wanted))
    for path, some in todo:
        is_complete &= write_shards(
            live_at(some), path, shard_mib=shard_mib, rank=rank, inputs=inputs_of(some), progress=progress
        )
    return is_complete


def _require_same_inputs(one: ShardFolder, live: Live, inputs: str) -> None:
    """Raise ArtefactError if a folder of other sites has another text, dtype or, as `inputs` tells, language model."""
    expected = (live.contexts.digest, str(live.dtype).removeprefix("torch."), inputs)
    if (one.index["contexts_digest"], one.index["dtype"], one.index["inputs"]) != expected:
        raise _other_activations_error(one.folder)


def _other_activations_error(folder: Path) -> ArtefactError:
    """Return the error for a folder of activations that are not those to be written."""
    return ArtefactError(
        f"{folder} holds activations of another model, text, site or dtype: remove the folder, and `{HARVEST_COMMAND}` "
        "writes them again."
    )


def write_shards(
    live: Live,
    folder: str | Path,
    *,
    shard_mib: float = SHARD_MIB,
    rank: WriterRank = WriterRank(),
    inputs: str = "",
    progress: Progress | None = None,
) -> bool:
    """Write this process's part of the activations of every group; return whether the folder is complete then.

    inputs: the digest that identifies the activations without a language model. Raises StudyError if the disk is too
    small; ArtefactError if the folder holds other activations, or another process writes the same files.
    """
    folder, columns = Path(folder), {site: ColumnSpec(live.dtype, (width,)) for site, width in live.widths.items()}
    columns |= dict.fromkeys(LABELS, ColumnSpec(torch.int32))
    plan = _ShardPlan(live, _assign_groups(live, shard_mib), columns)
    with lock_shards(folder, rank):
        _write_initial_index(plan, folder, inputs)
        missing = [shard for shard in range(len(plan.groups)) if not _is_complete_shard(plan, folder, shard)]
        _require_free_disk(folder, sum(map(plan.bytes, missing)), live)
        own = [shard for shard in missing if rank.writes(shard)]
        rows = {shard: sum(plan.rows(shard)) for shard in range(len(plan.groups)) if rank.writes(shard)}
        if own:
            title = "activations" if rank.processes == 1 else f"activations, part {rank}"
            total, left = sum(rows.values()), sum(rows[shard] for shard in own)
            with (progress or Silent()).phase(title, total, "tokens", total - left) as phase:
                for shard in own:
                    _write_shard(plan, folder, shard, phase)
        is_complete = all(_is_complete_shard(plan, folder, shard) for shard in range(len(plan.groups)))
        if is_complete:
            write_json(folder / INDEX, plan.index_json(inputs, complete=True), indent=None)
    return is_complete


def _assign_groups(live: Live, shard_mib: float) -> list[tuple[int, int]]:
    """Return the groups [first, last) of every file: as many as fit, at least one."""
    row_bytes = bytes_per_row(live.widths.values(), live.dtype.itemsize)
    limit = shard_mib * 2**20
    assigned: list[tuple[int, int]] = []
    first, size = 0, 0
    for group, rows in enumerate(live.rows_per_group):
        if group > first and size + int(rows) * row_bytes > limit:
            assigned.append((first, group))
            first, size = group, 0
        size += int(rows) * row_bytes
    return [*assigned, (first, len(live.rows_per_group))]


def _write_initial_index(plan: _ShardPlan, folder: Path, inputs: str) -> None:
    """Write an index that is marked as incomplete, unless it exists. Raises ArtefactError for other activations."""
    initial = plan.index_json(inputs, complete=False)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX, SCHEMA, made_by=HARVEST_COMMAND)
        if index.get("digest") != plan.live.digest:
            raise _other_activations_error(folder)
        if {**index, "complete": False} == {**initial, "shards": [list(groups) for groups in plan.groups]}:
            return
    write_json(folder / INDEX, initial, indent=None)


def _is_complete_shard(plan: _ShardPlan, folder: Path, shard: int) -> bool:
    """Return whether a file exists, holds its groups of these activations, and is not torn."""
    try:
        with RowFileReader(folder / shard_name(shard)) as file:
            return file.info == plan.info(shard)
    except ArtefactError:
        return False


def _require_free_disk(folder: Path, needed: int, live: Live) -> None:
    """Raise StudyError if the disk has less than `needed` bytes free."""
    free = free_disk_bytes(folder)
    if needed > free:
        dtype = str(live.dtype).removeprefix("torch.")
        raise StudyError(
            f"{folder} has {format_bytes(free)} of free disk, and the missing activations need {format_bytes(needed)} "
            f"({int(live.rows_per_group.sum()):,} tokens at {', '.join(live.widths)} in {dtype}): "
            f"{disk_full_advice(len(live.widths), dtype)}."
        )


def _write_shard(plan: _ShardPlan, folder: Path, shard: int, phase: Phase) -> None:
    """Write one file, and advance `phase` by its rows."""
    remove_temporaries_of(folder / shard_name(shard))  # left by a killed process; no other process writes this file

    def groups() -> Iterator[Mapping[str, Tensor]]:
        for group in range(*plan.groups[shard]):
            labels = {key: torch.from_numpy(value) for key, value in plan.live.contexts.token_labels(group).items()}
            yield {**plan.live.rows(group), **labels}
            phase.advance(int(plan.live.rows_per_group[group]))

    on_cpu = ({key: value.cpu() for key, value in tensors.items()} for tensors in groups())
    write_row_file(folder / shard_name(shard), plan.columns, plan.rows(shard), on_cpu, plan.info(shard))
