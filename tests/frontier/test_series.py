"""Settings, seeds and scales of one series."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jumpahead.frontier.build import build_frontier
from jumpahead.frontier.frontier import Frontier
from jumpahead.frontier.seeds import seed_weights
from jumpahead.frontier.series import SeriesCurve
from jumpahead.metrics import curve_metrics
from jumpahead.resampling import replicate_weights
from tests.frontiers import evaluation, keywords

LOSS = curve_metrics().index("delta_lm_loss")


def series(*evaluations: dict[str, Any], name: str = "jumprelu") -> SeriesCurve:
    names = {each["sae"]["series"] for each in evaluations}
    frontier = Frontier(build_frontier(evaluations, **keywords(*names)))
    (found,) = frontier.curves(frontier.data["panels"][0], [name])
    return found


# ---------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(("errors", "is_log"), [((0.1, 0.05), True), ((0.1, 0.051), False), ((0.401, 0.01), False)])
def test_loss_is_logarithmic_only_where_every_point_is_two_errors_above_zero(errors, is_log):
    found = series(evaluation(l0=4, loss=0.8, error=errors[0]), evaluation(l0=16, loss=0.1, error=errors[1]))
    assert found.curve.is_log[LOSS] is is_log
    (place,) = found.curve.positions(LOSS, 0.2)
    half = 4 * 4 ** (np.log(0.8 / 0.2) / np.log(8)) if is_log else 4 * 4 ** (0.6 / 0.7)
    assert place.values[0, 0] == pytest.approx(half)


def test_loss_is_linear_where_a_point_is_not_positive_or_has_no_error():
    assert not series(evaluation(l0=4, loss=0.8), evaluation(l0=16, loss=-0.001)).curve.is_log[LOSS]
    unknown = evaluation(l0=16, loss=0.1)
    unknown["standard_errors"] = {}
    assert not series(evaluation(l0=4, loss=0.8), unknown).curve.is_log[LOSS]


def test_l0_and_fvu_are_logarithmic_and_counts_are_not():
    found = series(evaluation(l0=4, loss=0.8), evaluation(l0=16, loss=0.1))
    assert dict(zip(curve_metrics(), found.curve.is_log, strict=True)) == {
        "l0": True, "delta_lm_loss": True, "fvu": True, "above_10pct": False, "above_1pct": False, "never_fired": False,
        "f1": False,
    }  # fmt: skip


def test_saes_without_a_loss_lie_on_no_curve():
    found = series(evaluation(l0=4, loss=0.8), evaluation(l0=8, loss=float("nan")), evaluation(l0=16, loss=0.1))
    assert [group[0]["metrics"]["l0"] for group in found.settings] == [4, 16]


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (("l0", 4), ("l0", 16), {"kind": "l0", "value": 8.0}),
        (("lambda", 4e-3), ("lambda", 1e-5), {"kind": "lambda", "value": 2e-4}),
        (("k", 4), ("k", 17), {"kind": "k", "value": 8}),  # √68 = 8.2
    ],
)
def test_the_setting_to_train_with_is_geometric(left, right, expected):
    found = series(
        evaluation(l0=5, loss=0.8, setting=dict(zip(("kind", "value"), left, strict=True))),
        evaluation(l0=20, loss=0.2, setting=dict(zip(("kind", "value"), right, strict=True))),
    )
    (place,) = found.curve.positions(0, 10)
    setting = found.setting_at(place)
    assert setting == {"kind": expected["kind"], "value": pytest.approx(expected["value"])}
    assert isinstance(setting["value"], int) is (left[0] == "k")


def test_the_setting_of_a_series_that_keeps_whole_features_is_whole():
    found = series(
        evaluation(l0=5, loss=0.8, setting={"kind": "l0", "value": 4}),
        evaluation(l0=20, loss=0.2, setting={"kind": "l0", "value": 17}),
    )
    (place,) = found.curve.positions(0, 10)
    assert found.setting_at(place)["value"] == 8.25  # √68, to three digits
    assert replace(found, is_whole=True).setting_at(place) == {"kind": "l0", "value": 8}


def test_on_a_measured_point_the_setting_is_its_own():
    found = series(
        evaluation(l0=5.3, loss=0.8, setting={"kind": "lambda", "value": 0.00123456}),
        evaluation(l0=20, loss=0.2, setting={"kind": "lambda", "value": 1e-5}),
    )
    (place,) = found.curve.positions(0, 5.3)
    assert found.setting_at(place) == {"kind": "lambda", "value": 0.00123456}


def test_between_settings_of_two_kinds_the_nearest_sae_decides():
    found = series(
        evaluation(l0=5, loss=0.8, setting={"kind": "lambda", "value": 1e-3}),
        evaluation(l0=20, loss=0.2, setting={"kind": "l0", "value": 19}),
    )
    (place,) = found.curve.positions(0, 11)
    assert found.setting_at(place) == {"kind": "l0", "value": 19}
    assert found.sparsity_coefficient_at(place) == {}


def test_the_controllers_lambda_is_interpolated_where_all_saes_tell_it():
    found = series(
        evaluation(l0=4, loss=0.8, sparsity_coefficient={"lambda": 8e-4}),
        evaluation(l0=16, loss=0.2, sparsity_coefficient={"lambda": 2e-4}),
        evaluation(l0=64, loss=0.1),
    )
    assert found.sparsity_coefficient_at(found.curve.positions(0, 8)[0]) == {"lambda": pytest.approx(4e-4)}
    assert found.sparsity_coefficient_at(found.curve.positions(0, 32)[0]) == {}


# ---------------------------------------------------------------------------------------------- seeds


def test_a_setting_is_the_mean_of_its_seeds():
    found = series(
        evaluation(l0=4, loss=0.8, setting={"kind": "k", "value": 4}, sae_seed=0),
        evaluation(l0=6, loss=0.6, setting={"kind": "k", "value": 4}, sae_seed=1),
        evaluation(l0=16, loss=0.1, setting={"kind": "k", "value": 16}, sae_seed=0),
        evaluation(l0=16, loss=0.2, setting={"kind": "k", "value": 16}, sae_seed=1),
    )
    np.testing.assert_allclose(found.curve.values[0, :, :2], [[5, 0.7], [16, 0.15]])
    assert found.covers == "text and seeds"


def test_one_seed_covers_text_only_and_so_does_a_setting_that_lacks_seeds():
    assert series(evaluation(l0=4, loss=0.8), evaluation(l0=8, loss=0.5)).covers == "text"
    setting = {"kind": "k", "value": 4}
    pair = [evaluation(l0=4, loss=0.8, setting=setting, sae_seed=seed) for seed in (0, 1)]
    assert series(*pair).covers == "text and seeds"
    assert series(*pair, evaluation(l0=8, loss=0.5)).covers == "text"


SEEDS = [(0, 0), (1, 0), (2, 0)]
CROSSED = [(a, b) for a in range(3) for b in range(4)]


@pytest.mark.parametrize("universe", [SEEDS, CROSSED, [(0, 5), (1, 6)], [(7, 0), (7, 1), (7, 2), (7, 3)]])
def test_weights_sum_to_one_and_start_with_the_mean(universe):
    weights = seed_weights(universe, universe, 500)
    assert weights.shape == (501, len(universe))
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[0], 1 / len(universe))
    np.testing.assert_allclose(weights[1:].mean(0), 1 / len(universe), atol=0.06)


def test_the_mean_of_seeds_spreads_like_independent_seeds():
    values = np.array([3.0, 5.5, 4.2])
    spread = (seed_weights(SEEDS, SEEDS, 20_000)[1:] @ values).var()
    assert spread == pytest.approx(values.var(ddof=1) / 3, rel=0.05)  # plain resampling would give two thirds of it


def test_crossed_seeds_are_drawn_along_each_axis():
    initialisation = np.array([3.0, 5.5, 4.2])  # an effect of the initialisation alone, repeated in 4 data orders
    values = np.array([initialisation[a] for a, _ in CROSSED])
    spread = (seed_weights(CROSSED, CROSSED, 20_000)[1:] @ values).var()
    assert spread == pytest.approx(initialisation.var(ddof=1) / 3, rel=0.05)  # not / 12


def test_series_share_their_draws_and_a_missing_seed_is_no_hole():
    np.testing.assert_array_equal(seed_weights(SEEDS, SEEDS, 300), seed_weights(SEEDS, SEEDS, 300))
    some = seed_weights(SEEDS[:2], SEEDS, 20_000)
    np.testing.assert_allclose(some.sum(1), 1)
    assert np.isfinite(some).all()
    drawn = replicate_weights(3, 20_000, seed=1)
    more = drawn[:, 0] > drawn[:, 1]
    assert (some[1:][more, 0] > 0.5).all()  # follows the draws of the panel
    assert (seed_weights(SEEDS[:1], SEEDS, 10) == 1).all()


def test_seeds_widen_the_interval():
    def pair(spread):
        saes = []
        for seed, sign in ((0, -1), (1, 1)):
            for l0, loss in ((4, 0.8), (16, 0.2)):
                setting, value = {"kind": "k", "value": l0}, loss * (1 + sign * spread)
                replicates = {"delta_lm_loss": value + 0.01 * np.sin(np.arange(200))}
                full = {key: replicates.get(key, np.full(200, 5.0)) for key in curve_metrics()} | {
                    "l0": np.full(200, l0)
                }
                saes.append(evaluation(l0=l0, loss=value, setting=setting, sae_seed=seed, replicates=full))
        found = series(*saes)
        l0s = found.metrics(found.curve.positions(LOSS, 0.4)[0])["l0"]
        assert l0s.low is not None
        assert l0s.high is not None
        return l0s.high - l0s.low

    assert pair(0.2) > 3 * pair(0.0) > 0


# ---------------------------------------------------------------------------------------------- ranges of replicates


def test_replicates_stay_possible():
    """Centring and seeds can push a count below 0 or a loss below 0; only the second may be."""
    jumps = {
        "above_10pct": [0, 0, 0, 8],
        "never_fired": [1000, 1000, 1000, 996],
        "delta_lm_loss": [0.1, 0.1, -0.5, 0.7],
    }
    full = {key: jumps.get(key, [5.0] * 4) for key in curve_metrics()}
    found = series(
        evaluation(l0=5, loss=0.1, above_10=1, never_fired=999, replicates=full),
        evaluation(l0=9, loss=0.01, above_10=1),
    )
    columns = dict(zip(curve_metrics(), np.moveaxis(found.curve.values[1:, 0], 1, 0), strict=True))
    assert columns["above_10pct"].min() == 0
    assert columns["never_fired"].max() == 1000
    assert columns["delta_lm_loss"].min() < 0
