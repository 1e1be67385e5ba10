"""A safetensors file of rows: written group after group as they come, read a group at a time, every group checked.

    8 bytes     the header's length, little-endian
    header      JSON: dtype, shape and data_offsets of each tensor, and in `__metadata__` under `jumpahead` what we
                know: `info`, `rows` of each group, and `crc32`, per tensor a checksum of each group's rows. Padded
                with spaces.
    data        one tensor after another, each [rows, …], row-major

Any safetensors library reads these files, and `Reader` reads those of any library; only the checksums are ours. A
group is checked whenever it is read first: nothing is read that was not asked for. The data are read and written in
place, without a copy of a whole file in memory; written and flushed to the disk in other threads while more of them are
made.

    n   rows of a group
"""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.activations.prefetch import ahead
from jumpahead.errors import ArtefactError
from jumpahead.store import write_atomic

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32",
}  # fmt: skip
"""What safetensors calls the dtypes that we read and write."""
_KINDS = {name: dtype for dtype, name in NAMES.items()}
_ALIGN = 64  # bytes: where the data begin
_AT_ONCE = 2**22  # bytes written at once, about
_FLUSHED = 2**25  # bytes after which the disk is given what there is
_LONGEST = 2**28  # bytes of a header: more is no safetensors file


class Column(NamedTuple):
    """One tensor of a file, without its number of rows."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    """Of one row: (d,) for activations, () for labels."""

    @property
    def bytes(self) -> int:
        """Of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    path: Path,
    columns: Mapping[str, Column],
    rows: Sequence[int],
    groups: Iterable[Mapping[str, Tensor]],
    info: Mapping[str, Any],
) -> None:
    """Writes the groups of one file, atomically. rows: n of each group; groups: a CPU tensor [n, …] per column."""

    def content(temporary: Path) -> None:
        sums: dict[str, list[int]] = {key: [] for key in columns}
        start = _header(columns, rows, {key: [2**32 - 1] * len(rows) for key in columns}, info)
        places, end = {}, len(start)
        for key, column in columns.items():
            places[key], end = end, end + sum(rows) * column.bytes
        with open(temporary, "wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:

            def put(some: _Stretch) -> int:
                for key, parts in some.data.items():
                    sums[key] += some.sums[key]
                    file.seek(places[key] + some.first * columns[key].bytes)
                    _write_all(file, parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))
                return some.size

            waiting, flushed = 0, None
            for size in ahead(put, _stretches(columns, rows, groups), 1):
                waiting += size
                if waiting >= _FLUSHED and (flushed is None or flushed.done()):
                    _ = flushed and flushed.result()  # raises what the disk said
                    waiting, flushed = 0, pool.submit(os.fsync, file.fileno())
            _ = flushed and flushed.result()
            file.seek(0)
            _write_all(file, memoryview(_header(columns, rows, sums, info, len(start))))

    write_atomic(path, content)


class _Stretch(NamedTuple):
    """Groups that follow each other, written together: a column's rows of several groups are one piece of the file."""

    first: int
    """Its first row."""
    data: dict[str, list[memoryview]]
    """Of each column, group by group."""
    sums: dict[str, list[int]]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(part) for parts in self.data.values() for part in parts)


def _stretches(
    columns: Mapping[str, Column], rows: Sequence[int], groups: Iterable[Mapping[str, Tensor]]
) -> Iterator[_Stretch]:
    """The bytes of all groups and their checksums, about `_AT_ONCE` bytes at a time."""
    end = 0
    some = _Stretch(end, {key: [] for key in columns}, {key: [] for key in columns})
    for n, tensors in zip(rows, groups, strict=True):
        for key, column in columns.items():
            assert tensors[key].shape == (n, *column.shape), f"{key}: {tensors[key].shape}, not {n} rows"
            part = _bytes(tensors[key].to(column.dtype))
            some.data[key].append(part)
            some.sums[key].append(zlib.crc32(part))
        end += n
        if some.size >= _AT_ONCE:
            yield some
            some = _Stretch(end, {key: [] for key in columns}, {key: [] for key in columns})
    if any(some.sums.values()):
        yield some


