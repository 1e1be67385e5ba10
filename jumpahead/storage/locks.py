"""Lock files between processes: one process at a time writes a folder; an error names the process that holds the lock.

The library `filelock` opens the lock file without following links, truncates nothing and leaves the file in place. The
operating system releases the lock of a killed process. The holder's process id and host are written beside the lock
file (`holder_path`), for the error message only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jumpahead.errors import ArtefactError
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import read_json, to_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

POLL_S = 0.2  # seconds between two attempts while waiting
_IS_LINK = {errno.ELOOP, errno.EMLINK}  # errors of opening a symbolic link with O_NOFOLLOW
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # network file systems without locks


@contextlib.contextmanager
def hold_lock(
    path: Path, folder: Path, wait_s: float = 0, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock file `path`, which protects (a part of) `folder`, until the `with` block ends.

    While another process holds the lock, wait up to `wait_s` seconds, and call `on_wait` once when the wait begins.
    Raises ArtefactError, naming the holder, if the lock is still held after `wait_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquire(path, folder, wait_s, on_wait)
    try:
        write_atomic(holder_path(path), to_json({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        holder_path(path).unlink(missing_ok=True)
        lock.release()


def is_locked(path: Path) -> bool:
    """Return True if another process, or another `hold_lock` call of this process, holds the lock file."""
    try:
        _acquire(path, path).release()
    except ArtefactError:
        return True
    return False


def holder_path(path: Path) -> Path:
    """Return the path of the JSON file with the process id and host of the process that holds the lock file."""
    return path.with_name(f"{path.name}.holder")


def _acquire(path: Path, folder: Path, wait_s: float = 0, on_wait: Callable[[], None] = lambda: None) -> BaseFileLock:
    """Acquire the lock file `path` and return the lock, waiting up to `wait_s` seconds.

    Raises ArtefactError if another process still holds the lock, or if the lock file is a symbolic link.
    """
    from filelock import FileLock, Timeout

    lock: BaseFileLock = FileLock(path, timeout=0, thread_local=False, poll_interval=POLL_S, fallback_to_soft=False)
    try:
        try:
            lock = _acquire_now(lock)
        except Timeout:
            if wait_s <= 0:
                raise
            on_wait()
            lock.acquire(timeout=wait_s)
    except Timeout as exc:
        raise ArtefactError(
            f"{folder} is being written by {_holder(path)}: wait for it, stop it, or name another --out."
        ) from exc
    except OSError as exc:
        if exc.errno in _IS_LINK or path.is_symlink():
            raise ArtefactError(f"{path} is a symbolic link: remove it, a plain file is made in its place.") from exc
        raise
    return lock


def _acquire_now(lock: BaseFileLock) -> BaseFileLock:
    """Acquire `lock` and return it. If the file system has no locks, return a `SoftFileLock` (the file's existence).

    Raises filelock.Timeout if another process holds the lock.
    """
    from filelock import SoftFileLock, Timeout

    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as exc:
        if exc.errno not in _NO_FLOCK:
            raise
        lock = SoftFileLock(f"{lock.lock_file}.soft", timeout=0, thread_local=False, poll_interval=POLL_S)
        lock.acquire()
    return lock


def _holder(path: Path) -> str:
    """Return text for the process that holds a lock: `process 4711 on host`, or `another process` if unknown."""
    try:
        known = read_json(holder_path(path), has_checksum=False)
        pid, host = int(known["pid"]), str(known["host"])
    except (ArtefactError, KeyError, TypeError, ValueError):
        return "another process"
    if host == socket.gethostname() and not _is_alive(pid):  # left by a killed process
        return "another process"
    return f"process {pid} on {host}"


def _is_alive(pid: int) -> bool:
    """Return True if a process with this id is running on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
