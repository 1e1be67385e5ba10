"""Write a language model's activations to disk, in any number of processes. `shard_folder.py` describes the files.

The groups of each file are a function of rows per group and `shard_mib` alone, and the header of a file identifies the
file's content. So every process computes the missing files without communication: process i of n writes the files
i − 1, i − 1 + n, …, and a process that finds all files complete marks the index as complete. A restarted process
continues with its first missing file. An incomplete file is written again. A file whose bytes changed raises an error
when the affected group of rows is first read.

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
    InputsDigestFunction,
    ShardFolder,
    shard_folders,
    shard_name,
)
from jumpahead.activations.writer_rank import WriterRank, lock_shards
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.formatting import format_bytes
from jumpahead.progress import Phase, Progress, SilentProgress
from jumpahead.storage.atomic import remove_temporary_files_of
from jumpahead.storage.digests import digest_json
from jumpahead.storage.folders import free_disk_bytes
from jumpahead.storage.json_files import read_json, write_json

SHARD_MIB = 256.0
"""Approximate size of a file by default."""


class _ShardPlan(NamedTuple):
    """The content of all files of a folder. All writing processes compute the same plan."""

    live: Live
    """The language model's activations, computed on request."""
    groups: list[tuple[int, int]]
    """The groups [first, last) of every file."""
    columns: dict[str, ColumnSpec]
    """Dtype and row shape of the tensors in every file: activations by site, and labels."""

    def rows(self, shard: int) -> list[int]:
        """Return the number of rows of every group of a file."""
        first, last = self.groups[shard]
        return self.live.rows_per_group[first:last].tolist()

    def bytes(self, shard: int) -> int:
        """Return the size of a file in bytes, without the header."""
        return sum(self.rows(shard)) * sum(column.bytes_per_row for column in self.columns.values())

    def info(self, shard: int) -> dict[str, Any]:
        """Return the header entry that identifies a file's content: the activations' digest and the groups."""
        return {"digest": self.live.digest, "groups": list(self.groups[shard])}

    def index_json(self, inputs: str, *, complete: bool) -> dict[str, Any]:
        """Return the content of activations.json. inputs: the digest that identifies the activations without the LM."""
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
    inputs_digest_of: InputsDigestFunction = lambda _: "",
    *,
    shard_mib: float = SHARD_MIB,
    rank: WriterRank = WriterRank(),
    progress: Progress | None = None,
) -> bool:
    """Write this process's files of the missing activations at `sites`; return True if all sites are complete.

    Complete files are kept. An incomplete folder is completed with the sites in its index. Sites that are in no folder
    are written to `folder` or, if `folder` has an index, below `added_sites`.

    live_at: function from sites to their activations, computed by the LM.
    inputs_digest_of: function from sites to the digest that identifies their activations without the LM.
    shard_mib: approximate size of a file in MiB.
    rank: this process's number among the writing processes.

    Raises the errors of `write_shards`.
    """
    folder, is_complete, wanted = Path(folder), True, list(sites)
    todo: list[tuple[Path, Sequence[str]]] = []
    for path in shard_folders(folder):
        shards = ShardFolder(path)
        is_done = shards.is_complete and shards.index["inputs"] == inputs_digest_of(list(shards.sites))
        if not shards.sites.keys() & set(wanted) or not (is_done or shards.sites.keys() <= set(sites)):
            _require_same_inputs(shards, live_at(sites), inputs_digest_of(list(shards.sites)))
        else:
            wanted = [site for site in wanted if site not in shards.sites]
            if not is_done or shards.sites.keys() <= set(sites):  # `write_shards` compares these with the LM
                todo.append((path, list(shards.sites)))
    if wanted:
        is_begun = (folder / INDEX).exists()
        todo.append((folder / ADDED_SITES_FOLDER / digest_json(sorted(wanted))[:12] if is_begun else folder, wanted))
    for path, folder_sites in todo:
        is_complete &= write_shards(
            live_at(folder_sites),
            path,
            shard_mib=shard_mib,
            rank=rank,
            inputs=inputs_digest_of(folder_sites),
            progress=progress,
        )
    return is_complete


