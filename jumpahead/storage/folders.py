"""Hard-link and remove files, and measure the free space of a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def hard_link_files(folder: str | os.PathLike[str], target: str | os.PathLike[str], *, skip: str) -> None:
    """Hard-link the files of `folder` into `target`, except the file named `skip`.

    Files are copied if the file system has no hard links. Links are safe because files are replaced, never modified.
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
    """Return the free bytes of the disk that will hold `folder`. The folder need not exist yet."""
    resolved = Path(folder).resolve()
    return shutil.disk_usage(next(path for path in (resolved, *resolved.parents) if path.exists())).free
