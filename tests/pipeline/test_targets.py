"""SAEs with a requested delta LM loss: where the search goes, when it stops, and what a run keeps of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from jumpahead import api
from jumpahead.errors import DataError, StudyError
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.pipeline.target_search import TrainedPoint, closest, is_reached, next_l0
from jumpahead.pipeline.targets import TargetStage
from jumpahead.report import terminal
from jumpahead.storage.json_files import read_json
from jumpahead.study.load import load, parse, with_delta_loss
from tests.pipeline.test_run import run, study_file  # noqa: F401 - a fixture


def law(l0: float) -> float:
    """delta LM loss = 1.7 · L0^−0.6."""
    return 1.7 * l0**-0.6


def points(*l0s: float, error: float = 1e-9) -> list[TrainedPoint]:
    return [TrainedPoint(l0, law(l0), error) for l0 in l0s]


# ---------------------------------------------------------------------------------------------- the search


def test_a_power_law_is_hit_at_once_between_and_beyond_the_trained_points() -> None:
    for target in (0.7, 0.3, 0.2):  # L0 4.4, 18, 35
        exact = (1.7 / target) ** (1 / 0.6)
        assert next_l0(points(3, 12, 60), target, 4096) == pytest.approx(exact, rel=5e-3)
        assert next_l0(points(10, 12), target, 4096) == pytest.approx(exact, rel=5e-3)


def test_l0_has_three_digits_and_is_whole_where_the_architecture_asks_for_it() -> None:
    assert next_l0(points(3, 60), 0.3, 4096) == 18.0
    assert next_l0(points(3, 60), 0.5, 4096) == 7.69
    assert next_l0(points(3, 60), 0.5, 4096, is_integer=True) == 8.0


def test_the_search_goes_beyond_the_trained_points_by_a_factor_of_four_at_most() -> None:
    assert next_l0(points(10, 12), law(300), 4096) == 48.0
    assert next_l0(points(10, 12), law(0.5), 4096) == 2.5
    assert next_l0(points(10, 12), law(300), 160) == 40.0  # a quarter of the width
    assert next_l0(points(1.5, 2), law(0.1), 4096) == 1.0
    assert next_l0(points(10), law(300), 4096) == 20.0  # one point has no slope
    assert next_l0(points(10), law(2), 4096) == 5.0


def test_noise_that_turns_the_slope_around_is_no_guide() -> None:
    rising = [TrainedPoint(10, 0.30, 0.1), TrainedPoint(12, 0.31, 0.1)]
    assert next_l0(rising, 0.2, 4096) == 24.0
    assert next_l0(rising, 0.4, 4096) == 5.0


def test_losses_that_are_not_positive_are_interpolated_linearly() -> None:
    near = [TrainedPoint(4, 0.5, 0.1), TrainedPoint(64, -0.5, 0.1)]
    assert next_l0(near, 0.25, 4096) == 8.0  # a quarter of the way in log L0


def test_nothing_is_trained_twice() -> None:
    assert next_l0(points(3, 18.0, 60), law(18.0), 4096) is None
    assert next_l0(points(4, 8), law(8.3), 4096, is_integer=True) is None


def test_a_loss_is_reached_within_three_per_cent_or_one_standard_error() -> None:
    assert is_reached(TrainedPoint(8, 0.205, 0.001), 0.2)
    assert not is_reached(TrainedPoint(8, 0.207, 0.001), 0.2)
    assert is_reached(TrainedPoint(8, 0.207, 0.008), 0.2)
    assert closest([TrainedPoint(8, 0.26, 1), TrainedPoint(9, 0.19, 1), TrainedPoint(10, 0.17, 1)], 0.2) == 1


# ---------------------------------------------------------------------------------------------- in a run


@pytest.fixture
def by_law(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Measures losses by the law instead of the language model; returns which SAEs were measured, call by call."""
    calls: list[list[str]] = []

    def measure(self: TargetStage, specs: Any, text: HeldOut) -> dict[str, tuple[float, float, float]]:
        calls.append([spec.key for spec in specs])
        bias = {"jumprelu": 1.15, "topk": 1.0, "gated": 1.0}
        return {
            spec.key: (spec.setting.value, law(spec.setting.value) * bias[spec.series.name], 1e-9) for spec in specs
        }

    monkeypatch.setattr(TargetStage, "_measure", measure)
    return calls


OVERRIDES = ("series.jumprelu.delta_loss=0.7", "series.gated.lambda=", "series.gated.l0=[2,6]", "evaluate.tokens=300")


