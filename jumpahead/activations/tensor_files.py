"""Read user files of activations (.npy, .safetensors) without loading them whole. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jumpahead.activations.base import FLOAT_DTYPES
from jumpahead.activations.row_files import ColumnSpec, RowFileReader
from jumpahead.errors import DataError, StudyError
from jumpahead.storage.plain_files import require_plain

_HOSTILE = (SyntaxError, RecursionError, MemoryError, OverflowError, IndexError)
"""Exceptions that numpy raises for forged headers, besides its own errors."""


class TensorFile(Protocol):
    """Interface of an open file of activations."""

    path: Path
    columns: dict[str, ColumnSpec]
    """Dtype and row shape of every tensor [rows, …], by name."""
    rows: dict[str, int]
    """Number of rows of every tensor, by name."""

    def read_rows(self, start: int, stop: int, column: str, out: Tensor | None = None) -> Tensor:
        """Return rows start … stop − 1 of the tensor named `column`. out: a tensor that may be written into."""
        ...


class _NpyFile:
    """An .npy file: one memory-mapped array, named `array`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require_plain(path)
        try:
            self._array = np.lib.format.open_memmap(path, mode="r")
            dtype = torch.from_numpy(np.empty(0, self._array.dtype)).dtype
        except (ValueError, TypeError, AttributeError, EOFError, OSError, *_HOSTILE) as exc:
            raise DataError(f"{path} is not an .npy file of plain numbers: save it with numpy.save.") from exc
        self.columns = {"array": ColumnSpec(dtype, self._array.shape[1:])}
        self.rows = {"array": self._array.shape[0] if self._array.ndim else 0}

    def read_rows(self, start: int, stop: int, column: str, out: Tensor | None = None) -> Tensor:
        """Return rows start … stop − 1 of the array; `column` and `out` are ignored."""
        return torch.from_numpy(np.array(self._array[start:stop]))


_FILE_TYPES: dict[str, Any] = {".npy": _NpyFile, ".safetensors": RowFileReader}


def tensor_paths(source: str) -> list[Path]:
    """Return the paths of the activation files in `source` (a file or a folder), sorted by name.

    Raises StudyError if the source does not exist, or does not consist of files of one supported type.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise StudyError(
            f"activations.options.source = '{source}' does not exist: give an .npy or .safetensors file, or a folder "
            "of them."
        )
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _FILE_TYPES)
    types = {file.suffix for file in files}
    if len(types) != 1 or not types <= set(_FILE_TYPES):
        what = f"both {' and '.join(sorted(types))} files" if len(types) > 1 else "no .npy or .safetensors file"
        raise StudyError(f"activations.options.source = '{source}' is or holds {what}: give files of one kind.")
    return files


def open_tensor_file(path: Path) -> TensorFile:
    """Open an activation file. Raises DataError or ArtefactError if the file cannot be read."""
    return _FILE_TYPES[path.suffix](path)


def tensor_key(file: TensorFile, site: str, sites: int) -> str:
    """Return the name of a site's tensor: the site's name or, if there is one site and one tensor, the tensor's name.

    sites: the number of sites. Raises StudyError if there is no such tensor.
    """
    if site in file.columns:
        return site
    if sites == 1 and len(file.columns) == 1:
        return next(iter(file.columns))
    names = ", ".join([*file.columns, *getattr(file, "unsupported", ())]) or "nothing"
    raise StudyError(f"{file.path} has no tensor '{site}', it has {names}: name it in activations.sites.")


def tensor_width(files: Sequence[TensorFile], key: str) -> int:
    """Return d of the tensor named `key`. Raises DataError unless it is [rows, d] floating-point in all files."""
    widths = set()
    for file in files:
        if key not in file.columns:
            raise DataError(f"{file.path} has no tensor '{key}', which {files[0].path} has: give every file the same.")
        column = file.columns[key]
        if column.dtype not in FLOAT_DTYPES or len(column.shape) != 1 or not column.shape[0]:
            shape = [file.rows[key], *column.shape]
            raise DataError(
                f"{file.path} holds {str(column.dtype).removeprefix('torch.')} of shape {shape} where floating-point "
                "numbers of shape [rows, width] are needed."
            )
        widths.add(column.shape[0])
    if len(widths) > 1:
        raise DataError(
            f"the files of '{key}' have the widths {', '.join(map(str, sorted(widths)))}: give it one width."
        )
    return widths.pop()


def row_count(file: TensorFile, keys: Iterable[str]) -> int:
    """Return the number of rows of a file. Raises DataError if the tensors named `keys` differ in length."""
    counts = {file.rows[key] for key in keys}
    if len(counts) > 1:
        raise DataError(
            f"the tensors of {file.path} have {' and '.join(map(str, sorted(counts)))} rows: give them one number."
        )
    return counts.pop()
