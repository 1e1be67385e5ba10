"""Activations on disk: written once, read by any number of SAEs and runs. The same bytes as `live`.

    activations.json             what they are activations of, and every shard with its size and checksum
    shard-00000.safetensors      whole groups: one tensor [rows, d] per site, and beside it int32 [rows]
                                 `token`, `document` (an index into the contexts' documents) and `position`

A killed writer continues with the first shard that is not recorded. A shard whose size is not the recorded one is
written again; one whose checksum is wrong is refused, by name, when it is first read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from jumpahead.activations import ActivationsConfig
from jumpahead.activations.base import DTYPES, Activations, Options, read_options
from jumpahead.activations.live import Live
from jumpahead.errors import ArtefactError
from jumpahead.lm.contexts import Contexts
from jumpahead.lm.model import LM
from jumpahead.store import read_json, write_json, write_tensors

SCHEMA = "jumpahead.activations/1"
INDEX = "activations.json"
_OPEN = 32  # shards kept open at once


class ShardsOptions(Options):
    """How activations are cut into files."""

    shard_mib: float = Field(default=256, gt=0)
    """Size of a file, about, in MiB."""


class Shards(Activations):
    """Activations that `write_shards` wrote. A shard is checked the first time it is read."""

    Options = ShardsOptions
    is_read_ahead = True

    def __init__(self, folder: str | Path, block: int = 256) -> None:
        self.folder = Path(folder)
        index = read_json(self.folder / INDEX, SCHEMA)
        self.widths = {str(site): int(width) for site, width in index["sites"].items()}
        self.dtype = DTYPES[index["dtype"]]
        self.rows_per_group = np.array(index["rows_per_group"], dtype=np.int64)
        self.groups_per_block = max(1, block // index["batch"])
        self.digest = str(index["digest"])
        self._shards: list[dict[str, Any]] = index["shards"]
        self._first = np.array([shard["groups"][0] for shard in self._shards])
        self._before = np.concatenate([[0], np.cumsum(self.rows_per_group)])
        self._files: dict[int, Any] = {}
        self._checked: set[int] = set()
        done = self._shards[-1]["groups"][1] if self._shards else 0
        if done < len(self.rows_per_group):
            raise ArtefactError(
                f"{self.folder} holds {done} of {len(self.rows_per_group)} groups of activations: `jumpahead run` "
                "writes the others."
            )

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Shards:
        """Writes what is missing, then reads; without a language model everything must be there."""
        assert folder is not None
        options = cast(ShardsOptions, read_options(cls, config))
        if lm is not None and contexts is not None:
            live = Live(lm, contexts, config.sites, config.dtype, config.block)
            write_shards(live, folder, shard_mib=options.shard_mib)
        return cls(folder, config.block)

    def rows(self, group: int) -> dict[str, Tensor]:
        return self._read(group, self.widths)

    def labels(self, group: int) -> dict[str, Tensor]:
        """int32 [n]: `token`, `document` and `position` of every row of a group."""
        return self._read(group, ("token", "document", "position"))

    def _read(self, group: int, keys: Iterable[str]) -> dict[str, Tensor]:
        number = int(np.searchsorted(self._first, group, side="right")) - 1
        file = self._file(number)
        start = int(self._before[group] - self._before[self._first[number]])
        stop = start + int(self.rows_per_group[group])
        # A copy: a slice of the mapped file would be unaligned.
        return {key: file.get_slice(key)[start:stop].clone() for key in keys}

    def _file(self, number: int) -> Any:
        if number not in self._files:
            shard = self._shards[number]
            path = self.folder / shard["file"]
            if number not in self._checked:
                _check(path, shard)
                self._checked.add(number)
            while len(self._files) >= _OPEN:
                del self._files[next(iter(self._files))]
            self._files[number] = safe_open(path, framework="pt")
        return self._files[number]


def write_shards(
    live: Live,
    folder: str | Path,
    *,
    shard_mib: float = 256,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the activations of every group, continuing where a killed call was; `progress(groups done, groups)`.

    Raises ArtefactError where the folder holds activations of something else.
    """
    folder = Path(folder)
    parts = _partition(live, shard_mib)
    index = _begin(live, folder, parts)
    done = {tuple(shard["groups"]): shard for shard in index["shards"]}
    for number, (first, last) in enumerate(parts):
        shard = done.get((first, last))
        if shard is None or _size(folder / shard["file"]) != shard["bytes"]:
            path = folder / _name(number)
            write_tensors(path, _gather(live, first, last))
            shard = {"file": path.name, "groups": [first, last], "bytes": _size(path), "crc32": _crc32(path)}
            done[first, last] = shard
            write_json(folder / INDEX, {**index, "shards": [done[part] for part in parts if part in done]})
        if progress is not None:
            progress(last, len(live.rows_per_group))


def _partition(live: Live, shard_mib: float) -> list[tuple[int, int]]:
    """Groups [first, last) of every shard: as many as fit, one at least."""
    row = sum(live.widths.values()) * live.dtype.itemsize + 12
    limit = shard_mib * 2**20
    parts: list[tuple[int, int]] = []
    first, size = 0, 0
    for group, rows in enumerate(live.rows_per_group):
        if group > first and size + int(rows) * row > limit:
            parts.append((first, group))
            first, size = group, 0
        size += int(rows) * row
    return [*parts, (first, len(live.rows_per_group))]


def _begin(live: Live, folder: Path, parts: list[tuple[int, int]]) -> dict[str, Any]:
    """The folder's index, with the shards that can be kept; a new one where there is none."""
    fresh = {
        "schema": SCHEMA,
        "digest": live.digest,
        "contexts": live.contexts.digest,
        "sites": live.widths,
        "dtype": str(live.dtype).removeprefix("torch."),
        "batch": live.contexts.batch,
        "rows_per_group": live.rows_per_group.tolist(),
        "shards": [],
    }
    if not (folder / INDEX).exists():
        return fresh
    index = read_json(folder / INDEX, SCHEMA)
    if index.get("digest") != live.digest:
        raise ArtefactError(
            f"{folder} holds activations of another model, text, site or dtype: remove the folder, and `jumpahead run` "
            "writes them again."
        )
    wanted = {(_name(number), first, last) for number, (first, last) in enumerate(parts)}
    return {**fresh, "shards": [shard for shard in index["shards"] if (shard["file"], *shard["groups"]) in wanted]}


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _gather(live: Live, first: int, last: int) -> dict[str, Tensor]:
    """The tensors of one shard."""
    found: dict[str, list[Tensor]] = {}
    for group in range(first, last):
        mask = live.contexts.trained(group)
        labels = {
            "token": live.contexts.ids(group)[mask],
            "document": live.contexts.document(group)[live.contexts.chunk(group)[mask]],
            "position": np.nonzero(mask)[1],
        }
        tensors = {key: torch.from_numpy(value.astype(np.int32)) for key, value in labels.items()}
        for key, value in {**live.rows(group), **tensors}.items():
            found.setdefault(key, []).append(value.cpu())
    return {key: torch.cat(values) for key, values in found.items()}


def _check(path: Path, shard: dict[str, Any]) -> None:
    """ArtefactError unless the file has the recorded size and checksum."""
    size = _size(path)
    if size is None:
        raise ArtefactError(f"{path} does not exist: `jumpahead run` writes it again.")
    if size != shard["bytes"] or _crc32(path) != shard["crc32"]:
        raise ArtefactError(f"{path} is torn or damaged: remove it, and `jumpahead run` writes it again.")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while part := file.read(2**22):
            value = zlib.crc32(part, value)
    return value


Origin = Shards
