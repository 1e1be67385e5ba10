"""Tensors in safetensors files: written atomically, with checksums in the header that are verified on reading.

The header entry `jumpahead` has the CRC-32 of the bytes of every tensor, and the SHA-256 of these, of `info` and of the
names, dtypes and shapes: the file's digest (`read_tensors_digest`), which a change of any of them changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jumpahead.storage.artefacts import RUN_COMMAND, damaged_artefact_error, missing_artefact_error
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import json_default, parse_json
from jumpahead.storage.plain_files import open_plain, require_plain

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_READ_BYTES = 2**24  # read at a time


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor | np.ndarray], info: Mapping[str, Any] | None = None
) -> Path:
    """Write torch tensors or numpy arrays (not both) to a safetensors file with checksums; return the path.

    info: JSON values for the header, read by `read_tensors_info`. Equal tensors and info give equal bytes.
    """
    is_numpy = all(type(value).__module__.startswith("numpy") for value in tensors.values())
    if is_numpy:
        import numpy as np
        from safetensors.numpy import save_file

        plain: dict[str, Any] = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    else:
        from safetensors.torch import save_file

        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}  # type: ignore[union-attr]
    checksums = {key: _checksum(plain[key]) for key in sorted(plain)}
    header = {"crc32": checksums, "info": dict(info or {})}
    header["sha256"] = header_digest(header, {key: dtype_and_shape(value) for key, value in plain.items()})
    # A single key: the library keeps metadata in a hash map and writes several keys in random order.
    text = {"jumpahead": json.dumps(header, sort_keys=True, allow_nan=False, default=json_default)}

    def write_content(temporary: Path) -> None:
        from safetensors import SafetensorError

        try:
            save_file(plain, temporary, metadata=text)
        except SafetensorError as exc:
            if code := re.search(r"os error (\d+)", str(exc)):  # the library's error for a full disk
                raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from exc
            raise

    return write_atomic(path, write_content)


SAFETENSORS_DTYPES = {
    "float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""The names that safetensors uses for dtypes, by the names of numpy and torch."""


def dtype_and_shape(value: Any) -> tuple[str, list[int]]:
    """Return the dtype and the shape of a tensor or array, as the header of a safetensors file has them."""
    return SAFETENSORS_DTYPES[str(value.dtype).removeprefix("torch.")], list(value.shape)


def header_digest(header: Mapping[str, Any], columns: Mapping[str, tuple[str, list[int]]]) -> str:
    """Return the SHA-256 of a header entry without its key `sha256`, and of the dtype and shape of every tensor."""
    known = {key: value for key, value in header.items() if key != "sha256"}
    return digest_json([known, {key: list(column) for key, column in columns.items()}])


