"""`Frontier.ask`: targets, limits, ranges, ties, recommendations."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from jumpahead.errors import StudyError
from jumpahead.frontier import Frontier, build_frontier, parse_value
from jumpahead.metrics import curve_metrics
from tests.frontiers import evaluation, example, keywords


def frontier(*evaluations) -> Frontier:
    names = dict.fromkeys(each["sae"]["series"] for each in evaluations)
    return Frontier(build_frontier(evaluations, **keywords(*names)))


def power_law(name: str, a: float, b: float, l0s=(4, 16, 64), **kinds) -> list[dict]:
    """loss = a·L0^−b, FVU half of it, one feature above 10 % per two of L0, ten times as many above 1 %."""
    return [
        evaluation(
            name,
            l0=l0,
            loss=a * l0**-b,
            fvu=a * l0**-b / 2,
            above_10=l0 / 2,
            above_1=5 * l0,
            never_fired=70 / l0,
            **kinds,
        )
        for l0 in l0s
    ]


@pytest.fixture
def two() -> Frontier:
    return frontier(*power_law("jumprelu", 1.6, 1.0), *power_law("topk", 2.4, 1.0))


def replicates(l0, loss, **others) -> dict[str, np.ndarray]:
    """Replicates for `evaluation`, constant where not given."""
    given = {"l0": l0, "delta_lm_loss": loss, **others}
    return {key: np.broadcast_to(given.get(key, 5.0), np.shape(loss)) for key in curve_metrics()}


# ---------------------------------------------------------------------------------------------- targets


def test_by_delta_loss(two):
    answer = two.ask(delta_loss=0.2)
    (panel,) = answer.panels
    jumprelu, topk = panel.series
    (crossing,) = jumprelu.crossings
    assert crossing.metrics["l0"].value == pytest.approx(8)
    assert crossing.metrics["delta_lm_loss"].value == 0.2
    assert crossing.metrics["fvu"].value == pytest.approx(0.1)
    assert crossing.metrics["above_10pct"].value == pytest.approx(2 + 6 / 2)  # halfway from 2 to 8 in log L0
    assert crossing.metrics["share_above_10pct"].value == pytest.approx(5 / 1000)
    assert crossing.metrics["above_1pct"].value == pytest.approx((20 + 80) / 2)
    assert crossing.metrics["never_fired"].value == pytest.approx(70 * (1 / 4 + 1 / 16) / 2)
    assert crossing.setting == {"kind": "l0", "value": 8.0}
    assert crossing.label == "l0 = 8"
    assert crossing.nearest["path"].endswith(("l0-4_seed-0-0", "l0-16_seed-0-0"))
    assert topk.crossings[0].metrics["l0"].value == pytest.approx(12)
    assert topk.crossings[0].nearest["label"] == "l0 = 16"
    assert (jumprelu.reach, jumprelu.measured) == ("inside", (0.025, 0.4))


def test_the_same_place_by_every_target(two):
    expected = two.ask(delta_loss=0.2, series="jumprelu").panels[0].series[0].crossings[0]
    for target in (
        {"l0": 8}, {"fvu": 0.1}, {"above_10": 5}, {"above_10": "5"}, {"above_10": "0.5%"}, {"above_1": 50},
        {"above_1": "5 %"},
    ):  # fmt: skip
        (found,) = two.ask(**target, series="jumprelu").panels[0].series[0].crossings
        assert found.setting == expected.setting
        for key, value in expected.metrics.items():
            assert found.metrics[key].value == (value.value and pytest.approx(value.value, rel=1e-9))


def test_a_measured_point_answers_with_its_own_numbers(two):
    for point in two.points("topk"):
        for argument, key in (("delta_loss", "delta_lm_loss"), ("l0", "l0"), ("fvu", "fvu")):
            (found,) = two.ask(**{argument: point["metrics"][key]}, series="topk").panels[0].series[0].crossings
            assert {key: found.metrics[key].value for key in curve_metrics()} == {
                key: point["metrics"].get(key) for key in curve_metrics()
            }
            assert found.setting == point["setting"]
            assert found.nearest["path"] == point["path"]


def test_exactly_one_target(two):
    with pytest.raises(StudyError, match="exactly one of"):
        two.ask()
    with pytest.raises(StudyError, match="you gave 2"):
        two.ask(delta_loss=0.2, l0=4)


def test_unknown_names_say_what_is_near(two):
    with pytest.raises(StudyError, match=r"no series 'topj'. Did you mean 'topk'"):
        two.ask(l0=8, series="topj")
    with pytest.raises(StudyError, match=r"no panel 'layers.2.residual'. Did you mean 'layers.1.residual/1000'"):
        two.ask(l0=8, panel="layers.2.residual")
    with pytest.raises(StudyError, match=r"asked about 'never_fire'. Did you mean 'never_fired'"):
        two.ask(l0=8, limits={"never_fire": 3})


@pytest.mark.parametrize(
    ("metric", "given", "expected"),
    [
        ("above_10", "0.06%", ("share_above_10pct", 0.0006)),
        ("above_10", "12", ("above_10pct", 12)),
        ("above_1pct", 12.5, ("above_1pct", 12.5)),
        ("never_fired", "3 %", ("share_never_fired", 0.03)),
        ("share_never_fired", "3%", None),
        ("share_never_fired", 0.03, ("share_never_fired", 0.03)),
        ("delta_loss", "-0.1", ("delta_lm_loss", -0.1)),
        ("l0", 40, ("l0", 40)),
        ("l0", "40%", None),
        ("above_10", "-3", None),
        ("above_10", "many", None),
        ("above_10", "%", None),
        ("fvu", math.nan, None),
        ("l0", math.inf, None),
    ],
)
def test_amounts(metric, given, expected):
    if expected is None:
        with pytest.raises(StudyError, match="takes a "):
            parse_value(metric, given)
    else:
        assert parse_value(metric, given) == (expected[0], pytest.approx(expected[1]))


# ---------------------------------------------------------------------------------------------- SAEs without use


def without_lm(name: str, fvu: float) -> list[dict]:
    """Evaluations at three L0 and one FVU, of a run without a language model."""
    found = [evaluation(name, l0=l0, loss=1.0, fvu=fvu) for l0 in (4, 16, 64)]
    for each in found:
        each["metrics"]["delta_lm_loss"] = None
    return found


@pytest.mark.parametrize("fvu", [24_527.0, 1.0])
def test_an_sae_that_explains_nothing_is_not_recommended(fvu):
    """The mean activation has the FVU 1, without a single feature."""
    (panel,) = frontier(*without_lm("jumprelu", fvu), *without_lm("topk", 0.3)).ask(l0=8).panels
    assert panel.recommendation.series == "topk"
    assert "no better than the mean activation" in panel.recommendation.reason
    (panel,) = frontier(*without_lm("jumprelu", fvu)).ask(l0=8).panels
    assert panel.recommendation.series is None
    assert panel.recommendation.reason.startswith("No series qualifies at L0 8: JumpReLU has FVU")
    (panel,) = frontier(*[evaluation("jumprelu", l0=l0, loss=8 / l0, fvu=fvu) for l0 in (4, 64)]).ask(l0=8).panels
    assert panel.recommendation.series == "jumprelu", "delta LM loss says what it is worth"


# ---------------------------------------------------------------------------------------------- ranges


def test_outside_the_measured_range_the_nearest_end_is_told_not_extrapolated(two):
    (panel,) = two.ask(delta_loss=0.03).panels
    jumprelu, topk = panel.series
    assert topk.reach == "below"
    assert topk.measured == (pytest.approx(0.0375), 0.6)
    assert topk.crossings == []
    assert topk.end is not None
    assert topk.end.metrics["delta_lm_loss"].value == pytest.approx(0.0375)
    assert topk.end.nearest["label"] == "l0 = 64"
    assert jumprelu.reach == "inside"
    assert panel.recommendation.series == "jumprelu"
    assert "TopK was measured only from 0.0375 to 0.6" in panel.recommendation.reason


def test_nobody_gets_there(two):
    (panel,) = two.ask(delta_loss=5).panels
    assert [series.reach for series in panel.series] == ["above", "above"]
    assert panel.recommendation.series is None
    assert panel.recommendation.setting is None
    assert panel.recommendation.reason == (
        "No series qualifies at delta LM loss 5: JumpReLU was measured only from 0.025 to 0.4; "
        "TopK was measured only from 0.0375 to 0.6."
    )


def test_just_beyond_the_end_its_own_values_are_given_and_said_to_be():
    saes = [evaluation(l0=l0, loss=1.6 / l0) for l0 in (4, 63.7)]
    (crossing,) = frontier(*saes).ask(l0=64).panels[0].series[0].crossings
    assert crossing.metrics["l0"].value == 63.7
    assert crossing.notes == ["the curve ends at 63.7, within 1 % of the target: these are the values of its end"]


def test_a_series_with_one_sae():
    one = frontier(evaluation(l0=8, loss=0.3))
    assert one.ask(delta_loss=0.3).panels[0].recommendation.reason == (
        "At delta LM loss 0.3, JumpReLU has 8 active features per token."
    )
    (series,) = one.ask(delta_loss=0.2).panels[0].series
    assert series.reach == "below"
    assert series.end is not None
    assert series.end.metrics["l0"].value == 8
    assert "measured only at 0.3" in one.ask(delta_loss=0.2).panels[0].recommendation.reason


def test_a_series_without_any_sae_yet(two):
    empty = Frontier({**two.data, "series": [*two.data["series"], {"name": "gated", "title": "Gated"}]})
    (panel,) = empty.ask(delta_loss=0.2).panels
    assert [series.series for series in panel.series] == ["jumprelu", "topk"]
    assert panel.recommendation.reason.endswith("Left out: gated has no measured SAE.")


def test_a_curve_that_is_there_three_times():
    losses = {2: 0.8, 4: 0.25, 8: 0.4, 16: 0.1}
    bumpy = frontier(*(evaluation(l0=l0, loss=loss) for l0, loss in losses.items()))
    (series,) = bumpy.ask(delta_loss=0.3).panels[0].series
    l0s = [crossing.metrics["l0"].value for crossing in series.crossings]
    assert l0s == sorted(l0s)
    assert [2 < l0s[0] < 4, 4 < l0s[1] < 8, 8 < l0s[2] < 16] == [True] * 3
    assert series.notes == ["its curve is there 3 times; the smallest L0 comes first"]
    assert bumpy.ask(delta_loss=0.3).panels[0].recommendation.setting == series.crossings[0].setting


def test_resamples_that_do_not_get_there_are_counted():
    near = np.array([0.2, 0.21, 0.19, 0.2, 0.2])  # the last point is at 0.2, asked for 0.2
    saes = [
        evaluation(l0=4, loss=0.8, replicates=replicates(4, np.full(5, 0.8))),
        evaluation(l0=16, loss=0.2, replicates=replicates(16, near)),
    ]
    (crossing,) = frontier(*saes).ask(delta_loss=0.2).panels[0].series[0].crossings
    assert crossing.notes == ["20 % of the resamples do not reach the target: intervals stop at the measured range"]
    assert crossing.metrics["l0"].high == 16


def test_a_loss_that_is_known_badly_is_pointed_out():
    saes = [evaluation(l0=4, loss=0.8, error=0.02), evaluation(l0=16, loss=0.2, error=0.015)]
    (crossing,) = frontier(*saes).ask(l0=8).panels[0].series[0].crossings
    assert crossing.notes == ["the standard error of the loss is 7.5 % of it here: evaluate on more text"]


# ---------------------------------------------------------------------------------------------- limits


def test_limits_choose_among_series(two):
    (panel,) = two.ask(delta_loss=0.2, limits={"above_10": 5.5}).panels
    assert panel.recommendation.series == "jumprelu"
    assert panel.series[1].exceeds == ["6.75 features above 10 % (at most 5.5)"]  # TopK at L0 12
    assert "TopK has 6.75 features above 10 % (at most 5.5)" in panel.recommendation.reason
    (panel,) = two.ask(delta_loss=0.2, limits={"above_10": "0.1%", "never_fired": 50}).panels
    assert panel.recommendation.series is None
    assert "JumpReLU has 0.5 % of features above 10 % (at most 0.1 %)" in panel.recommendation.reason
    (panel,) = two.ask(delta_loss=0.2, limits={"l0": 9}).panels
    assert panel.recommendation.series == "jumprelu"


def test_a_limit_on_features_that_never_fired_names_the_number_of_tokens():
    saes = [evaluation(l0=l0, loss=1.6 / l0, never_fired=40, rows=11_000) for l0 in (4, 16)]
    answer = frontier(*saes).ask(delta_loss=0.2, limits={"never_fired": 30})
    assert answer.question.endswith("with at most 30 features that never fired in 11,000 tokens?")
    assert answer.panels[0].series[0].exceeds == ["40 features that never fired in 11,000 tokens (at most 30)"]
    assert answer.to_json()["rows"] == 11_000
    share = frontier(*saes).ask(delta_loss=0.2, limits={"never_fired": "3%"}).panels[0].series[0].exceeds
    assert share == ["4 % of features that never fired in 11,000 tokens (at most 3 %)"]


def test_a_limit_that_is_met_exactly_is_kept(two):
    assert two.ask(l0=16, limits={"above_10": 8, "l0": 16}).panels[0].recommendation.series == "jumprelu"


def test_among_several_crossings_the_best_one_within_the_limits():
    saes = [evaluation(l0=l0, loss=loss, never_fired=dead) for l0, loss, dead in
            ((2, 0.8, 90), (4, 0.25, 90), (8, 0.4, 10), (16, 0.1, 10))]  # fmt: skip
    (panel,) = frontier(*saes).ask(delta_loss=0.3, limits={"never_fired": 70}).panels
    assert len(panel.series[0].crossings) == 3
    assert panel.recommendation.setting == panel.series[0].crossings[1].setting
    assert panel.series[0].exceeds == []


def test_an_interval_past_the_limit_is_said():
    saes = [
        evaluation(
            l0=l0, loss=1.6 / l0, above_10=5, replicates=replicates(l0, np.full(4, 1.6 / l0), above_10pct=[3, 5, 5, 7])
        )
        for l0 in (4, 16)
    ]
    (series,) = frontier(*saes).ask(l0=8, limits={"above_10": 6}).panels[0].series
    assert series.notes == ["its interval extends beyond the limit, up to 6.85 features above 10 %"]


# ---------------------------------------------------------------------------------------------- between series


def test_the_recommendation_says_by_how_much(two):
    found = two.ask(delta_loss=0.2).panels[0].recommendation
    assert (found.series, found.setting, found.tied) == ("jumprelu", {"kind": "l0", "value": 8.0}, [])
    assert found.reason == (
        "At delta LM loss 0.2, JumpReLU has the fewest active features per token, 8; TopK has 4 more [4, 4]."
    )
    found = two.ask(l0=8).panels[0].recommendation
    assert found.reason == "At L0 8, JumpReLU has the lowest delta LM loss, 0.2; TopK has 0.1 more [0.1, 0.1]."
    found = two.ask(above_10="0.5%").panels[0].recommendation
    assert found.series == "jumprelu"
    assert found.reason.startswith("At 0.5 % of features above 10 %, JumpReLU has the lowest delta LM loss")


def noisy_pair(shift: float, is_paired: bool) -> Frontier:
    """Two series whose losses rise and fall together over documents (SD 10 %), TopK's larger by `shift`."""
    rng = np.random.default_rng(3)
    shared = 1 + 0.1 * rng.normal(size=400)
    saes = []
    for name, factor in (("jumprelu", 1.0), ("topk", 1 + shift)):
        common = shared if is_paired else shared[rng.permutation(400)]
        for l0 in (4, 64):
            drawn = factor * 1.6 / l0 * common * (1 + 0.002 * rng.normal(size=400))
            saes.append(evaluation(name, l0=l0, loss=factor * 1.6 / l0, replicates=replicates(l0, drawn)))
    return frontier(*saes)


