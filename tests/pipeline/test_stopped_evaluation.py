"""An evaluation that is stopped goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from jumpahead import api
from jumpahead.evaluation import evaluate as evaluate_module
from jumpahead.evaluation import reconstruct as reconstruct_module
from jumpahead.progress import SilentProgress
from jumpahead.storage.json_files import read_json
from jumpahead.storage.layout import RunPaths
from tests.texts import random_words

ROWS = {
    "name": "rows",
    "activations": {
        "origin": "synthetic", "sites": ["rows"],
        "options": {"d": 12, "features": 40, "groups": 40, "rows_per_group": 64, "l0": 3},
    },
    "sae": {"width": 24}, "train": {"tokens": 512, "batch": 128, "threads": 1},
    "evaluate": {"tokens": 600, "replicates": 20}, "series": [{"architecture": "topk", "k": [2, 4]}],
}  # fmt: skip


def evaluations(folder: Path):
    """Return the content of every evaluation.json without the times of the training."""
    found = {}
    for sae in RunPaths(folder).saved_saes():
        value = read_json(sae.evaluation)
        value["training"].pop("seconds")
        found[sae.path.name] = value
    assert len(found) == 2
    return found


def stop_at(function, call: int, calls: list):
    """Return the function; during its n-th call the process gets SIGTERM."""

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    return stopped


def check(study, folder: Path, monkeypatch, owner, name: str, per_group: int):
    """Stop the evaluation during its fourth group; what remains is the other groups."""
    api.run(study, out=folder / "whole", progress=SilentProgress())
    calls: list = []
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop_at(original, 3 * per_group + 1, calls))
        with pytest.raises(KeyboardInterrupt):
            api.run(study, out=folder / "cut", progress=SilentProgress())
    assert len(calls) == 4 * per_group  # the group is finished
    assert len(list(RunPaths(folder / "cut").evaluation_state.iterdir())) == 1
    all_calls, rest = [], []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop_at(original, 0, rest))
        api.run(study, out=folder / "cut", progress=SilentProgress())
        patch.setattr(owner, name, stop_at(original, 0, all_calls))
        api.run(study, out=folder / "again", progress=SilentProgress())
    assert len(rest) == len(all_calls) - 4 * per_group > 0
    assert evaluations(folder / "cut") == evaluations(folder / "whole")
    assert not RunPaths(folder / "cut").evaluation_state.exists()


def test_on_rows(tmp_path, monkeypatch):
    check(ROWS, tmp_path, monkeypatch, reconstruct_module, "_add_rows", per_group=2)


def test_on_text(tmp_path, monkeypatch, lm_folder):
    study = {
        **ROWS,
        "lm": {"model": str(lm_folder("neox")), "context": 32, "batch": 4},
        "text": {"source": str(random_words(tmp_path / "text", 30)), "held_out": 0.3},
        "activations": {"sites": ["layers.1.residual"], "block": 64, "scale_rows": 400},
    }
    check(study, tmp_path, monkeypatch, evaluate_module, "_add_group", per_group=1)
