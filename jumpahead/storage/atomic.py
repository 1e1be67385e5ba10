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

    content: bytes, a text (written as UTF-8), or a function that writes the file at the path it is given.
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
    """Flush a folder to the disk, so that a rename in it survives a power failure. Does nothing on Windows."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries(folder: str | os.PathLike[str], except_below: Path | None = None) -> int:
    """Remove the temporary files below `folder`, except those below `except_below`; return how many."""
    found = [path for path in Path(folder).rglob(f".*{TEMPORARY_MARK}*") if path.is_file()]
    found = [path for path in found if except_below is None or except_below not in path.parents]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def remove_temporaries_of(path: Path) -> None:
    """Remove the temporary files of one file. The caller must be the only process that writes that file."""
    for temporary in path.parent.glob(f".{path.name}{TEMPORARY_MARK}*"):
        temporary.unlink(missing_ok=True)
