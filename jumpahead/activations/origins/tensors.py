"""Activations that somebody computed: of pictures, sounds, proteins. No language model.

    source    an .npy file, a .safetensors file, or a folder of such files (all of one kind), in the order of their
              names; empty: what `jumpahead.train_on` was given, which lies in the run's folder
    rows      [rows, d] in each file: one array, or a tensor per site of the study
    group     so many consecutive rows of a file; held out by the hash of its number, measured as one document

Files are read in place. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from jumpahead import store
from jumpahead.activations import ActivationsConfig
from jumpahead.activations.base import DTYPES, Activations, Options, not_finite, read_options
from jumpahead.activations.row_files import Column, Reader, write
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.formatting import size
from jumpahead.lm.model import LM
from jumpahead.progress import Phase, Progress, Silent
from jumpahead.text.contexts import Contexts
from jumpahead.text.documents import is_held_out

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCHEMA = "jumpahead.tensors/1"
INDEX = "tensors.json"
FILE_MIB = 256
"""Size of the files that `spool` writes."""


class TensorsOptions(Options):
    """Where the activations are."""

    source: str = ""
    """An .npy or .safetensors file, or a folder of them; empty for what `train_on` was given."""
    rows: int = Field(default=256, ge=1)
    """Rows of a group. What belongs together, such as the patches of a picture, should lie in one."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the groups that is never trained on; evaluation uses only these."""


class Tensors(Activations):
    """Rows of files, group after group."""

    Options = TensorsOptions
    is_read_ahead = True

    def __init__(self, config: ActivationsConfig, folder: Path | None = None) -> None:
        options = cast(TensorsOptions, read_options(Tensors, config))
        self._files = [_open(path) for path in _paths(options, folder)]
        self.dtype = DTYPES[config.dtype]
        self._keys = {site: _key(self._files[0], site, len(config.sites)) for site in config.sites}
        self.widths = {site: _width(self._files, key) for site, key in self._keys.items()}
        counts = [_count(file, self._keys.values()) for file in self._files]
        places = [
            _Place(file, start, min(start + options.rows, count))
            for file, count in enumerate(counts)
            for start in range(0, count, options.rows)
        ]
        split = [is_group_held_out(number, options.held_out) for number in range(len(places))]
        self._places = [place for place, is_out in zip(places, split, strict=True) if not is_out]
        self._held_out = [place for place, is_out in zip(places, split, strict=True) if is_out]
        for found, words in ((self._places, "to train on"), (self._held_out, "held out")):
            if not found:
                raise DataError(
                    f"{_called(options)} holds {sum(counts):,} rows in {len(places)} groups, and none is {words}: give "
                    "more rows, smaller groups (activations.options.rows), or another activations.options.held_out."
                )
        self.rows_per_group = _sizes(self._places)
        self.groups_per_block = config.block
        known = options.model_dump(exclude={"source"})
        self.digest = store.digest_json(["tensors", self.source(config, folder), known, self.widths, config.dtype])

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Tensors:
        return cls(config, folder)

    @classmethod
    def source(cls, config: ActivationsConfig, folder: Path | None = None) -> str:
        """Of names, sizes and times of the files; of the rows themselves where `spool` wrote them."""
        options = cast(TensorsOptions, read_options(cls, config))
        if not options.source:
            assert folder is not None
            return store.digest_json(_spooled(folder))
        stats = [(path.name, path.stat()) for path in _paths(options, folder)]
        return store.digest_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    @property
    def held_out(self) -> Tensors:
        """The groups that are held out."""
        others = copy(self)
        others._places, others._held_out = self._held_out, []
        others.rows_per_group = _sizes(self._held_out)
        others.digest = store.digest_json([self.digest, "held out"])
        return others

    def rows(self, group: int) -> dict[str, Tensor]:
        file, start, stop = self._places[group]
        rows = {site: self._files[file].between(start, stop, key).to(self.dtype) for site, key in self._keys.items()}
        if bad := not_finite(rows):
            site, row = bad
            raise DataError(
                f"row {start + row:,} of {self._files[file].path} holds a value that is not finite in {site} as "
                f"{str(self.dtype).removeprefix('torch.')}: leave the row out, or use activations.dtype = 'float32'."
            )
        return rows


class _Place(NamedTuple):
    file: int
    start: int
    stop: int


def is_group_held_out(number: int, share: float) -> bool:
    """Whether group `number`, over all files, is held out."""
    return is_held_out(f"group {number}", share)


def _sizes(places: Sequence[_Place]) -> np.ndarray:
    return np.array([place.stop - place.start for place in places], dtype=np.int64)


def _called(options: TensorsOptions) -> str:
    return options.source or "what train_on was given"