def _require_same_inputs(shards: ShardFolder, live: Live, inputs: str) -> None:
    """Raise ArtefactError if a folder has another text, dtype or digest of inputs than `live` and `inputs`."""
    expected = (live.contexts.digest, str(live.dtype).removeprefix("torch."), inputs)
    if (shards.index["contexts_digest"], shards.index["dtype"], shards.index["inputs"]) != expected:
        raise _other_activations_error(shards.folder)


def _other_activations_error(folder: Path) -> ArtefactError:
    """Return the error for a folder that holds activations of other inputs."""
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
    """Write this process's files of a folder of activations; return True if all files of the folder are complete.

    shard_mib: approximate size of a file in MiB.
    rank: this process's number among the writing processes.
    inputs: the digest that identifies the activations without the LM.

    Raises StudyError if the disk is too small, and ArtefactError if the folder holds other activations or another
    process writes the same files.
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
            with (progress or SilentProgress()).phase(title, total, "tokens", total - left) as phase:
                for shard in own:
                    _write_shard(plan, folder, shard, phase)
        is_complete = all(_is_complete_shard(plan, folder, shard) for shard in range(len(plan.groups)))
        if is_complete:
            write_json(folder / INDEX, plan.index_json(inputs, complete=True), indent=None)
    return is_complete


def _assign_groups(live: Live, shard_mib: float) -> list[tuple[int, int]]:
    """Return the groups [first, last) of every file: at least one, and otherwise at most `shard_mib` MiB."""
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
    """Write an index marked as incomplete, unless an equal index exists.

    Raises ArtefactError if the folder's index has another digest of activations.
    """
    initial = plan.index_json(inputs, complete=False)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX, SCHEMA, made_by=HARVEST_COMMAND)
        if index.get("digest") != plan.live.digest:
            raise _other_activations_error(folder)
        if {**index, "complete": False} == {**initial, "shards": [list(groups) for groups in plan.groups]}:
            return
    write_json(folder / INDEX, initial, indent=None)


def _is_complete_shard(plan: _ShardPlan, folder: Path, shard: int) -> bool:
    """Return True if a file exists, is not truncated, and its header identifies the planned content."""
    try:
        with RowFileReader(folder / shard_name(shard), is_own=True) as file:
            return file.info == plan.info(shard)
    except ArtefactError:
        return False


def _require_free_disk(folder: Path, needed: int, live: Live) -> None:
    """Raise StudyError if the disk of `folder` has less than `needed` free bytes."""
    free = free_disk_bytes(folder)
    if needed > free:
        dtype = str(live.dtype).removeprefix("torch.")
        raise StudyError(
            f"{folder} has {format_bytes(free)} of free disk, and the missing activations need {format_bytes(needed)} "
            f"({int(live.rows_per_group.sum()):,} tokens at {', '.join(live.widths)} in {dtype}): "
            f"{disk_full_advice(len(live.widths), dtype)}."
        )


def _write_shard(plan: _ShardPlan, folder: Path, shard: int, phase: Phase) -> None:
    """Write one file, and advance the progress bar `phase` by the number of rows written."""
    remove_temporary_files_of(folder / shard_name(shard))  # left by a killed process; no other process writes this file

    def groups() -> Iterator[Mapping[str, Tensor]]:
        for group in range(*plan.groups[shard]):
            labels = {key: torch.from_numpy(value) for key, value in plan.live.contexts.token_labels(group).items()}
            yield {**plan.live.rows(group), **labels}
            phase.advance(int(plan.live.rows_per_group[group]))

    on_cpu = ({key: value.cpu() for key, value in tensors.items()} for tensors in groups())
    write_row_file(folder / shard_name(shard), plan.columns, plan.rows(shard), on_cpu, plan.info(shard))
