"""Safetensors files of rows: written as groups arrive, read one group at a time, with a checksum per group.

    8 bytes     the header's length, little-endian
    header      JSON: dtype, shape and data_offsets of each tensor; `__metadata__` has under `jumpahead`: `info`, the
                `rows` of each group, and `crc32`, per tensor the checksums of its groups. Padded with spaces.
    data        one tensor after another, each [rows, …], row-major

Any safetensors library reads these files, and `RowFileReader` reads files of any library; those have no checksums. The
checksum of a group is verified when the group is first read. Files are read and written in place, without a copy in
memory; they are written and flushed to the disk in other threads while further groups are computed.

    n   number of rows of a group
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

from jumpahead.activations.prefetch import prefetch_in_thread
from jumpahead.errors import ArtefactError
from jumpahead.storage.atomic import write_atomic

SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32",
}  # fmt: skip
"""The dtypes that are read and written, with their names in safetensors."""
_TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
_DATA_ALIGNMENT = 64  # bytes
_CHUNK_BYTES = 2**22  # written at once, approximately
_FSYNC_BYTES = 2**25  # written between two flushes to the disk
_MAX_HEADER_BYTES = 2**28  # a longer header is not safetensors


class ColumnSpec(NamedTuple):
    """Dtype and row shape of one tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    """Shape of one row: (d,) for activations, () for labels."""

    @property
    def bytes_per_row(self) -> int:
        """Return the bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_row_file(
    path: Path,
    columns: Mapping[str, ColumnSpec],
    rows: Sequence[int],
    groups: Iterable[Mapping[str, Tensor]],
    info: Mapping[str, Any],
) -> None:
    """Write one file atomically. rows: n of each group; groups: per group a CPU tensor [n, …] for every column."""

    def content(temporary: Path) -> None:
        checksums: dict[str, list[int]] = {key: [] for key in columns}
        start = _header_bytes(columns, rows, {key: [2**32 - 1] * len(rows) for key in columns}, info)
        offsets, end = {}, len(start)
        for key, column in columns.items():
            offsets[key], end = end, end + sum(rows) * column.bytes_per_row
        with open(temporary, "wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:

            def write_chunk(chunk: _Chunk) -> int:
                for key, parts in chunk.data.items():
                    checksums[key] += chunk.checksums[key]
                    file.seek(offsets[key] + chunk.first * columns[key].bytes_per_row)
                    _write_all(file, parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))
                return chunk.size

            unflushed, flushed = 0, None
            for size in prefetch_in_thread(write_chunk, _chunks(columns, rows, groups), 1):
                unflushed += size
                if unflushed >= _FSYNC_BYTES and (flushed is None or flushed.done()):
                    _ = flushed and flushed.result()  # raises the error of the flush, if any
                    unflushed, flushed = 0, pool.submit(os.fsync, file.fileno())
            _ = flushed and flushed.result()
            file.seek(0)
            _write_all(file, memoryview(_header_bytes(columns, rows, checksums, info, len(start))))

    write_atomic(path, content)


class _Chunk(NamedTuple):
    """Consecutive groups that are written together: the rows of one column are contiguous in the file."""

    first: int
    """Number of its first row in the file."""
    data: dict[str, list[memoryview]]
    """The bytes of every column, group by group."""
    checksums: dict[str, list[int]]
    """The CRC-32 of every column, group by group."""

    @property
    def size(self) -> int:
        """Return its bytes."""
        return sum(len(part) for parts in self.data.values() for part in parts)


def _chunks(
    columns: Mapping[str, ColumnSpec], rows: Sequence[int], groups: Iterable[Mapping[str, Tensor]]
) -> Iterator[_Chunk]:
    """Yield the bytes and checksums of all groups, about `_CHUNK_BYTES` bytes at a time."""
    end = 0
    chunk = _Chunk(end, {key: [] for key in columns}, {key: [] for key in columns})
    for n, tensors in zip(rows, groups, strict=True):
        for key, column in columns.items():
            assert tensors[key].shape == (n, *column.shape), f"{key}: {tensors[key].shape}, not {n} rows"
            part = _byte_view(tensors[key].to(column.dtype))
            chunk.data[key].append(part)
            chunk.checksums[key].append(zlib.crc32(part))
        end += n
        if chunk.size >= _CHUNK_BYTES:
            yield chunk
            chunk = _Chunk(end, {key: [] for key in columns}, {key: [] for key in columns})
    if any(chunk.checksums.values()):
        yield chunk


def _header_bytes(
    columns: Mapping[str, ColumnSpec],
    rows: Sequence[int],
    checksums: Mapping[str, list[int]],
    info: Mapping[str, Any],
    length: int = 0,
) -> bytes:
    """Return the bytes before the data: at least `length`, and a multiple of `_DATA_ALIGNMENT`."""
    total, offset, known = sum(rows), 0, {"crc32": checksums, "info": dict(info), "rows": list(rows)}
    header: dict[str, Any] = {"__metadata__": {"jumpahead": json.dumps(known)}}
    for key, column in columns.items():
        end = offset + total * column.bytes_per_row
        header[key] = {
            "dtype": SAFETENSORS_DTYPES[column.dtype], "shape": [total, *column.shape], "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    size = max(length, -(-(8 + len(text)) // _DATA_ALIGNMENT) * _DATA_ALIGNMENT)
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


class RowFileReader:
    """An open file of rows; several threads may use it.

    Raises ArtefactError if the file is missing, torn, damaged or not safetensors; `remedy` ends that sentence.
    """

    def __init__(self, path: Path, remedy: str = "remove it") -> None:
        self.path, self.remedy = path, remedy
        self._lock = threading.Lock()
        self._verified: set[tuple[str, int | None]] = set()
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open for as long as the reader is
        except FileNotFoundError as exc:
            raise ArtefactError(f"{path} does not exist: {remedy}.") from exc
        try:
            self._data_offset, header = _read_header(self._file, path.stat().st_size)
            known = json.loads(header.pop("__metadata__", {}).get("jumpahead", "{}"))
            self.columns = {
                key: _column_spec(one) for key, one in header.items() if one["dtype"] in _TORCH_DTYPES and one["shape"]
            }
            """The tensors that can be read, by name."""
            self.rows = {key: int(header[key]["shape"][0]) for key in self.columns}
            """Number of rows of every tensor in `columns`."""
            self.unsupported = {key: str(one["dtype"]) for key, one in header.items() if key not in self.columns}
            """Dtypes of the tensors that cannot be read."""
            self._offsets = {key: int(one["data_offsets"][0]) for key, one in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            self._file.close()
            raise self._damaged_error() from exc
        self.info: dict[str, Any] = known.get("info", {})
        """The `info` that was written with the file; {} for a file of another library."""
        self.checksums: dict[str, list[int]] = known.get("crc32", {})
        """CRC-32 of every tensor's groups; {} for a file of another library."""
        self._ends = [0, *itertools.accumulate(known.get("rows", ()))]
        self._groups = {span: number for number, span in enumerate(itertools.pairwise(self._ends))}

    def __enter__(self) -> RowFileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_group(self, number: int, key: str, out: Tensor | None = None) -> Tensor:
        """Return the rows [n, …] of a group; arguments as in `read_rows`."""
        return self.read_rows(self._ends[number], self._ends[number + 1], key, out)

    def advise_read(self, number: int, key: str) -> None:
        """Ask the operating system, if it can, to read a group into its cache in advance."""
        if hasattr(os, "posix_fadvise"):
            row, start, stop = self.columns[key].bytes_per_row, self._ends[number], self._ends[number + 1]
            offset = self._data_offset + self._offsets[key] + start * row
            os.posix_fadvise(self._file.fileno(), offset, (stop - start) * row, os.POSIX_FADV_WILLNEED)

    def read_rows(self, start: int, stop: int, key: str, out: Tensor | None = None) -> Tensor:
        """Return rows start … stop − 1 of a tensor, written into `out` (contiguous, same dtype) if that is given.

        The checksum is verified if they are one whole group, when it is read for the first time.
        """
        column = self.columns[key]
        found = torch.empty(stop - start, *column.shape, dtype=column.dtype) if out is None else out
        assert found.shape == (stop - start, *column.shape)
        assert found.dtype == column.dtype
        data, done = _byte_view(found), 0
        with self._lock:
            self._file.seek(self._data_offset + self._offsets[key] + start * column.bytes_per_row)
            while done < len(data):
                count = self._file.readinto(data[done:])
                if not count:
                    raise self._damaged_error()
                done += count
        group = key, self._groups.get((start, stop))
        if key in self.checksums and group[1] is not None and group not in self._verified:
            if zlib.crc32(data) != self.checksums[key][group[1]]:
                raise self._damaged_error()
            self._verified.add(group)
        return found

    def _damaged_error(self) -> ArtefactError:
        """Return the error for a file that is not what was written."""
        return ArtefactError(f"{self.path} is torn or damaged: {self.remedy}.")


def _column_spec(described: Mapping[str, Any]) -> ColumnSpec:
    """Return dtype and row shape of a tensor, from its entry in the header."""
    return ColumnSpec(_TORCH_DTYPES[described["dtype"]], tuple(described["shape"][1:]))


def _read_header(file: Any, size: int) -> tuple[int, dict[str, Any]]:
    """Return the offset of the data and the header. Raises ValueError if the file has another length than it says."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError
    header = json.loads(file.read(length))
    ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
    if size != 8 + length + max(ends, default=0):
        raise ValueError
    return 8 + length, header


def _byte_view(value: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor without copying them (of a copy if it is not contiguous)."""
    flat: Any = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _write_all(file: Any, data: memoryview) -> None:
    """Write all bytes to an unbuffered file, whose `write` may write fewer."""
    while len(data):
        data = data[file.write(data) :]