# ---------------------------------------------------------------------------------------------- files


class _File(Protocol):
    """What is needed of a file of rows."""

    path: Path
    columns: dict[str, Column]
    rows: dict[str, int]

    def between(self, start: int, stop: int, key: str, out: Tensor | None = None) -> Tensor: ...


class _Array:
    """An .npy file: one array, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
            dtype = torch.from_numpy(np.empty(0, self._array.dtype)).dtype
        except (ValueError, TypeError, AttributeError, EOFError, OSError) as exc:
            raise DataError(f"{path} is not an .npy file of plain numbers: save it with numpy.save.") from exc
        self.columns = {"array": Column(dtype, self._array.shape[1:])}
        self.rows = {"array": self._array.shape[0] if self._array.ndim else 0}

    def between(self, start: int, stop: int, key: str, out: Tensor | None = None) -> Tensor:
        return torch.from_numpy(np.array(self._array[start:stop]))


def _paths(options: TensorsOptions, folder: Path | None) -> list[Path]:
    """The files, in the order of their names."""
    if not options.source:
        assert folder is not None
        return [folder / name for name in _spooled(folder)["files"]]
    source = Path(options.source).expanduser()
    if not source.exists():
        raise StudyError(
            f"activations.options.source = '{options.source}' does not exist: give an .npy or .safetensors file, or a "
            "folder of them."
        )
    found = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.suffix in _KINDS)
    kinds = {path.suffix for path in found}
    if len(kinds) != 1 or not kinds <= set(_KINDS):
        what = f"both {' and '.join(sorted(kinds))} files" if len(kinds) > 1 else "no .npy or .safetensors file"
        raise StudyError(f"activations.options.source = '{options.source}' is or holds {what}: give files of one kind.")
    return found


_KINDS: dict[str, Any] = {".npy": _Array, ".safetensors": Reader}


def _open(path: Path) -> _File:
    return _KINDS[path.suffix](path)


def _key(file: _File, site: str, sites: int) -> str:
    """The tensor of the first file that is meant by a site."""
    if site in file.columns:
        return site
    if sites == 1 and len(file.columns) == 1:
        return next(iter(file.columns))
    there = ", ".join([*file.columns, *getattr(file, "others", ())]) or "nothing"
    raise StudyError(f"{file.path} has no tensor '{site}', it has {there}: name it in activations.sites.")


def _width(files: Sequence[_File], key: str) -> int:
    """d of a tensor, the same in all files; DataError for what is not [rows, d] of floating-point numbers."""
    found = set()
    for file in files:
        if key not in file.columns:
            raise DataError(f"{file.path} has no tensor '{key}', which {files[0].path} has: give every file the same.")
        column = file.columns[key]
        if column.dtype not in FLOATS or len(column.shape) != 1 or not column.shape[0]:
            shape = [file.rows[key], *column.shape]
            raise DataError(
                f"{file.path} holds {str(column.dtype).removeprefix('torch.')} of shape {shape} where floating-point "
                "numbers of shape [rows, width] are needed."
            )
        found.add(column.shape[0])
    if len(found) > 1:
        raise DataError(
            f"the files of '{key}' have the widths {', '.join(map(str, sorted(found)))}: give it one width."
        )
    return found.pop()


def _count(file: _File, keys: Iterable[str]) -> int:
    """Rows of a file, the same of every tensor."""
    counts = {file.rows[key] for key in keys}
    if len(counts) > 1:
        raise DataError(
            f"the tensors of {file.path} have {' and '.join(map(str, sorted(counts)))} rows: give them one number."
        )
    return counts.pop()


# ---------------------------------------------------------------------------------------------- iterators


def spool(
    tensors: Iterable[Any],
    folder: Path,
    *,
    site: str,
    rows: int,
    dtype: torch.dtype = torch.float32,
    group: int = 256,
    progress: Progress | None = None,
) -> None:
    """Writes the first `rows` rows of an iterator of tensors or arrays [n, d] to files in `folder`, all or nothing.

    What is there already is used again, if the iterator begins with the same rows; ArtefactError if it does not.
    DataError for an iterator that ends early, and for what is no activation; it says which tensor. StudyError where
    the disk has no room.
    """
    progress, checked = progress or Silent(), _checked(tensors, dtype)
    first = next(checked, None)
    if first is None:
        raise DataError(f"the iterator gave nothing, 0 of {rows:,} rows: an iterator can be used only once.")
    if (folder / INDEX).exists():
        _compare(first, folder, site, rows, dtype)
        progress.say(f"The {rows:,} activations in {folder} are used again.")
        return
    d, row = first.shape[1], first.shape[1] * dtype.itemsize
    if rows * row > (free := store.free_bytes(folder)):
        raise StudyError(
            f"{folder} has {size(free)} of free disk, and {rows:,} rows of width {d:,} need {size(rows * row)}:"
            " give fewer rows, activations={'dtype': 'bfloat16'}, or another `out`."
        )
    at_once = max(1, int(FILE_MIB * 2**20 / (row * group))) * group
    names = [f"tensors-{number:05d}.safetensors" for number in range(-(-rows // at_once))]
    try:
        with progress.phase("activations", rows, "rows") as phase:
            chunks = _cut(itertools.chain([first], checked), rows, group)
            for name, start in zip(names, range(0, rows, at_once), strict=True):
                sizes = [min(group, rows - at) for at in range(start, min(start + at_once, rows), group)]
                counted = ({site: _advanced(chunk, phase)} for chunk in itertools.islice(chunks, len(sizes)))
                write(folder / name, {site: Column(dtype, (d,))}, sizes, counted, {})
    except BaseException:  # an iterator cannot be taken up again where it was
        for name in names:
            store.remove(folder / name)
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    sums = [Reader(folder / name).sums for name in names]
    about = {"site": site, "rows": rows, "d": d, "dtype": str(dtype).removeprefix("torch."), "group": group}
    store.write_json(folder / INDEX, {"schema": SCHEMA, "files": names, **about, "crc32": sums}, indent=None)


def _spooled(folder: Path) -> dict[str, Any]:
    """What `spool` wrote."""
    return store.read_json(folder / INDEX, SCHEMA, verb="jumpahead.train_on(…)")


def _compare(first: Tensor, folder: Path, site: str, rows: int, dtype: torch.dtype) -> None:
    """ArtefactError unless `folder` holds so many rows, and begins with these."""
    known = _spooled(folder)
    asked = {"site": site, "rows": rows, "d": first.shape[1], "dtype": str(dtype).removeprefix("torch.")}
    is_same = all(known[key] == value for key, value in asked.items())
    if is_same:
        with Reader(folder / known["files"][0]) as file:
            n = min(len(first), file.rows[site])
            is_same = torch.equal(file.between(0, n, site), first[:n])
    if not is_same:
        raise ArtefactError(f"{folder} holds other activations: remove it, or name another `out`.")


def _checked(tensors: Iterable[Any], dtype: torch.dtype) -> Iterator[Tensor]:
    """The tensors [n, d] of an iterator, on the CPU in `dtype`; DataError naming the first that will not do, from 1."""
    d = None
    for number, given in enumerate(tensors, start=1):
        if not isinstance(given, Tensor | np.ndarray):
            raise DataError(f"tensor {number} is a {type(given).__name__}: give torch tensors or numpy arrays [n, d].")
        value = torch.as_tensor(given).detach()
        if value.ndim != 2 or not value.numel():
            raise DataError(
                f"tensor {number} has the shape {list(value.shape)}: it must be [n, d] with at least one row."
            )
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise DataError(f"tensor {number} holds {kind}: activations are floating-point numbers.")
        if d is not None and value.shape[1] != d:
            raise DataError(f"tensor {number} has the width {value.shape[1]}, those before have {d}.")
        d = value.shape[1]
        kept = value.to(device="cpu", dtype=dtype, copy=True)  # written beside what the iterator does next
        if bad := not_finite({"": kept}):
            raise DataError(f"row {bad[1]} of tensor {number} holds a value that is not finite as {kept.dtype}.")
        yield kept


def _cut(tensors: Iterable[Tensor], rows: int, group: int) -> Iterator[Tensor]:
    """The first `rows` rows in pieces of `group`, the last one shorter; DataError where there are not so many."""
    waiting: list[Tensor] = []
    count = given = 0
    for value in tensors:
        value = value[: rows - given]
        waiting.append(value)
        count, given = count + len(value), given + len(value)
        if count >= group:
            *whole, rest = torch.cat(waiting).split(group)
            yield from whole
            waiting, count = [rest], len(rest)
            if count == group:
                yield rest
                waiting, count = [], 0
        if given == rows:
            break
    if given < rows:
        raise DataError(f"the iterator ended after {given:,} of {rows:,} rows: say rows={given} to train on these.")
    if count:
        yield torch.cat(waiting)


def _advanced(chunk: Tensor, phase: Phase) -> Tensor:
    phase.advance(len(chunk))
    return chunk


def rows_for(tokens: int, held_out: float, group: int) -> int:
    """Rows of which `tokens` are not held out: whole groups."""
    trained = (number for number in itertools.count() if not is_group_held_out(number, held_out))
    last = next(itertools.islice(trained, math.ceil(tokens / group) - 1, None))
    return (last + 1) * group


Origin = Tensors
