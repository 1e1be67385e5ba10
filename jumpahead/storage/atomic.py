"""Atomic writes: to a temporary file in the same folder, flushed to the disk, then renamed.

A reader sees the old bytes or the new ones, never a mixture. Temporary files of a killed process are removed when the
run is locked next. Below a folder that is guarded (`guard_folder`), nothing is written through a link, and nothing once
the folder was moved or removed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jumpahead.errors import ArtefactError
from jumpahead.storage.plain_files import require_no_links

TEMPORARY_MARK = ".tmp-"
"""Part of the name of every temporary file."""
_counter = itertools.count()
_guarded: dict[Path, tuple[int, int]] = {}
"""Device and inode of every guarded folder, by its absolute path."""
_IS_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""Errors of a full disk, a file-size limit and a quota."""


def write_atomic(path: str | os.PathLike[str], content: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file atomically and return its path.

    content: bytes, a text (written as UTF-8), or a function that takes a temporary path and writes a file there.
    Raises ArtefactError if the disk is full, if the path leads through a link out of a guarded folder, or if that
    folder is gone.
    """
    path = Path(path)
    _check_guard(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}-{next(_counter)}")
    try:
        temporary.unlink(missing_ok=True)  # a link of this name would be written through
        if callable(content):
            temporary.touch()
            mode = (
                temporary.stat().st_mode
            )  # of a file that the user makes; safetensors makes files for the owner alone
            content(temporary)
            temporary.chmod(mode)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError) and exc.errno in _IS_FULL:
            raise ArtefactError(
                f"{path} cannot be written ({os.strerror(exc.errno or 0)}): make room, and the same command continues."
            ) from exc
        if isinstance(exc, FileNotFoundError):
            _check_guard(path)  # moved in the meantime
        raise
    _fsync_folder(path.parent)
    return path


@contextlib.contextmanager
def guard_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Refuse, until the `with` block ends, to write below `folder` through links, or once it was moved or removed."""
    key = Path(os.path.abspath(folder))
    status, before = os.stat(key), _guarded.get(key)
    _guarded[key] = (status.st_dev, status.st_ino)
    try:
        yield
    finally:
        if before is None:
            del _guarded[key]
        else:
            _guarded[key] = before


def _check_guard(path: Path) -> None:
    """Raise ArtefactError if a guarded folder above `path` was moved or removed, or if the path leads out of it."""
    if not _guarded:
        return
    path = Path(os.path.abspath(path))
    for parent in path.parents:
        if parent in _guarded:
            try:
                status = os.stat(parent)
                is_same = (status.st_dev, status.st_ino) == _guarded[parent]
            except OSError:
                is_same = False
            if not is_same:
                raise ArtefactError(
                    f"{parent} was moved or removed while it was being written: put it back, and the same command "
                    "continues."
                )
            require_no_links(path, parent)


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
    files = [path for path in Path(folder).rglob(f".*{TEMPORARY_MARK}*") if path.is_file() or path.is_symlink()]
    files = [path for path in files if except_below is None or except_below not in path.parents]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def remove_temporary_files_of(path: Path) -> None:
    """Remove the temporary files that `write_atomic(path, …)` left. No other process may be writing `path`."""
    for temporary in path.parent.glob(f".{path.name}{TEMPORARY_MARK}*"):
        temporary.unlink(missing_ok=True)
