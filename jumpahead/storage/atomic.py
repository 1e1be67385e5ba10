"""Atomic writes: to a temporary file in the same folder, flushed to the disk, then renamed.

A reader sees the old bytes or the new ones, never a mixture. Temporary files of a killed process are removed when the
run is locked next.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY_MARK = ".tmp-"
"""Part of the name of every temporary file."""
_counter = itertools.count()


def write_atomic(path: str | os.PathLike[str], content: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file atomically and return its path.

    content: bytes, a text (written as UTF-8), or a function that takes a temporary path and writes a file there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}-{next(_counter)}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)
    return path


def _fsync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a rename in the folder survives a power failure. Do nothing on Windows."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporary_files(folder: str | os.PathLike[str], except_below: Path | None = None) -> int:
    """Remove temporary files below `folder`, but not below `except_below`; return the number of removed files."""
    files = [path for path in Path(folder).rglob(f".*{TEMPORARY_MARK}*") if path.is_file()]
    files = [path for path in files if except_below is None or except_below not in path.parents]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def remove_temporary_files_of(path: Path) -> None:
    """Remove the temporary files that `write_atomic(path, …)` left. No other process may be writing `path`."""
    for temporary in path.parent.glob(f".{path.name}{TEMPORARY_MARK}*"):
        temporary.unlink(missing_ok=True)