def test_a_requested_loss_is_trained_for_measured_and_reported(study_file, tmp_path, by_law, capsys) -> None:  # noqa: F811
    folder = tmp_path / "run"
    said = run(study_file, folder, *OVERRIDES)
    expected = float(f"{(1.7 * 1.15 / 0.7) ** (1 / 0.6):.3g}")  # 5.61
    assert [len(keys) for keys in by_law] == [6, 1]
    assert f"delta_loss: training jumprelu l0 = {expected:g}" in said
    record = read_json(folder / "targets.json")
    (target,) = record["targets"]
    assert (target["setting"], target["is_reached"]) == ({"kind": "l0", "value": expected}, True)
    assert target["calibration"]["value"] == pytest.approx(0.7, rel=0.01)
    assert target["saes"] == [f"saes/layers.1.residual/64/jumprelu/l0-{expected:g}_seed-0"]
    panel = json.loads((folder / "frontier.json").read_text())["panels"][0]
    point = next(point for point in panel["points"] if point["path"] == target["saes"][0])
    (shown,) = panel["targets"]
    assert shown["held_out"]["value"] == point["metrics"]["delta_lm_loss"]
    assert len(panel["points"]) == 7
    terminal.print_frontier(api.load_frontier(folder))
    assert f"JumpReLU, 0.7: l0 = {expected:g} has" in " ".join(capsys.readouterr().out.split())
    assert "JumpReLU with delta LM loss 0.7:" in (folder / "report.html").read_text()
    again = run(study_file, folder, *OVERRIDES)
    assert "Nothing to do" in again
    assert len(by_law) == 2
    # Without the request, the SAE leaves the frontier and stays on disk; asked for again, it is there.
    run(study_file, folder, *OVERRIDES[1:])
    assert len(json.loads((folder / "frontier.json").read_text())["panels"][0]["points"]) == 6
    stamp = (folder / target["saes"][0] / "weights.safetensors").stat().st_mtime_ns
    run(study_file, folder, *OVERRIDES)
    assert (folder / target["saes"][0] / "weights.safetensors").stat().st_mtime_ns == stamp


def test_a_loss_out_of_reach_ends_after_three_trainings_with_the_closest(study_file, tmp_path, by_law) -> None:  # noqa: F811
    overrides = ["series.topk.delta_loss=0.05", *OVERRIDES[1:]]  # L0 356, of 64 features
    said = run(study_file, tmp_path / "run", *overrides)
    (target,) = read_json(tmp_path / "run" / "targets.json")["targets"]
    assert target["setting"]["value"] == 16  # a quarter of the width
    assert not target["is_reached"]
    assert "topk: delta_loss = 0.05 is l0 = 16, the closest found" in said
    assert len(by_law) == 2


def test_a_loss_that_an_sae_of_the_study_has_trains_nothing(study_file, tmp_path, by_law) -> None:  # noqa: F811
    loss = law(7)
    run(study_file, tmp_path / "run", f"series.topk.delta_loss={loss}", *OVERRIDES[1:])
    record = read_json(tmp_path / "run" / "targets.json")
    assert record["targets"][0]["setting"] == {"kind": "k", "value": 7}
    assert record["saes"] == []


def test_the_calibration_text_is_held_out_and_not_evaluated(study_file, tmp_path, monkeypatch) -> None:  # noqa: F811
    """The real measurement, on a random language model: any loss is as good."""
    seen: list[HeldOut] = []
    measure = TargetStage._measure

    def watched(self: TargetStage, specs: Any, text: HeldOut) -> Any:
        seen.append(text)
        return measure(self, specs, text)

    monkeypatch.setattr(TargetStage, "_measure", watched)
    run(study_file, tmp_path / "run", "series.topk.delta_loss=0.01", "evaluate.tokens=300")
    evaluated = HeldOut.first_groups(seen[0].contexts, 300)
    assert seen[0].start == evaluated.groups
    assert not set(range(seen[0].start, seen[0].groups)) & set(range(evaluated.groups))
    assert seen[0].tokens >= 75
    (target,) = read_json(tmp_path / "run" / "targets.json")["targets"]
    assert math.isfinite(target["calibration"]["value"])
    assert target["calibration"]["standard_error"] > 0


def test_too_little_calibration_text_is_a_sentence(study_file, tmp_path) -> None:  # noqa: F811
    with pytest.raises(DataError, match=r"needs held-out text beyond evaluate\.tokens = 900,000"):
        run(study_file, tmp_path / "run", "series.topk.delta_loss=0.01", "evaluate.tokens=900_000")


# ---------------------------------------------------------------------------------------------- the study


def test_a_series_with_a_loss_alone_is_bracketed() -> None:
    tables = {"name": "x", "sae": {"width": 512}, "series": [{"architecture": "topk", "delta_loss": [0.2]}]}
    (series,) = parse(tables).series
    assert (series.l0, series.delta_loss) == ((8.0, 64.0), (0.2,))
    assert series.settings == [("l0", 8.0), ("l0", 64.0)]


def test_wrong_losses_are_refused() -> None:
    def tables(loss: float, **more: Any) -> dict[str, Any]:
        return {"name": "x", "sae": {"width": 64}, **more,
                "series": [{"architecture": "topk", "k": [4], "delta_loss": [loss]}]}  # fmt: skip

    with pytest.raises(StudyError, match=r"'series\.topk\.delta_loss' must be positive, not -0\.1"):
        parse(tables(-0.1))
    without_lm = {"origin": "synthetic", "options": {}, "sites": ["synthetic"]}
    with pytest.raises(StudyError, match="needs a language model: 'synthetic' activations have none"):
        parse(tables(0.1, activations=without_lm))


def test_the_option_of_run_adds_the_loss_to_every_series(study_file) -> None:  # noqa: F811
    study = with_delta_loss(load(study_file, ["series.topk.delta_loss=0.3"]), [0.2, 0.3])
    assert {series.name: series.delta_loss for series in study.series} == {
        "jumprelu": (0.2, 0.3), "gated": (0.2, 0.3), "topk": (0.3, 0.2),
    }  # fmt: skip
    with pytest.raises(StudyError, match="must be positive"):
        with_delta_loss(load(study_file), [-1.0])