def _header(
    columns: Mapping[str, Column],
    rows: Sequence[int],
    sums: Mapping[str, list[int]],
    info: Mapping[str, Any],
    length: int = 0,
) -> bytes:
    """The file up to its data: at least `length` bytes, and a multiple of `_ALIGN`."""
    total, place, known = sum(rows), 0, {"crc32": sums, "info": dict(info), "rows": list(rows)}
    header: dict[str, Any] = {"__metadata__": {"jumpahead": json.dumps(known)}}
    for key, column in columns.items():
        end = place + total * column.bytes
        header[key] = {
            "dtype": NAMES[column.dtype], "shape": [total, *column.shape], "data_offsets": [place, end],
        }  # fmt: skip
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    size = max(length, -(-(8 + len(text)) // _ALIGN) * _ALIGN)
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


class Reader:
    """An open file of rows. May be used by several threads.

    ArtefactError where it is missing, torn, damaged or no safetensors file; `way_out` ends that sentence.
    """

    def __init__(self, path: Path, way_out: str = "remove it") -> None:
        self.path, self.way_out = path, way_out
        self._lock = threading.Lock()
        self._checked: set[tuple[str, int | None]] = set()
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open for as long as the reader is
        except FileNotFoundError as exc:
            raise ArtefactError(f"{path} does not exist: {way_out}.") from exc
        try:
            self._data, header = _read_header(self._file, path.stat().st_size)
            known = json.loads(header.pop("__metadata__", {}).get("jumpahead", "{}"))
            self.columns = {key: _column(one) for key, one in header.items() if one["dtype"] in _KINDS and one["shape"]}
            """The tensors that can be read."""
            self.rows = {key: int(header[key]["shape"][0]) for key in self.columns}
            """Rows of each."""
            self.others = {key: str(one["dtype"]) for key, one in header.items() if key not in self.columns}
            """What else there is, of other dtypes."""
            self._places = {key: int(one["data_offsets"][0]) for key, one in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            self._file.close()
            raise self._damaged() from exc
        self.info: dict[str, Any] = known.get("info", {})
        """What was written with it; {} for a file that is not ours."""
        self.sums: dict[str, list[int]] = known.get("crc32", {})
        """Checksums of each tensor's groups; {} for a file that is not ours."""
        self._ends = [0, *itertools.accumulate(known.get("rows", ()))]
        self._groups = {place: number for number, place in enumerate(itertools.pairwise(self._ends))}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def group(self, number: int, key: str, out: Tensor | None = None) -> Tensor:
        """The rows [n, …] of a group, as `between`."""
        return self.between(self._ends[number], self._ends[number + 1], key, out)

    def expect(self, number: int, key: str) -> None:
        """Says that a group will be read soon, where the system can be told: it is fetched meanwhile."""
        if hasattr(os, "posix_fadvise"):
            row, start, stop = self.columns[key].bytes, self._ends[number], self._ends[number + 1]
            place = self._data + self._places[key] + start * row
            os.posix_fadvise(self._file.fileno(), place, (stop - start) * row, os.POSIX_FADV_WILLNEED)

    def between(self, start: int, stop: int, key: str, out: Tensor | None = None) -> Tensor:
        """Rows start … stop − 1 of a tensor, into `out` (contiguous, same dtype) where that is given.

        Where they are a group, and read for the first time, they are checked.
        """
        column = self.columns[key]
        found = torch.empty(stop - start, *column.shape, dtype=column.dtype) if out is None else out
        assert found.shape == (stop - start, *column.shape)
        assert found.dtype == column.dtype
        data, done = _bytes(found), 0
        with self._lock:
            self._file.seek(self._data + self._places[key] + start * column.bytes)
            while done < len(data):
                count = self._file.readinto(data[done:])
                if not count:
                    raise self._damaged()
                done += count
        group = key, self._groups.get((start, stop))
        if key in self.sums and group[1] is not None and group not in self._checked:
            if zlib.crc32(data) != self.sums[key][group[1]]:
                raise self._damaged()
            self._checked.add(group)
        return found

    def _damaged(self) -> ArtefactError:
        return ArtefactError(f"{self.path} is torn or damaged: {self.way_out}.")


def _column(described: Mapping[str, Any]) -> Column:
    return Column(_KINDS[described["dtype"]], tuple(described["shape"][1:]))


def _read_header(file: Any, size: int) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and what the header says; ValueError unless the file is as long as that."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _LONGEST):
        raise ValueError
    header = json.loads(file.read(length))
    ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
    if size != 8 + length + max(ends, default=0):
        raise ValueError
    return 8 + length, header


def _bytes(value: Tensor) -> memoryview:
    """The memory of a CPU tensor (a copy if it is not contiguous)."""
    flat: Any = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _write_all(file: Any, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]
