"""Weight files of other libraries, read as untrusted data: safetensors, numpy's .npz, torch's .pt.

Tensors are mapped, not read: memory is taken only for those that are wanted, once their shape is known to be right.
Nothing is executed. A .pt file goes through torch's restricted reader, and only if it is a plain zip file; anything in
it but tensors, numbers, texts and plain containers is refused.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.errors import ArtefactError

AGAIN = "get it again from where the SAE is from"
MAX_RATIO, FREE_BYTES = 20, 64 * 2**20
"""A .npz file may unpack to MAX_RATIO times its size plus FREE_BYTES: weights compress little, zeros without limit."""


@final
class WeightsFile:
    """The tensors of a file, by name. Errors are ArtefactErrors that name the file and the tensor."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self._tensors, self._taken = path, tensors, set[str]()

    @classmethod
    def read(cls, path: Path) -> WeightsFile:
        """Open a file by its suffix. Raises ArtefactError if it is missing, torn, or holds anything but tensors."""
        if not path.is_file():
            raise ArtefactError(f"{path} does not exist: it holds the SAE's weights.")
        readers: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {".safetensors": _safetensors, ".npz": _npz}
        try:
            return cls(path, readers.get(path.suffix, _torch)(path))
        except (OSError, ValueError, EOFError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile) as exc:
            raise ArtefactError(f"{path} is torn or is no {path.suffix} file of weights: {AGAIN}.") from exc

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def error(self, name: str, problem: str) -> ArtefactError:
        """Return the error for a tensor: the file, the tensor and what is wrong."""
        return ArtefactError(f"{self.path}: '{name}' {problem}.")

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._get(name).shape)

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Return the shape of a tensor that has two dimensions, neither of them empty."""
        shape = self.shape(name)
        if len(shape) != 2 or 0 in shape:
            raise self.error(name, f"has the shape {list(shape)}; it must be a matrix")
        return shape[0], shape[1]

    def take(self, name: str, *shape: int, transpose: bool = False) -> Tensor:
        """Return a tensor of this shape as float32 in memory of its own, after checking that it is finite.

        transpose: return the transposed matrix; `shape` is the shape in the file.
        """
        tensor = self._get(name)
        if tuple(tensor.shape) != shape:
            hint = "; it is transposed" if tuple(tensor.shape) == shape[::-1] and len(shape) == 2 else ""
            raise self.error(name, f"has the shape {list(tensor.shape)}, not {list(shape)}{hint}")
        if not tensor.is_floating_point():
            raise self.error(
                name, f"has the dtype {str(tensor.dtype).removeprefix('torch.')}, not a floating-point one"
            )
        self._taken.add(name)
        value = (tensor.T if transpose else tensor).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if value.numel() and not all(math.isfinite(end.item()) for end in torch.aminmax(value)):  # NaN is kept by both
            raise self.error(name, "holds NaN or infinite values")
        return value

    def number(self, name: str) -> float:
        """Return a tensor of one value."""
        tensor = self._get(name)
        if tensor.numel() != 1:
            raise self.error(name, f"has the shape {list(tensor.shape)}; it must be a single number")
        self._taken.add(name)
        value = float(tensor.reshape(()).item())
        if not math.isfinite(value):
            raise self.error(name, "is NaN or infinite")
        return value

    def integers(self, name: str) -> list[int]:
        """Return the values of a vector of integers, of at most 10,000."""
        tensor = self._get(name)
        if tensor.dim() != 1 or tensor.is_floating_point() or tensor.numel() > 10_000:
            raise self.error(name, f"has the shape {list(tensor.shape)}; it must be a vector of integers")
        self._taken.add(name)
        return [int(value) for value in tensor.tolist()]

    def finish(self, what: str) -> None:
        """Raise ArtefactError if a tensor was not taken: the file is then of another kind than it was read as.

        what: the kind that it was read as.
        """
        if left := sorted(set(self._tensors) - self._taken):
            raise self.error(left[0], f"does not belong to {what}")

    def _get(self, name: str) -> Tensor:
        """Return a tensor. Raises ArtefactError if it is missing."""
        if name not in self._tensors:
            raise ArtefactError(f"{self.path} has no '{name}', without which the SAE would compute something else.")
        return self._tensors[name]


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — it is no dict
    except SafetensorError as exc:
        raise ValueError(str(exc)) from exc


def _npz(path: Path) -> Mapping[str, Tensor]:
    """Return the arrays of an .npz file: mapped where they are stored as they are, else unpacked.

    Raises ValueError if an array is not numeric or if the file unpacks to far more than its size.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(one.file_size for one in members) > MAX_RATIO * path.stat().st_size + FREE_BYTES:
            raise ArtefactError(f"{path} would unpack to more than {MAX_RATIO} times its size: it holds no weights.")
        return {one.filename.removesuffix(".npy"): _npz_member(path, archive, one) for one in members}


def _npz_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """Return one array of an .npz file; see `_npz`."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = reader(file)
        begin = file.tell()
        if dtype.kind not in "fiub" or begin + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} is no plain array of numbers")
        order = "F" if is_fortran else "C"
        if member.compress_type != zipfile.ZIP_STORED:
            return torch.from_numpy(np.frombuffer(bytearray(file.read()), dtype).reshape(shape, order=order))
    with open(path, "rb") as raw:  # the local header may be longer than the one in the directory
        raw.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", raw.read(4))
    offset = member.header_offset + 30 + sum(lengths) + begin
    if offset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
        raise ValueError(f"{member.filename} ends after the file")
    if not math.prod(shape):
        return torch.from_numpy(np.empty(shape, dtype))
    return torch.from_numpy(np.memmap(path, dtype, "c", offset, shape, order))


def _torch(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file that torch saved, mapped; numbers become tensors.

    Raises ArtefactError if it holds anything but tensors, numbers, texts and plain containers.
    """
    if not zipfile.is_zipfile(path):
        raise ArtefactError(f"{path} is torn, or was saved by a torch older than 1.6: save it again with a newer one.")
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ArtefactError(f"{path} is compressed, which torch does not do: {AGAIN}.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as exc:  # of pickle, of torch: everything that a forged file can cause
        raise ArtefactError(
            f"{path} holds more than tensors and plain containers, or is torn: it is not read, as it could run code."
        ) from exc
    if not isinstance(found, dict):
        raise ArtefactError(f"{path} holds a {type(found).__name__}, not the tensors of an SAE by name.")
    return {str(name): _plain_tensor(path, name, value) for name, value in found.items()}


def _plain_tensor(path: Path, name: Any, value: Any) -> Tensor:
    """Return a value of a state dict as a tensor with all elements stored. Raises ArtefactError for other values."""
    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    if not isinstance(name, str) or type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        raise ArtefactError(f"{path}: '{str(name)[:60]}' is a {type(value).__name__}, not a tensor or a number.")
    value = value.detach()
    if value.device.type != "cpu" or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ArtefactError(f"{path}: '{name}' has fewer numbers in the file than its shape {list(value.shape)} says.")
    return value