def test_paired_replicates_tell_apart_what_overlapping_intervals_do_not():
    (panel,) = noisy_pair(0.03, is_paired=True).ask(delta_loss=0.2).panels
    jumprelu, topk = (series.crossings[0].metrics["l0"] for series in panel.series)
    assert topk.low is not None
    assert jumprelu.high is not None
    assert jumprelu.high > topk.value > jumprelu.value > topk.low  # intervals overlap by far
    assert panel.recommendation.tied == []
    (panel,) = noisy_pair(0.03, is_paired=False).ask(delta_loss=0.2).panels
    assert panel.recommendation.tied == ["topk"]


def test_a_tie_is_said(two):
    (panel,) = noisy_pair(0.0001, is_paired=True).ask(delta_loss=0.2).panels
    assert panel.recommendation.series == "jumprelu"
    assert panel.recommendation.tied == ["topk"]
    assert "Difference to it may be zero: TopK (0.0008 [-" in panel.recommendation.reason
    same = frontier(*power_law("jumprelu", 1.6, 1.0), *power_law("topk", 1.6, 1.0))
    assert same.ask(l0=8).panels[0].recommendation.tied == ["topk"]


def test_without_replicates_nothing_is_told_apart():
    bare = frontier(*power_law("jumprelu", 1.6, 1.0, clusters=1), *power_law("topk", 2.4, 1.0, clusters=1))
    answer = bare.ask(delta_loss=0.2)
    (panel,) = answer.panels
    assert panel.series[0].crossings[0].metrics["l0"] == (pytest.approx(8), None, None)
    assert panel.recommendation.tied == ["topk"]
    assert "no interval" in panel.recommendation.reason
    assert "no intervals" in answer.covers


