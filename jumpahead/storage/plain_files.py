"""Open files and check folders that others may have written: no links out of a folder, no devices, no endless files.

A run's folder may come from a stranger. Nothing outside of it is written through a link inside it, and reading a pipe
or a device in the place of a file neither blocks nor fills the memory.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from jumpahead.errors import ArtefactError

MAX_READ_BYTES = 2**30
"""The largest file that is read into memory as a whole."""
FILE_SUFFIXES = (".json", ".jsonl", ".safetensors", ".toml", ".html", ".txt", ".lock")
"""A folder whose name ends so stands in the place of a file."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_plain(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading, without waiting. Links are followed.

    Raises ArtefactError if `path` is a folder, a named pipe, a device or a socket, and FileNotFoundError if it is
    missing.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        require_plain(path, os.fstat(handle).st_mode)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: str | os.PathLike[str], max_bytes: int = MAX_READ_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises ArtefactError if it is larger than `max_bytes` or no regular file, and FileNotFoundError if it is missing.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ArtefactError(f"{path} has {size:,} bytes, more than any such file ({max_bytes:,}): remove it.")
        return file.read(max_bytes)


def require_plain(path: str | os.PathLike[str], mode: int | None = None) -> None:
    """Raise ArtefactError if `path` exists and is not a regular file. mode: `st_mode`, if it is known."""
    if mode is None:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISREG(mode):
        what = next((name for is_kind, name in _KINDS if is_kind(mode)), "not a file")
        raise ArtefactError(f"{path} is {what} in the place of a file: remove it.")


def require_own_entries(folder: Path) -> None:
    """Check every entry below a folder that is about to be written.

    Raises ArtefactError for a link that leaves the folder, for a link to a folder, for a pipe, device or socket, and
    for a folder in the place of a file. A folder that does not exist passes.
    """
    pending, root = [folder], os.path.realpath(folder)
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not target.startswith(root + os.sep) or os.path.isdir(target):
                    raise link_error(path)
            elif entry.is_dir():
                if path.suffix in FILE_SUFFIXES:
                    require_plain(path)
                pending.append(path)
            else:
                require_plain(path)


def require_no_links(path: Path, root: Path) -> None:
    """Raise ArtefactError if a folder between `root` and `path` is a link: writing `path` would leave `root`."""
    for parent in path.parents:
        if parent == root:
            return
        if parent.is_symlink():
            raise link_error(parent)


def link_error(path: Path) -> ArtefactError:
    """Return the error for a link inside a folder that is to be written."""
    return ArtefactError(f"{path} is a link: nothing is written through it. Replace it by what it points to.")
