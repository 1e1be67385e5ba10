"""Safetensors files of rows: written and read one group of rows at a time, with a checksum per group.

    8 bytes     the header's length, little-endian
    header      JSON: dtype, shape and data_offsets of each tensor; `__metadata__` has under `jumpahead`: `info`, the
                `rows` of each group, `crc32`, per tensor the checksums of its groups, and `sha256`, the checksum of
                these, of the names, dtypes and shapes (storage/tensors.py). Padded with spaces.
    data        one tensor after another, each [rows, …], row-major

Any safetensors library reads these files, and `RowFileReader` reads files of any library (without checksums). The
checksum of a group is verified when the group is first read, that of the header when the file is opened. Files are read
and written in place, without a copy in memory; they are written and flushed to the disk in other threads while further
groups are computed.

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
from jumpahead.errors import ArtefactError, DamagedError
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import parse_json
from jumpahead.storage.plain_files import open_plain
from jumpahead.storage.tensors import header_digest

SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32",
}  # fmt: skip
"""Supported dtypes, with the names that safetensors uses."""
_TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
_DATA_ALIGNMENT = 64  # bytes
_CHUNK_BYTES = 2**22  # approximate size of one write
_FSYNC_BYTES = 2**25  # bytes written between two flushes to the disk
_MAX_DIMENSIONS = 16  # of a tensor
_MAX_HEADER_BYTES = 100_000_000  # a longer header is not safetensors


class ColumnSpec(NamedTuple):
    """Dtype and row shape of one column: a tensor [rows, …] in a file of rows."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    """Shape of one row: (d,) for activations, () for labels."""

    @property
    def bytes_per_row(self) -> int:
        """Return the size of one row of the column in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_row_file(
    path: Path,
    columns: Mapping[str, ColumnSpec],
    rows: Sequence[int],
    groups: Iterable[Mapping[str, Tensor]],
    info: Mapping[str, Any],
) -> None:
    """Write a file of rows atomically.

    columns: dtype and row shape of every tensor, by name.
    rows: the number of rows n of each group.
    groups: for each group, a CPU tensor [n, …] for every column.
    info: JSON values for the header.
    """

    def write_content(temporary: Path) -> None:
        checksums: dict[str, list[int]] = {key: [] for key in columns}
        start = _header_bytes(columns, rows, {key: [2**32 - 1] * len(rows) for key in columns}, info)
        offsets, end = {}, len(start)
        for key, column in columns.items():
            offsets[key], end = end, end + sum(rows) * column.bytes_per_row
        with open(temporary, "wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:

            def write_chunk(chunk: _Chunk) -> int:
                """Write the bytes of a chunk at their offsets; return the number of bytes."""
                for key, buffers in chunk.data.items():
                    checksums[key] += chunk.checksums[key]
                    file.seek(offsets[key] + chunk.first * columns[key].bytes_per_row)
                    _write_all(file, buffers[0] if len(buffers) == 1 else memoryview(b"".join(buffers)))
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

    write_atomic(path, write_content)


class _Chunk(NamedTuple):
    """The bytes of consecutive groups that are written together; each column's rows are contiguous in the file."""

    first: int
    """Index of the chunk's first row in the file."""
    data: dict[str, list[memoryview]]
    """For every column, the bytes of each group."""
    checksums: dict[str, list[int]]
    """For every column, the CRC-32 of each group."""

    @property
    def size(self) -> int:
        """Return the number of bytes in the chunk."""
        return sum(len(buffer) for buffers in self.data.values() for buffer in buffers)


def _chunks(
    columns: Mapping[str, ColumnSpec], rows: Sequence[int], groups: Iterable[Mapping[str, Tensor]]
) -> Iterator[_Chunk]:
    """Yield all groups as chunks of bytes and checksums; a chunk ends once it has `_CHUNK_BYTES` bytes or more."""
    end = 0
    chunk = _Chunk(end, {key: [] for key in columns}, {key: [] for key in columns})
    for n, tensors in zip(rows, groups, strict=True):
        for key, column in columns.items():
            assert tensors[key].shape == (n, *column.shape), f"{key}: {tensors[key].shape}, not {n} rows"
            buffer = _byte_view(tensors[key].to(column.dtype))
            chunk.data[key].append(buffer)
            chunk.checksums[key].append(zlib.crc32(buffer))
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
    min_length: int = 0,
) -> bytes:
    """Return the bytes that precede the data: at least `min_length`, padded to a multiple of `_DATA_ALIGNMENT`."""
    total, offset, known = sum(rows), 0, {"crc32": checksums, "info": dict(info), "rows": list(rows)}
    specs = {key: (SAFETENSORS_DTYPES[column.dtype], [total, *column.shape]) for key, column in columns.items()}
    known["sha256"] = header_digest(known, specs)
    header: dict[str, Any] = {"__metadata__": {"jumpahead": json.dumps(known)}}
    for key, column in columns.items():
        end = offset + total * column.bytes_per_row
        header[key] = {
            "dtype": SAFETENSORS_DTYPES[column.dtype], "shape": [total, *column.shape], "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    size = max(min_length, -(-(8 + len(text)) // _DATA_ALIGNMENT) * _DATA_ALIGNMENT)
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


class RowFileReader:
    """An open safetensors file of rows. Several threads may read from it.

    Raises ArtefactError if the file is missing, DamagedError if it is damaged or not safetensors.
    remedy: the advice in the error message. is_own: whether `write_row_file` must have written the file.
    """

    def __init__(self, path: Path, remedy: str = "remove it", *, is_own: bool = False) -> None:
        self.path, self.remedy = path, remedy
        self._lock = threading.Lock()
        self._verified: set[tuple[str, int | None]] = set()
        try:
            self._file = open_plain(path)
        except FileNotFoundError as exc:
            raise ArtefactError(f"{path} does not exist: {remedy}.") from exc
        try:
            self._data_offset, header = _read_header(self._file, os.fstat(self._file.fileno()).st_size)
            known = _own_metadata(header, is_own=is_own)
            self.columns = {
                key: _column_spec(entry)
                for key, entry in header.items()
                if entry["dtype"] in _TORCH_DTYPES and entry["shape"]
            }
            """Dtype and row shape of the readable tensors, by name."""
            self.rows = {key: int(header[key]["shape"][0]) for key in self.columns}
            """Number of rows of the readable tensors, by name."""
            self.unsupported = {key: str(entry["dtype"]) for key, entry in header.items() if key not in self.columns}
            """Dtypes of the tensors that cannot be read, by name."""
            self._offsets = {key: int(entry["data_offsets"][0]) for key, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as exc:
            self._file.close()
            raise self._damaged_error() from exc
        self.info: dict[str, Any] = known.get("info", {})
        """The `info` that was given to `write_row_file`; {} if another library wrote the file."""
        self.checksums: dict[str, list[int]] = known.get("crc32", {})
        """CRC-32 of each group, by tensor name; {} if another library wrote the file."""
        self._ends = [0, *itertools.accumulate(known.get("rows", ()))]
        self._groups = {span: number for number, span in enumerate(itertools.pairwise(self._ends))}

    def __enter__(self) -> RowFileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_group(self, number: int, column: str, out: Tensor | None = None) -> Tensor:
        """Return the rows [n, …] of a group of a column.

        number: the group's number in this file. column: the tensor's name. out: if given, the tensor to write into.
        """
        return self.read_rows(self._ends[number], self._ends[number + 1], column, out)

    def advise_read(self, number: int, column: str) -> None:
        """Ask the operating system to read a group of a column into the page cache, if it supports posix_fadvise."""
        if hasattr(os, "posix_fadvise"):
            row_bytes, start, stop = self.columns[column].bytes_per_row, self._ends[number], self._ends[number + 1]
            offset = self._data_offset + self._offsets[column] + start * row_bytes
            os.posix_fadvise(self._file.fileno(), offset, (stop - start) * row_bytes, os.POSIX_FADV_WILLNEED)

    def read_rows(self, start: int, stop: int, column: str, out: Tensor | None = None) -> Tensor:
        """Return rows start … stop − 1 of a column, written into `out` (contiguous, same dtype) if `out` is given.

        If the rows are exactly one group, the group's checksum is verified when the group is first read.
        """
        spec = self.columns[column]
        rows = torch.empty(stop - start, *spec.shape, dtype=spec.dtype) if out is None else out
        assert rows.shape == (stop - start, *spec.shape)
        assert rows.dtype == spec.dtype
        data, done = _byte_view(rows), 0
        with self._lock:
            self._file.seek(self._data_offset + self._offsets[column] + start * spec.bytes_per_row)
            while done < len(data):
                count = self._file.readinto(data[done:])
                if not count:
                    raise self._damaged_error()
                done += count
        group = column, self._groups.get((start, stop))
        if column in self.checksums and group[1] is not None and group not in self._verified:
            if zlib.crc32(data) != self.checksums[column][group[1]]:
                raise self._damaged_error()
            self._verified.add(group)
        return rows

    def _damaged_error(self) -> DamagedError:
        """Return the error for a file that is incomplete or whose bytes changed."""
        return DamagedError(self.path, "is torn or damaged", self.remedy)


def _column_spec(entry: Mapping[str, Any]) -> ColumnSpec:
    """Return the dtype and row shape of a column from its entry in the safetensors header."""
    return ColumnSpec(_TORCH_DTYPES[entry["dtype"]], tuple(entry["shape"][1:]))


def _own_metadata(header: dict[str, Any], *, is_own: bool) -> dict[str, Any]:
    """Take `__metadata__` out of a header; return what `write_row_file` wrote there, {} for another library's file.

    Raises ValueError if the header does not match its checksum, or if the file must be ours and is not.
    """
    text = (header.pop("__metadata__", None) or {}).get("jumpahead")
    if text is None and not is_own:
        return {}
    known = parse_json(str(text))
    columns = {key: (entry["dtype"], list(entry["shape"])) for key, entry in header.items()}
    if header_digest(known, columns) != known["sha256"]:
        raise ValueError("the header does not match its checksum")
    return known


def _read_header(file: Any, size: int) -> tuple[int, dict[str, Any]]:
    """Return the offset of the data and the parsed header.

    Raises ValueError if the header is malformed, or if the tensors do not fill the file, of `size` bytes, one after
    another.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError
    header = parse_json(file.read(length))
    end = 0
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    for entry in sorted(entries, key=lambda entry: tuple(entry["data_offsets"])):
        begin, after = entry["data_offsets"]
        bits, numbers = int("".join(filter(str.isdigit, entry["dtype"].partition("_")[0])) or 8), 1
        if len(entry["shape"]) > _MAX_DIMENSIONS:
            raise ValueError
        for count in entry["shape"]:
            if type(count) is not int or not 0 <= count <= size:
                raise ValueError
            numbers *= count
        if begin != end or after - begin != numbers * bits // 8:
            raise ValueError
        end = after
    if size != 8 + length + end:
        raise ValueError
    return 8 + length, header


def _byte_view(value: Tensor) -> memoryview:
    """Return a view of the bytes of a CPU tensor; if the tensor is not contiguous, a view of a copy."""
    flat: Any = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _write_all(file: Any, data: memoryview) -> None:
    """Write all bytes to an unbuffered file, repeating `write` because one call may write only some of the bytes."""
    while len(data):
        data = data[file.write(data) :]