def verify_tensors(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> None:
    """Read all bytes of a file of `write_tensors`, or of rows (activations/row_files.py), and compare the checksums.

    Raises ArtefactError if the file is missing, DamagedError if it is not what was written.
    """
    path = Path(path)
    with _open_safetensors(path, "numpy", made_by) as file:
        header = _own_metadata(path, file, made_by)
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = parse_json(file.read(length))
        for key, expected in header["crc32"].items():
            (begin, end), rows = entries[key]["data_offsets"], header.get("rows", [1])
            file.seek(8 + length + begin)
            row_bytes = (end - begin) // max(1, sum(rows))
            for count, checksum in zip(rows, expected if isinstance(expected, list) else [expected], strict=True):
                if _crc32_of(file, count * row_bytes) != checksum:
                    raise damaged_artefact_error(path, f"is damaged: '{key}' does not match its checksum", made_by)


def _crc32_of(file: BinaryIO, size: int) -> int:
    """Return the CRC-32 of the next `size` bytes of a file."""
    checksum = 0
    while size > 0 and (part := file.read(min(size, _READ_BYTES))):
        checksum, size = zlib.crc32(part, checksum), size - len(part)
    return checksum


def _checksum(value: Any) -> int:
    """Return the CRC-32 of the bytes of a contiguous array or CPU tensor."""
    if not type(value).__module__.startswith("numpy"):
        import torch

        value = value.reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(memoryview(value.reshape(-1)).cast("B") if value.size else b"")


def read_tensors(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> dict[str, Tensor]:
    """Return the torch tensors of a file of `write_tensors` by name, each in separate, aligned memory.

    Raises ArtefactError if the file is missing, DamagedError if it is not what was written.
    made_by: the command that writes the file; error messages name the command.
    """
    return dict(_read_values(Path(path), "pt", made_by))


def read_arrays(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> dict[str, np.ndarray]:
    """Return the tensors of a file of `write_tensors` as numpy arrays. Like `read_tensors`, without torch."""
    return dict(_read_values(Path(path), "numpy", made_by))


def read_tensors_info(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> dict[str, Any]:
    """Return the `info` that `write_tensors` stored in the header."""
    with _open_safetensors(Path(path), "numpy", made_by) as file:
        return _own_metadata(Path(path), file, made_by)["info"]


def read_tensors_digest(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> str:
    """Return the digest of a file of `write_tensors`, read from its header: of its content, by checksums."""
    with _open_safetensors(Path(path), "numpy", made_by) as file:
        return _own_metadata(Path(path), file, made_by)["sha256"]


def map_array(path: str | os.PathLike[str], key: str, *, made_by: str = RUN_COMMAND) -> np.ndarray:
    """Return the array `key` of a safetensors file as a read-only memory map, for arrays too large to load.

    The checksum of the bytes is not verified, that of the header is. Raises ArtefactError if the file is missing,
    DamagedError if it is damaged or has no such tensor.
    """
    import numpy as np

    path = Path(path)
    with _open_safetensors(path, "numpy", made_by) as file:
        _own_metadata(path, file, made_by)
        if key not in file.keys():  # noqa: SIM118 - it is no dict
            raise damaged_artefact_error(path, f"has no tensor '{key}'", made_by)
        dtype = file.get_slice(key)[:0].dtype
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        entry = parse_json(file.read(length))[key]
    shape = tuple(entry["shape"])
    if 0 in shape:  # an empty array cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset=8 + length + entry["data_offsets"][0], shape=shape)


def _read_values(path: Path, framework: str, made_by: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) pairs sorted by name, after verifying the checksums. framework: `pt` or `numpy`."""
    with _open_safetensors(path, framework, made_by) as file:
        checksums = _own_metadata(path, file, made_by)["crc32"]
        for key in sorted(file.keys()):
            value = file.get_tensor(key)
            # The library returns views of the mapped file, which are unaligned and change if the file does.
            value = value.clone() if framework == "pt" else value.copy()
            if _checksum(value) != checksums.get(key):
                raise damaged_artefact_error(path, f"is damaged: '{key}' does not match its checksum", made_by)
            yield key, value


@contextlib.contextmanager
def _open_safetensors(path: Path, framework: str, made_by: str) -> Iterator[Any]:
    """Open a safetensors file for the `with` block.

    Raises ArtefactError if the file is missing or no plain file, DamagedError if its header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise missing_artefact_error(path, made_by)
    require_plain(path)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as exc:
        raise damaged_artefact_error(path, "is torn or is not a safetensors file", made_by) from exc


def _own_metadata(path: Path, file: Any, made_by: str) -> dict[str, Any]:
    """Return the header entry with `crc32`, `info` and `sha256`.

    Raises DamagedError if the file has none, or if it does not match its digest.
    """
    text = (file.metadata() or {}).get("jumpahead")
    try:
        header = parse_json(text) if text else None
        if not isinstance(header, dict):
            raise damaged_artefact_error(path, "has no checksums", made_by)
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        columns = {key: (one.get_dtype(), list(one.get_shape())) for key, one in slices.items()}
        if header_digest(header, columns) == header["sha256"] and header["crc32"].keys() == columns.keys():
            return {"info": header["info"], **header}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise damaged_artefact_error(path, "is damaged: its header does not match its checksum", made_by)
