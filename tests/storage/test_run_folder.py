"""A run's folder: created, opened, locked, continued with another version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from jumpahead.errors import ArtefactError
from jumpahead.storage import run_folder
from jumpahead.storage.run_folder import Run


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if ".tmp-" in p.name]


def test_temporary_files_of_a_killed_process_are_removed_by_the_next_lock(tmp_path: Path):
    Run.create(tmp_path / "run", "name = 'old'\n")
    program = """
        import os, signal, sys
        from jumpahead.storage.atomic import write_atomic
        from jumpahead.storage.run_folder import Run
        run = Run(sys.argv[1])
        with run.lock():
            def die(temporary):
                temporary.write_text("name = 'ne")
                os.kill(os.getpid(), signal.SIGKILL)
            write_atomic(run.study, die)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), tmp_path / "run"], check=False)
    assert done.returncode == -signal.SIGKILL
    run = Run.open(tmp_path / "run")
    assert run.study.read_text() == "name = 'old'\n"
    assert len(leftovers(run.folder)) == 1
    with run.lock():  # the system released the lock of the killed process
        assert leftovers(run.folder) == []


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path: Path):
    run = Run.create(tmp_path / "run", "")
    program = "import sys; from jumpahead.storage.run_folder import Run; Run(sys.argv[1]).lock().__enter__()"
    command = [sys.executable, "-c", program, str(run.folder)]
    with run.lock(), run.lock():  # nests on one object
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"is being written by process {os.getpid()} on " in done.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_other_folders_and_files_are_refused(tmp_path: Path):
    with pytest.raises(ArtefactError, match="jumpahead run STUDY --out"):
        Run.open(tmp_path / "none")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mum.txt").write_text("hello")
    with pytest.raises(ArtefactError, match="is not a run"):
        Run.open(tmp_path / "letters")
    with pytest.raises(ArtefactError, match="is not empty and is not a run"):
        Run.create(tmp_path / "letters", "")
    with pytest.raises(ArtefactError, match="is not a run"):
        Run.open(tmp_path / "letters" / "mum.txt")
    with pytest.raises(ArtefactError, match="is not empty and is not a run"):
        Run.create(tmp_path / "letters" / "mum.txt", "")
    assert [p.name for p in tmp_path.rglob("*")] == ["letters", "mum.txt"]


def test_the_manifest_keeps_the_creation_time_and_earlier_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run.create(tmp_path / "run", "name = 'a'\n")
    first = run.read_manifest()
    assert first["schema"] == "jumpahead.run/1"
    assert first["versions"]["torch"] == torch.__version__
    assert first["earlier"] == []
    run.update_manifest(tokens={"digest": "abc"})
    monkeypatch.setattr(
        run_folder, "describe_environment", lambda: {"versions": {"torch": "99"}, "hardware": {"cores": 3}}
    )
    second = Run.create(tmp_path / "run", "name = 'b'\n").read_manifest()
    assert second["created"] == first["created"]
    assert second["tokens"] == {"digest": "abc"}
    assert second["versions"] == {"torch": "99"}
    assert second["earlier"] == [{"versions": first["versions"], "hardware": first["hardware"]}]
    assert Run.open(tmp_path / "run").study.read_text() == "name = 'b'\n"
    assert str(tmp_path) not in json.dumps(second)
