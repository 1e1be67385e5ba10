"""Pipes, devices and links in the place of files: refused in bounded time, and never written through."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from jumpahead.errors import ArtefactError
from jumpahead.storage import atomic
from jumpahead.storage.atomic import guard_folder, write_atomic
from jumpahead.storage.json_files import read_json, read_json_lines
from jumpahead.storage.plain_files import read_plain, require_own_entries
from jumpahead.storage.tensors import read_tensors


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("read", [read_json, read_json_lines, read_tensors, read_plain])
@pytest.mark.parametrize(
    ("make", "kind"), [(make_pipe, "a named pipe"), (make_endless, "a device"), (make_folder, "a folder")]
)
def test_only_plain_files_are_read(tmp_path: Path, read, make, kind: str):
    path = tmp_path / "a.json"
    make(path)
    with pytest.raises(ArtefactError, match=rf"a\.json is {kind} in the place of a file: remove it"):
        read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ArtefactError, match="more than any such file"):
        read_json(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run, outside: (run / "saes").symlink_to(outside), "saes is a link"),
        (lambda run, outside: (run / "a" / "checkpoint").symlink_to(outside), "checkpoint is a link"),
        (lambda run, outside: (run / "a" / "x.json").symlink_to(outside / "victim.txt"), "x.json is a link"),
        (lambda run, outside: (run / "a" / "x.json").symlink_to("../../outside/none"), "x.json is a link"),
        (lambda run, outside: (run / "b").symlink_to(run / "a"), "b is a link"),
        (lambda run, outside: os.mkfifo(run / "a" / "train.jsonl"), "train.jsonl is a named pipe"),
        (lambda run, outside: (run / "a" / "weights.safetensors").mkdir(), "weights.safetensors is a folder"),
    ],
)
def test_what_leaves_a_folder_is_refused_by_name(tmp_path: Path, make, message: str):
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "a").mkdir(parents=True)
    outside.mkdir()
    (outside / "victim.txt").write_text("precious")
    require_own_entries(run)
    make(run, outside)
    with pytest.raises(ArtefactError, match=message):
        require_own_entries(run)


def test_links_within_the_folder_and_a_link_to_the_folder_pass(tmp_path: Path):
    run = tmp_path / "real" / "run"
    run.mkdir(parents=True)
    (run / "a.txt").write_text("a")
    (run / "b.txt").symlink_to("a.txt")
    (tmp_path / "run").symlink_to(run)
    require_own_entries(tmp_path / "run")


def test_nothing_is_written_through_a_link_below_a_guarded_folder(tmp_path: Path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "saes").symlink_to(outside)
    with guard_folder(run), pytest.raises(ArtefactError, match="saes is a link: nothing is written through it"):
        write_atomic(run / "saes" / "x" / "config.json", "{}")
    assert list(outside.iterdir()) == []
    with guard_folder(run):
        assert write_atomic(run / "tokens" / "a.json", "{}").read_text() == "{}"
    victim = outside / "victim.txt"
    victim.write_text("precious")
    (run / "file.json").symlink_to(victim)
    write_atomic(run / "file.json", "{}")  # replaces the link
    assert victim.read_text() == "precious"


def test_a_prepared_temporary_name_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    monkeypatch.setattr(atomic, "_counter", iter([7]))
    (tmp_path / f".a.json.tmp-{os.getpid()}-7").symlink_to(victim)
    write_atomic(tmp_path / "a.json", "{}")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda run: run.rename(run.with_name("moved"))])
def test_a_folder_that_was_moved_or_removed_is_not_written_anew(tmp_path: Path, gone):
    run = tmp_path / "run"
    (run / "saes").mkdir(parents=True)
    with guard_folder(run):
        gone(run)
        with pytest.raises(ArtefactError, match="run was moved or removed while it was being written: put it back"):
            write_atomic(run / "saes" / "config.json", "{}")
    assert not run.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_leaves_the_old_bytes(tmp_path: Path, code: int):
    path = write_atomic(tmp_path / "a.json", "old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(ArtefactError, match=r"a\.json cannot be written \(.*\): make room, and the same command"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
