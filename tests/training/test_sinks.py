"""Training logs beside train.jsonl: TensorBoard, Weights & Biases, and sinks of other packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import jumpahead
from jumpahead.errors import StudyError
from jumpahead.progress import SilentProgress
from jumpahead.training.sink import Sink, check_sinks, open_sinks, values_of_line
from jumpahead.training.sinks import SINKS

LINE = {"step": 7, "l0": 8.5, "fvu": 0.25, "dead": 3, "health": {"theta_50": 0.125}}


def train(folder: Path, log_to: list[str]) -> Path:
    """Two SAEs on random rows, of a few steps."""
    torch.manual_seed(0)
    return jumpahead.train_on(
        iter(torch.randn(4_000, 16).split(500)), series=[{"architecture": "topk", "k": [1, 2]}], width=64,
        tokens=3_000, group=100, train={"batch": 200, "log_to": log_to}, evaluate={"replicates": 20}, out=folder,
        progress=SilentProgress(),
    )  # fmt: skip


def logged(folder: Path, k: int) -> list[dict[str, Any]]:
    (log,) = folder.glob(f"saes/*/*/*/k-{k}_seed-0/train.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


class Recorder(Sink):
    """Remembers what it is given."""

    lines: list[tuple[str, int, dict[str, float]]] = []  # noqa: RUF012 - shared by intention
    closed: list[Path] = []  # noqa: RUF012

    def log(self, sae: str, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((sae, step, dict(values)))

    def close(self) -> None:
        self.closed.append(self.folder)


def test_a_sink_gets_every_line_of_every_log_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SINKS, "_registered", dict(SINKS._registered))
    jumpahead.register(Recorder, "recorder")
    Recorder.lines.clear()
    Recorder.closed.clear()
    folder = train(tmp_path / "run", ["recorder"])
    assert Recorder.closed == [folder / "logs" / "recorder"]
    for k in (1, 2):
        mine = [(step, values) for sae, step, values in Recorder.lines if sae == f"topk k = {k}"]
        assert mine == [(line["step"], values_of_line(line)) for line in logged(folder, k)]
        assert len(mine) > 5
    plain = train(tmp_path / "plain", [])
    assert not (plain / "logs").exists()
    one, other = ((f / "saes").rglob("weights.safetensors") for f in (folder, plain))
    assert [path.read_bytes() for path in sorted(one)] == [path.read_bytes() for path in sorted(other)]


def test_sinks_are_closed_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SINKS, "_registered", {**SINKS._registered, "recorder": Recorder})
    Recorder.closed.clear()
    with pytest.raises(KeyboardInterrupt), open_sinks(["recorder"], tmp_path, "run"):
        raise KeyboardInterrupt
    assert Recorder.closed == [tmp_path / "recorder"]


def test_values_of_a_line_are_flat() -> None:
    assert values_of_line(LINE) == {"l0": 8.5, "fvu": 0.25, "dead": 3.0, "health/theta_50": 0.125}


def test_unknown_sinks_and_missing_libraries_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"tensorboard", "wandb"} <= set(SINKS.names())
    with pytest.raises(StudyError, match=r"no log sink 'tensorbord'\. Did you mean 'tensorboard'\?"):
        check_sinks(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"'wandb' needs wandb: `pip install 'jumpahead\[wandb\]'`"):
        check_sinks(["wandb"])


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(tmp_path / "run", ["tensorboard"])
    events = EventAccumulator(str(folder / "logs" / "tensorboard" / "topk_k_=_2"))
    events.Reload()
    lines = logged(folder, 2)
    assert [event.step for event in events.Scalars("fvu")] == [line["step"] for line in lines]
    assert [event.value for event in events.Scalars("fvu")] == pytest.approx([line["fvu"] for line in lines])
    assert "health/dead" in events.Tags()["scalars"] or "dead" in events.Tags()["scalars"]


def test_weights_and_biases_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with open_sinks(["wandb"], tmp_path, "demo") as (sink,):
        for step in (1, 2):
            sink.log("topk k = 2", step, {"fvu": 0.5 / step})
        sink.log("topk k = 4", 1, {"fvu": 0.1})
        (one, other) = sink._runs.values()  # type: ignore[attr-defined]
        assert (one.name, one.group, one.offline) == ("topk k = 2", "demo", True)
        assert one.id != other.id
        assert dict(one.summary)["fvu"] == 0.25
    assert len(list((tmp_path / "wandb").rglob("offline-run-*/*.wandb"))) == 2
