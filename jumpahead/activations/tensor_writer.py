"""Write the tensors of an iterator (`jumpahead.train_on`) to files that the origin `tensors` reads."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jumpahead.activations.base import FLOAT_DTYPES, find_non_finite
from jumpahead.activations.row_files import ColumnSpec, RowFileReader, write_row_file
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.formatting import format_bytes
from jumpahead.progress import Phase, Progress, SilentProgress
from jumpahead.storage.folders import free_disk_bytes, remove_path
from jumpahead.storage.json_files import read_json, write_json

SCHEMA = "jumpahead.tensors/2"
INDEX = "tensors.json"
FILE_MIB = 256
"""Approximate size of a file in MiB."""


def write_iterator(
    tensors: Iterable[Any],
    folder: Path,
    *,
    site: str,
    rows: int,
    dtype: torch.dtype = torch.float32,
    rows_per_group: int = 256,
    progress: Progress | None = None,
) -> None:
    """Write the first `rows` rows of an iterator of tensors or arrays [n, d] to files in `folder`.

    If writing fails, the written files are removed. Existing files are used again if their first rows are the same;
    otherwise ArtefactError is raised. Raises DataError if the iterator ends early or yields values that are not finite
    floating-point tensors [n, d], and StudyError if the disk is too small.
    """
    progress, validated = progress or SilentProgress(), _validated_tensors(tensors, dtype)
    first = next(validated, None)
    if first is None:
        raise DataError(f"the iterator gave nothing, 0 of {rows:,} rows: an iterator can be used only once.")
    if (folder / INDEX).exists():
        _require_same_rows(first, folder, site, rows, dtype)
        progress.say(f"The {rows:,} activations in {folder} are used again.")
        return
    d, row_bytes = first.shape[1], first.shape[1] * dtype.itemsize
    if (needed := rows * row_bytes) > (free := free_disk_bytes(folder)):
        raise StudyError(
            f"{folder} has {format_bytes(free)} of free disk, and {rows:,} rows of width {d:,} need "
            f"{format_bytes(needed)}: give fewer rows, activations={{'dtype': 'bfloat16'}}, or another `out`."
        )
    rows_per_file = max(1, int(FILE_MIB * 2**20 / (row_bytes * rows_per_group))) * rows_per_group
    names = [f"tensors-{number:05d}.safetensors" for number in range(-(-rows // rows_per_file))]
    try:
        with progress.phase("activations", rows, "rows") as phase:
            groups = _regroup(itertools.chain([first], validated), rows, rows_per_group)
            for name, start in zip(names, range(0, rows, rows_per_file), strict=True):
                end = min(start + rows_per_file, rows)
                sizes = [min(rows_per_group, rows - at) for at in range(start, end, rows_per_group)]
                counted = ({site: _advance(phase, x)} for x in itertools.islice(groups, len(sizes)))
                write_row_file(folder / name, {site: ColumnSpec(dtype, (d,))}, sizes, counted, {})
    except BaseException:  # an iterator cannot be continued later
        for name in names:
            remove_path(folder / name)
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    checksums = [RowFileReader(folder / name).checksums for name in names]
    about = {
        "site": site,
        "rows": rows,
        "d": d,
        "dtype": str(dtype).removeprefix("torch."),
        "rows_per_group": rows_per_group,
    }
    write_json(folder / INDEX, {"schema": SCHEMA, "files": names, **about, "crc32": checksums}, indent=None)


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of the files that `write_iterator` wrote: file names, site, sizes, dtype and checksums."""
    return read_json(folder / INDEX, SCHEMA, made_by="jumpahead.train_on(…)")


def _require_same_rows(first: Tensor, folder: Path, site: str, rows: int, dtype: torch.dtype) -> None:
    """Raise ArtefactError unless `folder` holds `rows` rows of this site and dtype whose first rows equal `first`."""
    index = read_index(folder)
    expected = {"site": site, "rows": rows, "d": first.shape[1], "dtype": str(dtype).removeprefix("torch.")}
    is_same = all(index[key] == value for key, value in expected.items())
    if is_same:
        with RowFileReader(folder / index["files"][0]) as file:
            n = min(len(first), file.rows[site])
            is_same = torch.equal(file.read_rows(0, n, site), first[:n])
    if not is_same:
        raise ArtefactError(f"{folder} holds other activations: remove it, or name another `out`.")


def _validated_tensors(tensors: Iterable[Any], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield copies of the tensors [n, d] of an iterator, on the CPU in `dtype`.

    Raises DataError, with the tensor's number from 1, if a tensor is not [n, d], not finite floating-point, or differs
    in d.
    """
    d = None
    for number, given in enumerate(tensors, start=1):
        if not isinstance(given, Tensor | np.ndarray):
            raise DataError(f"tensor {number} is a {type(given).__name__}: give torch tensors or numpy arrays [n, d].")
        value = torch.as_tensor(given).detach()
        if value.ndim != 2 or not value.numel():
            raise DataError(
                f"tensor {number} has the shape {list(value.shape)}: it must be [n, d] with at least one row."
            )
        if value.dtype not in FLOAT_DTYPES:
            name = str(value.dtype).removeprefix("torch.")
            raise DataError(f"tensor {number} holds {name}: activations are floating-point numbers.")
        if d is not None and value.shape[1] != d:
            raise DataError(f"tensor {number} has the width {value.shape[1]}, those before have {d}.")
        d = value.shape[1]
        copied = value.to(device="cpu", dtype=dtype, copy=True)  # the iterator may reuse its memory
        if bad := find_non_finite({"": copied}):
            raise DataError(f"row {bad[1]} of tensor {number} holds a value that is not finite as {copied.dtype}.")
        yield copied


def _regroup(tensors: Iterable[Tensor], rows: int, rows_per_group: int) -> Iterator[Tensor]:
    """Yield the first `rows` rows as tensors of `rows_per_group` rows; the last tensor may have fewer.

    Raises DataError if the iterator has fewer than `rows` rows.
    """
    pending: list[Tensor] = []
    pending_rows = taken = 0
    for value in tensors:
        value = value[: rows - taken]
        pending.append(value)
        pending_rows, taken = pending_rows + len(value), taken + len(value)
        if pending_rows >= rows_per_group:
            *whole, rest = torch.cat(pending).split(rows_per_group)
            yield from whole
            pending, pending_rows = [rest], len(rest)
            if pending_rows == rows_per_group:
                yield rest
                pending, pending_rows = [], 0
        if taken == rows:
            break
    if taken < rows:
        raise DataError(f"the iterator ended after {taken:,} of {rows:,} rows: say rows={taken} to train on these.")
    if pending_rows:
        yield torch.cat(pending)


def _advance(phase: Phase, x: Tensor) -> Tensor:
    """Advance a progress bar by the rows of x [n, d]; return `x`."""
    phase.advance(len(x))
    return x
