"""A run that is killed at any of its write operations ends, with the same command, in the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from jumpahead import api
from jumpahead.progress import SilentProgress
from jumpahead.storage import atomic, set_aside
from jumpahead.storage.json_files import read_json, read_json_lines
from jumpahead.storage.layout import RunPaths
from tests.faults.small_run import IS_COMPLETE, STUDY, some

OFTEN = {**STUDY, "train": {**STUDY["train"], "checkpoint_minutes": 1e-9}}
OTHER = {**OFTEN, "train": {**OFTEN["train"], "tokens": 1280}}
_TIMES = ("seconds", "created", "manifest", "study", "inputs")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the package catches it."""


class KillAtOperation:
    """`os.replace` that dies before or after its n-th call; it counts calls if n is 0."""

    def __init__(self, n: int, *, is_after: bool) -> None:
        self.n, self.is_after, self.calls, self.replace = n, is_after, 0, os.replace

    def __call__(self, source: Any, target: Any) -> None:
        self.calls += 1
        if self.calls == self.n and not self.is_after:
            raise Killed
        self.replace(source, target)
        if self.calls == self.n:
            raise Killed


def without_times(value: Any) -> Any:
    """Return a JSON value without what differs between two equal runs."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in _TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    """Return everything that a run results in: weights, logs, evaluations and the frontier."""
    run = RunPaths(folder)
    found: dict[str, Any] = {"frontier": without_times(read_json(run.frontier))}
    for sae in run.saved_saes():
        key = run.relative(sae.path)
        found[f"{key}, weights"] = sae.weights.read_bytes()
        found[f"{key}, log"] = without_times(read_json_lines(sae.log))
        found[f"{key}, evaluation"] = without_times(read_json(sae.evaluation))
    return found


def killed_run(study: dict[str, Any], folder: Path, n: int, *, is_after: bool) -> int:
    """Run a study that dies at its n-th write operation; return the number of operations."""
    kill = KillAtOperation(n, is_after=is_after)
    with pytest.MonkeyPatch.context() as patch:
        for module in (atomic, set_aside):
            patch.setattr(module.os, "replace", kill)
        with contextlib.suppress(Killed):
            api.run(study, out=folder, progress=SilentProgress())
    return kill.calls


def test_a_kill_at_any_write_operation_loses_nothing(finished: Path, tmp_path: Path):
    expected = results(finished)
    operations = killed_run(OFTEN, tmp_path / "whole", 0, is_after=False)
    assert operations > 120
    assert results(tmp_path / "whole") == expected
    cases = [(n, is_after) for n in range(1, operations + 1) for is_after in (False, True)]
    for n, is_after in some(cases, 3):
        folder = tmp_path / "killed"
        killed_run(OFTEN, folder, n, is_after=is_after)
        api.run(OFTEN, out=folder, progress=SilentProgress())
        assert results(folder) == expected, (n, is_after)
        assert not list(folder.rglob("*.tmp-*"))
        shutil.rmtree(folder)


def test_a_kill_while_studies_take_turns_loses_neither(run: Path, tmp_path: Path):
    expected = results(run)
    other = tmp_path / "other"
    api.run(OTHER, out=other, progress=SilentProgress())
    operations = killed_run(OTHER, Path(shutil.copytree(run, tmp_path / "count")), 0, is_after=False)
    moves = [n for n in range(1, operations + 1) if n < 12 or IS_COMPLETE]
    for n in some(moves, 1):
        folder = Path(shutil.copytree(run, tmp_path / "turns"))
        killed_run(OTHER, folder, n, is_after=bool(n % 2))
        api.run(OTHER, out=folder, progress=SilentProgress())
        assert results(folder) == results(other), n
        api.run(STUDY, out=folder, progress=SilentProgress())
        assert results(folder) == expected, n
        shutil.rmtree(folder)