# ---------------------------------------------------------------------------------------------- whole runs


def test_a_simulated_run_answers_near_the_truth():
    """loss = a·L0^−b in `tests.frontiers.LOSS`; only seeds, not these 3 settings, differ between the two runs."""
    made = example(l0s=(4, 12, 37), replicates=200, clusters=48, width=1024, d=8, seeds=(0, 1, 2))
    found = Frontier(build_frontier(made.evaluations, **made.keywords))
    answer = found.ask(delta_loss=0.3)
    assert "and seeds: 3 initialisations, one data order." in answer.covers
    for series, (a, b) in zip(answer.panels[0].series, ((1.15, 0.62), (1.9, 0.66), (1.3, 0.62)), strict=True):
        l0 = series.crossings[0].metrics["l0"]
        assert l0.low is not None
        assert l0.high is not None
        assert l0.low < (a / 0.3) ** (1 / b) < l0.high
        assert 0.05 < (l0.high - l0.low) / l0.value < 0.6
        assert series.covers == "text and seeds"
    assert answer.panels[0].recommendation.series == "jumprelu"


def test_json(two):
    found = two.ask(delta_loss=0.2, limits={"above_10": "3%"}).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["target"] == "delta_lm_loss"
    assert found["limits"] == {"share_above_10pct": 0.03}
    crossing = found["panels"][0]["series"][0]["crossings"][0]
    assert crossing["metrics"]["l0"] == {"value": pytest.approx(8), "low": pytest.approx(8), "high": pytest.approx(8)}
    assert crossing["setting"] == {"kind": "l0", "value": 8}
    assert found["panels"][0]["recommendation"]["series"] == "jumprelu"


def test_two_hundred_saes_are_asked_quickly():
    rng = np.random.default_rng(0)
    saes = []
    for name in ("jumprelu", "gated", "topk"):
        for l0 in np.geomspace(2, 500, 67):
            loss = 2 / l0
            drawn = {key: rng.normal(5, 0.1, 200) for key in curve_metrics()}
            drawn |= {"l0": np.full(200, l0), "delta_lm_loss": loss * rng.normal(1, 0.05, 200)}
            saes.append(evaluation(name, l0=float(l0), loss=loss, replicates=drawn))
    found = frontier(*saes)
    start = time.process_time()
    found.ask(delta_loss=0.1)
    assert time.process_time() - start < 2  # 0.1 s on an idle machine


def test_torch_is_not_imported():
    code = "import sys, jumpahead.frontier, jumpahead.report.terminal, jumpahead.metrics; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
