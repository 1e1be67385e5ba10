"""Atomic writes: a reader sees the old bytes or the new ones, and nothing else stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jumpahead.storage.atomic import write_atomic


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if ".tmp-" in p.name]


def test_a_write_that_fails_leaves_the_old_bytes_and_no_temporary(tmp_path: Path):
    path = write_atomic(tmp_path / "a.bin", b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_crash_between_write_and_rename_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_atomic(tmp_path / "a.bin", b"old")
    events = []

    def crash(source: str, target: str) -> None:
        events.append(Path(source).read_bytes())
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, b"new")
    assert events == [b"new"]  # all of it was there before the rename was tried
    assert path.read_bytes() == b"old"


def test_the_bytes_are_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    write_atomic(tmp_path / "a.bin", b"x")
    assert events == ["fsync", "rename", "fsync"]
