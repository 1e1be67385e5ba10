"""Formats of SAEs: one file per format, each defines `FORMAT`. To add a format, add a file here.

`FORMATS` lists all formats, also those of other packages (registry.py), without importing torch. `load` reads an SAE in
any of them, `save` writes one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jumpahead.errors import ArtefactError
from jumpahead.interchange import fetch
from jumpahead.registry import Registry
from jumpahead.storage.layout import RunPaths

if TYPE_CHECKING:
    from jumpahead.interchange.format import Format, SAEFiles
    from jumpahead.sae.saved import SAE

FORMATS = Registry("format of SAEs", __name__, "FORMAT", "jumpahead.formats")


def load(address: str | os.PathLike[str]) -> SAE:
    """Return an SAE in any format.

    address: its folder or its file of weights on this machine, or `hf://user/repo/path@revision`.

    Raises ArtefactError, naming file and key, if the SAE is missing, damaged or in no known format.
    """
    files = find_files(str(address))
    return format_of(files).read(files)


def save(sae: SAE, name: str, folder: str | os.PathLike[str]) -> Path:
    """Write an SAE in a format into a folder; return the folder.

    name: of the format; `gemma-scope` and `gemma_scope` are the same.

    Raises StudyError if there is no such format, or if it has no place for the SAE's activation function.
    """
    path = Path(folder)
    FORMATS.get(name.replace("-", "_")).write(sae, path)
    return path


def find_files(address: str) -> SAEFiles:
    """Return the files of an SAE, downloaded if they are on the hub. Raises ArtefactError if they do not exist."""
    from jumpahead.interchange.format import SAEFiles

    if address.startswith(fetch.PREFIX):
        names = {name for format_ in _formats() for name in format_.files}
        path = fetch.download(address, sorted(names))
    else:
        path = Path(address).expanduser()
    if not path.exists():
        raise ArtefactError(f"{path} does not exist: name the folder of an SAE, its weights, or hf://user/repo/path.")
    if path.is_dir():
        return SAEFiles(path, "", address)
    return SAEFiles(path.parent, "" if path.suffix == ".json" else path.name, address)


def format_of(files: SAEFiles) -> type[Format]:
    """Return the format of an SAE's files. Raises ArtefactError if it is not known, or if several SAEs are there."""
    found = [format_ for format_ in _formats() if format_.recognises(files)]
    if not found and (inside := RunPaths(files.folder).saved_saes()):
        raise ArtefactError(f"{files.folder} is a run: name one of its {len(inside)} SAEs, such as {inside[0].path}.")
    if not found:
        names = ", ".join(sorted({format_.weights for format_ in _formats()}))
        raise ArtefactError(f"{files.folder / files.file} holds no SAE in a known format: none of {names}.")
    if len(found) > 1:
        names = " and ".join(format_.weights for format_ in found)
        raise ArtefactError(f"{files.folder} holds SAEs in several formats: name one file, {names}.")
    return found[0]


def _formats() -> list[type[Format]]:
    """Return all formats, in the order of their names."""
    return [FORMATS.get(name) for name in FORMATS.names()]
