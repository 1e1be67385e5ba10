"""Folders and disks: linking and removing files, and the free space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def hard_link_files(folder: str | os.PathLike[str], target: str | os.PathLike[str], *, skip: str) -> None:
    """Hard-link the files of `folder` into `target`, except the one named `skip`; copy them if the disk has no links.

    This is safe because files are always replaced as a whole, never modified.
    """
    Path(target).mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in Path(folder).iterdir() if path.name != skip):
        copy = Path(target) / path.name
        copy.unlink(missing_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def remove_path(path: str | os.PathLike[str]) -> None:
    """Remove a file or a folder with its content, if it exists."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_disk_bytes(folder: str | os.PathLike[str]) -> int:
    """Return the free bytes of the disk that a folder, which need not exist yet, is on."""
    resolved = Path(folder).resolve()
    return shutil.disk_usage(next(path for path in (resolved, *resolved.parents) if path.exists())).free
