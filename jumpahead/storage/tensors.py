"""Tensors in safetensors files: written atomically, with checksums in the header that are verified on reading."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead.errors import ArtefactError
from jumpahead.storage.artefacts import RUN_COMMAND, missing_artefact_error
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import json_default

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


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
    header = {"crc32": {key: _checksum(plain[key]) for key in sorted(plain)}, "info": dict(info or {})}
    # A single key: the library keeps metadata in a hash map and writes several keys in random order.
    text = {"jumpahead": json.dumps(header, sort_keys=True, allow_nan=False, default=json_default)}
    return write_atomic(path, lambda temporary: save_file(plain, temporary, metadata=text))


def _checksum(value: Any) -> int:
    """Return the CRC-32 of the bytes of a contiguous array or CPU tensor."""
    if not type(value).__module__.startswith("numpy"):
        import torch

        value = value.reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(memoryview(value.reshape(-1)).cast("B") if value.size else b"")


def read_tensors(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> dict[str, Tensor]:
    """Return the torch tensors of a safetensors file by name, each in separate, aligned memory.

    Raises ArtefactError if the file is missing or damaged. Checksums are verified if this package wrote the file.
    made_by: the command that writes the file; error messages name the command.
    """
    return dict(_read_values(Path(path), "pt", made_by))


def read_arrays(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as numpy arrays. Like `read_tensors`, but torch is not imported."""
    return dict(_read_values(Path(path), "numpy", made_by))


def read_tensors_info(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> dict[str, Any]:
    """Return the `info` that `write_tensors` stored in the header; {} if another library wrote the file."""
    with _open_safetensors(Path(path), "numpy", made_by) as file:
        return _own_metadata(file).get("info", {})


def map_array(path: str | os.PathLike[str], key: str, *, made_by: str = RUN_COMMAND) -> np.ndarray:
    """Return the array `key` of a safetensors file as a read-only memory map, for arrays too large to load.

    The checksum is not verified. Raises ArtefactError if the file is missing or damaged.
    """
    import numpy as np

    path = Path(path)
    with _open_safetensors(path, "numpy", made_by) as file:  # raises if the file is damaged
        dtype = file.get_slice(key)[:0].dtype
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[key]
    shape = tuple(entry["shape"])
    if 0 in shape:  # an empty array cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset=8 + length + entry["data_offsets"][0], shape=shape)


def _read_values(path: Path, framework: str, made_by: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) pairs sorted by name, after verifying the checksums. framework: `pt` or `numpy`."""
    with _open_safetensors(path, framework, made_by) as file:
        checksums = _own_metadata(file).get("crc32", {})
        for key in sorted(file.keys()):
            value = file.get_tensor(key)
            # The library returns views of the mapped file, which are unaligned and change if the file does.
            value = value.clone() if framework == "pt" else value.copy()
            if key in checksums and _checksum(value) != checksums[key]:
                raise ArtefactError(
                    f"{path} is damaged: '{key}' does not match its checksum; remove it, and "
                    f"`{made_by}` makes it again."
                )
            yield key, value


@contextlib.contextmanager
def _open_safetensors(path: Path, framework: str, made_by: str) -> Iterator[Any]:
    """Open a safetensors file for the `with` block. Raises ArtefactError if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise missing_artefact_error(path, made_by)
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder, not a safetensors file.")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as exc:
        raise ArtefactError(
            f"{path} is torn or is not a safetensors file: remove it, and `{made_by}` makes it again."
        ) from exc


def _own_metadata(file: Any) -> dict[str, Any]:
    """Return the header entry with `crc32` and `info`; {} if another library wrote the file."""
    text = (file.metadata() or {}).get("jumpahead")
    return json.loads(text) if text else {}
