"""Locks between processes: refusal names the holder, links are not followed, killed holders release."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jumpahead.errors import ArtefactError
from jumpahead.storage.locks import hold_lock, holder_path, is_locked

HOLD = """
import sys, time
from pathlib import Path
from jumpahead.storage.locks import hold_lock
with hold_lock(Path(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / ".lock"


def holder(lock: Path, seconds: float) -> subprocess.Popen[str]:
    """Return another process that holds the lock for so long, after it has acquired it."""
    command = [sys.executable, "-c", HOLD, str(lock), str(lock.parent), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_holds_the_lock(lock: Path):
    with hold_lock(lock, lock.parent):
        command = [sys.executable, "-c", HOLD, str(lock), str(lock.parent), "0"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert refused.stderr.strip().endswith(
        f"{lock.parent} is being written by process {os.getpid()} on {socket.gethostname()}: wait for it, stop it, or "
        "name another --out."
    )
    assert "held" not in refused.stdout


def test_the_lock_file_stays_and_the_holder_file_does_not(lock: Path):
    with hold_lock(lock, lock.parent):
        assert json.loads(holder_path(lock).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
        inode = lock.stat().st_ino
    assert not holder_path(lock).exists()
    with hold_lock(lock, lock.parent):
        assert lock.stat().st_ino == inode


def test_a_link_in_place_of_the_lock_is_neither_followed_nor_truncated(lock: Path):
    lock.parent.mkdir()
    target = lock.parent / "precious.txt"
    target.write_text("precious")
    lock.symlink_to(target)
    with pytest.raises(ArtefactError, match=r"\.lock is a symbolic link: remove it"), hold_lock(lock, lock.parent):
        pass
    dangling = lock.parent / "absent.txt"
    lock.unlink()
    lock.symlink_to(dangling)
    with pytest.raises(ArtefactError, match="symbolic link"), hold_lock(lock, lock.parent):
        pass
    assert target.read_text() == "precious"
    assert not dangling.exists()


def test_a_link_in_place_of_the_holder_file_is_replaced(lock: Path):
    lock.parent.mkdir()
    target = lock.parent / "precious.txt"
    target.write_text("precious")
    holder_path(lock).symlink_to(target)
    with hold_lock(lock, lock.parent):
        assert not holder_path(lock).is_symlink()
    assert target.read_text() == "precious"


def test_the_content_of_a_file_in_place_of_the_lock_is_kept(lock: Path):
    lock.parent.mkdir()
    lock.write_text("precious")
    with hold_lock(lock, lock.parent):
        pass
    assert lock.read_text() == "precious"


def test_an_exception_releases_the_lock(lock: Path):
    held = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_while_held(lock, held)
    assert held == [True]
    assert not is_locked(lock)


def interrupt_while_held(lock: Path, held: list[bool]) -> None:
    """Raise KeyboardInterrupt while the lock is held, after recording that it is."""
    with hold_lock(lock, lock.parent):
        held.append(is_locked(lock))
        raise KeyboardInterrupt


def test_a_killed_holder_releases_the_lock_and_is_not_named(lock: Path):
    process = holder(lock, 60)
    assert is_locked(lock)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(holder_path(lock).read_text())["pid"] == process.pid
    with hold_lock(lock, lock.parent):
        assert json.loads(holder_path(lock).read_text())["pid"] == os.getpid()
        holder_path(lock).write_text(json.dumps({"pid": process.pid, "host": socket.gethostname()}))
        with pytest.raises(ArtefactError, match="written by another process:"), hold_lock(lock, lock.parent):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "host": "y"}', '{"pid": 3}'])
def test_a_damaged_holder_file_names_no_one(lock: Path, content: str):
    with hold_lock(lock, lock.parent):
        holder_path(lock).write_text(content)
        with pytest.raises(ArtefactError, match="written by another process:"), hold_lock(lock, lock.parent):
            pass


def test_waiting_ends_with_the_holder(lock: Path):
    process, waits = holder(lock, 0.6), []
    with hold_lock(lock, lock.parent, wait_s=60, on_wait=lambda: waits.append(time.monotonic())):
        assert len(waits) == 1
        assert time.monotonic() - waits[0] < 30
    process.wait()


def test_waiting_ends_after_the_given_time(lock: Path):
    waits: list[float] = []
    with hold_lock(lock, lock.parent):
        with (
            pytest.raises(ArtefactError, match=f"process {os.getpid()} on"),
            hold_lock(lock, lock.parent, wait_s=0.3, on_wait=lambda: waits.append(time.monotonic())),
        ):
            pass
        assert 0.2 < time.monotonic() - waits[0] < 30


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_locked_by_the_existence_of_a_file(
    lock: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_lock(lock, lock.parent):
        assert is_locked(lock)
        with pytest.raises(ArtefactError, match=f"process {os.getpid()} on"), hold_lock(lock, lock.parent):
            pass
    assert not is_locked(lock)
