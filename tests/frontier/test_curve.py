"""Interpolation against exact power laws, plain `numpy.interp`, hand arithmetic, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jumpahead.evaluation.coverage import interval_expansion
from jumpahead.frontier.curve import Curve, CurvePosition, centre_replicates, estimate_with_interval
from jumpahead.resampling import replicate_weights

L0, LOSS, COUNT = 0, 1, 2


def curve(l0, loss, count=None, replicates=None, is_log=(True, True, False)) -> Curve:
    """A curve of three metrics; `replicates` [R, n, 3], none by default."""
    count = np.linspace(3, 8, len(l0)) if count is None else count
    values = np.stack([l0, loss, count], axis=-1)[None].astype(float)
    return Curve(values if replicates is None else np.concatenate([values, replicates]), is_log)


def value(place: CurvePosition, metric: int) -> float:
    return float(place.values[0, metric])


# ---------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("a", [0.3, 2.5])
@pytest.mark.parametrize("b", [0.4, 1.7])
def test_a_power_law_is_exact_between_its_points(a, b):
    l0 = np.array([3.0, 7, 11, 40, 200])
    law = curve(l0, a * l0**-b, count=5 + 2 * np.log(l0))
    for wanted in (3.1, 9.0, 25.0, 180.0):
        (place,) = law.positions(LOSS, a * wanted**-b)
        assert value(place, L0) == pytest.approx(wanted, rel=1e-12)
        assert value(place, COUNT) == pytest.approx(5 + 2 * np.log(wanted), rel=1e-12)  # linear in log L0
        (place,) = law.positions(L0, wanted)
        assert value(place, LOSS) == pytest.approx(a * wanted**-b, rel=1e-12)
        (place,) = law.positions(COUNT, 5 + 2 * np.log(wanted))
        assert value(place, LOSS) == pytest.approx(a * wanted**-b, rel=1e-12)


def test_linear_loss_by_hand():
    # log L0 halfway between 4 and 16 is L0 8; the loss is linear: halfway between 0.3 and −0.1
    plain = curve([4, 16], [0.3, -0.1], [10, 30], is_log=(True, False, False))
    (place,) = plain.positions(LOSS, 0.1)
    assert value(place, L0) == pytest.approx(8, rel=1e-12)
    assert value(place, COUNT) == pytest.approx(20, rel=1e-12)
    assert (place.left, place.right, place.t) == (0, 1, pytest.approx(0.5))
    (place,) = plain.positions(L0, 8)
    assert value(place, LOSS) == pytest.approx(0.1, rel=1e-12)


def test_l0_of_zero_falls_back_to_plain_l0():
    dead = curve([0, 10], [2.0, 1.0], is_log=(True, False, False))
    (place,) = dead.positions(LOSS, 1.25)
    assert value(place, L0) == pytest.approx(7.5)


def test_what_was_asked_for_comes_back_to_the_last_bit():
    law = curve([3, 70], [0.9, 0.07])
    assert value(law.positions(LOSS, 0.2)[0], LOSS) == 0.2
    assert value(law.positions(L0, 13)[0], L0) == 13


# ---------------------------------------------------------------------------------------------- crossings


def test_several_crossings_are_all_found_in_the_order_of_l0():
    bumpy = curve([2, 4, 8, 16], [0.8, 0.2, 0.4, 0.1], is_log=(True, False, False))
    places = bumpy.positions(LOSS, 0.3)
    assert [round(value(place, L0), 9) for place in places] == [
        round(2 * 2 ** (5 / 6), 9),  # 0.8 → 0.2: five sixths of the way from 2 to 4
        round(4 * 2**0.5, 9),
        round(8 * 2 ** (1 / 3), 9),
    ]
    assert [(place.left, place.right) for place in places] == [(0, 1), (1, 2), (2, 3)]


def test_a_point_on_the_target_is_one_crossing():
    bumpy = curve([2, 4, 8, 16], [0.8, 0.2, 0.4, 0.1], [1, 5, 5, 9])
    (first, second) = bumpy.positions(COUNT, 5)  # a flat piece: both of its ends
    assert (first.left, second.left) == (1, 2)
    assert (value(first, LOSS), value(second, LOSS)) == (0.2, 0.4)
    (touch, later) = bumpy.positions(LOSS, 0.2)
    assert (touch.left, touch.right, touch.t) == (1, 1, 0.0)
    assert value(later, L0) == pytest.approx(8 * 2 ** (np.log(0.5) / np.log(0.25)))


@pytest.mark.parametrize("metric", [L0, LOSS, COUNT])
def test_never_beyond_what_was_measured(metric):
    law = curve([2, 4, 8], [0.8, 0.4, 0.2], [3, 5, 9])
    low, high = law.measured_range(metric)
    assert law.positions(metric, low * 0.98) == []
    assert law.positions(metric, high * 1.02) == []
    assert law.positions(metric, -1.0) == []
    assert value(law.nearest_end(metric, low * 0.98), metric) == low
    assert value(law.nearest_end(metric, high * 1.02), metric) == high


def test_within_one_percent_of_an_end_is_that_end_itself():
    law = curve([2, 4, 7.97], [0.8, 0.4, 0.2])
    (place,) = law.positions(L0, 8)
    assert value(place, L0) == 7.97
    assert (place.left, place.t) == (2, 0.0)
    assert law.positions(L0, 8.1) == []


def test_one_point_is_a_curve():
    single = curve([5], [0.3], [7])
    assert value(single.positions(L0, 5.02)[0], LOSS) == 0.3
    assert single.positions(L0, 6) == []
    assert value(single.nearest_end(LOSS, 0.9), L0) == 5
    assert single.measured_range(LOSS) == (0.3, 0.3)


def test_two_points_of_equal_l0_make_a_step():
    step = curve([4, 4, 8], [0.5, 0.3, 0.2], is_log=(True, False, False))
    (place,) = step.positions(LOSS, 0.4)
    assert value(place, L0) == 4
    assert [value(place, LOSS) for place in step.positions(L0, 4)] == [0.5, 0.3]


# ---------------------------------------------------------------------------------------------- properties

points = st.lists(
    st.tuples(st.floats(0.5, 1e4), st.floats(1e-4, 10), st.floats(0, 500)),
    min_size=1,
    max_size=9,
    unique_by=lambda p: p[0],
)
logs = st.tuples(st.booleans(), st.booleans(), st.just(False))


@settings(max_examples=200, deadline=None)
@given(points, logs, st.sampled_from([L0, LOSS, COUNT]), st.floats(0, 1))
def test_every_place_lies_between_its_neighbours(found, is_log, metric, where):
    measured = np.array(found)
    some = curve(*measured.T, is_log=is_log)
    low, high = some.measured_range(metric)
    target = low + where * (high - low)
    assume(low <= target <= high)
    places = some.positions(metric, target)
    assert places
    previous = -np.inf
    for place in places:
        ends, others = measured[[place.left, place.right]], np.arange(3) != metric
        assert (place.values[0] >= ends.min(0))[others].all()
        assert (place.values[0] <= ends.max(0))[others].all()
        assert place.values[0, metric] == target
        assert value(place, L0) >= previous
        previous = value(place, L0)


@settings(max_examples=100, deadline=None)
@given(points, logs, st.sampled_from([L0, LOSS, COUNT]))
def test_a_measured_point_returns_itself(found, is_log, metric):
    measured = np.array(found)
    some = curve(*measured.T, is_log=is_log)
    for i, point in enumerate(measured):
        here = [place for place in some.positions(metric, point[metric]) if place.left == place.right == i]
        assert len(here) == 1
        np.testing.assert_array_equal(here[0].values[0], point)


@settings(max_examples=100, deadline=None)
@given(points, st.randoms(use_true_random=False), st.floats(0, 1))
def test_the_order_of_the_points_changes_nothing(found, random, where):
    shuffled = list(found)
    random.shuffle(shuffled)
    one, other = curve(*np.array(found).T), curve(*np.array(shuffled).T)
    low, high = one.measured_range(LOSS)
    target = low + where * (high - low)
    a, b = one.positions(LOSS, target), other.positions(LOSS, target)
    assert [place.values.tolist() for place in a] == [place.values.tolist() for place in b]
    assert [found[place.left] for place in a] == [shuffled[place.left] for place in b]


# ---------------------------------------------------------------------------------------------- replicates


def falling(rng: np.random.Generator, n: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """L0 and [1 + R, n, 3] of a curve whose every replicate falls, each metric jittered on its own."""
    l0 = np.sort(rng.uniform(1, 200, n))
    jitter = np.exp(0.03 * rng.normal(size=(1 + replicates, n, 3)))
    values = np.stack([l0, 2 * l0**-0.7, 1 + l0], axis=-1) * jitter
    values[:, :, L0] = np.sort(values[:, :, L0], axis=1)
    values[:, :, LOSS] = -np.sort(-values[:, :, LOSS], axis=1)
    return l0, values


@pytest.mark.parametrize("seed", range(5))
def test_every_replicate_is_its_own_curve_interpolated(seed):
    _, values = falling(np.random.default_rng(seed), 7, 40)
    target = float(np.sqrt(values[0, 2, LOSS] * values[0, 4, LOSS]))
    (place,) = Curve(values, (True, True, False)).positions(LOSS, target)
    for row, found in zip(values, place.values, strict=True):
        x, y = np.log(row[::-1, L0]), np.log(row[::-1, LOSS])
        at = np.interp(np.log(target), y, x)
        assert found[L0] == pytest.approx(np.exp(at), rel=1e-10)
        assert found[COUNT] == pytest.approx(np.interp(at, x[::-1], row[:, COUNT]), rel=1e-10)
    assert place.unreached_share == 0


def test_a_replicate_that_does_not_reach_stops_at_its_end_and_is_counted():
    base = np.array([[2, 0.8, 3], [4, 0.4, 5], [8, 0.2, 9]], float)
    short = base.copy()
    short[2, LOSS] = 0.31  # its smallest loss
    law = Curve(np.stack([base, base, base, base, short]), (True, True, False))
    (place,) = law.positions(LOSS, 0.3)
    assert place.unreached_share == 0.25
    np.testing.assert_array_equal(place.values[4], short[2])
    assert place.values[4, LOSS] == 0.31
    assert (place.values[:4, LOSS] == 0.3).all()


def test_a_replicate_with_several_crossings_takes_the_one_nearest_in_l0():
    base = np.array([[2, 0.8, 3], [4, 0.5, 5], [8, 0.3, 6], [16, 0.2, 9]], float)
    bumpy = base.copy()
    bumpy[:, LOSS] = [0.8, 0.35, 0.45, 0.2]  # meets 0.4 three times
    plain = Curve(np.stack([base, bumpy]), (True, False, False))
    (place,) = plain.positions(LOSS, 0.4)
    assert place.values[0, L0] == pytest.approx(4 * 2**0.5)
    assert place.values[1, L0] == pytest.approx(4 * 2**0.5)  # not 2·2^(8/9) nor 8·2^0.2


def test_a_replicate_below_zero_leaves_logarithms_to_the_others():
    base = np.array([[2, 0.8, 3], [8, 0.2, 9]], float)
    negative = np.array([[2, 0.8, 3], [8, -0.2, 9]], float)
    (place,) = Curve(np.stack([base, negative]), (True, True, False)).positions(LOSS, 0.4)
    assert place.values[0, L0] == pytest.approx(4)  # log: halfway
    assert place.values[1, L0] == pytest.approx(2 * 4**0.4)  # linear: 0.4 of the way


def test_replicates_reorder_by_their_own_l0():
    base = np.array([[4, 0.5, 3], [4.2, 0.4, 5], [8, 0.2, 9]], float)
    swapped = base.copy()
    swapped[:2, L0] = [4.3, 4.1]
    (place,) = Curve(np.stack([base, swapped]), (True, False, False)).positions(L0, 4.2)
    assert place.values[1, LOSS] == pytest.approx(0.4 + 0.1 * np.log(4.2 / 4.1) / np.log(4.3 / 4.1))


def test_estimate_takes_the_central_95_percent():
    found = estimate_with_interval(np.concatenate([[0.5], np.arange(1001) / 1000]))
    assert found == (0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert estimate_with_interval(np.array([0.5])) == (0.5, None, None)
    assert estimate_with_interval(np.array([np.nan, 1, 2])) == (None, None, None)
    assert estimate_with_interval(np.array([1.5, np.nan, 1, 2])).low == pytest.approx(1.025)
    assert estimate_with_interval(np.array([7.0, *[7.1] * 39, 6.1])) == (7.0, 7.0, pytest.approx(7.1))


def test_centred_replicates_keep_their_spread_around_the_estimate():
    moved = centre_replicates(10.0, np.array([12.0, 14.0, 16.0]), expansion=1.3)
    np.testing.assert_allclose(moved, 10 + 1.3 * np.array([-2, 0, 2]))
    assert len(centre_replicates(10.0, np.array([12.0, 14.0]), expansion=np.inf)) == 0


# ---------------------------------------------------------------------------------------------- coverage


def test_intervals_cover_the_true_l0_in_simulation():
    """Documents share a difficulty; the true loss at L0 4, 8, 16, 32 is 1.2·L0^-0.6, so 0.3 is met at L0 10.08."""
    rng, clusters, times = np.random.default_rng(4), 60, 400
    l0 = np.array([4.0, 8, 16, 32])
    truth = (1.2 / 0.3) ** (1 / 0.6)
    weights, hits, widths = replicate_weights(clusters, 400), 0, []
    for _ in range(times):
        tokens = rng.integers(200, 1500, clusters)
        shared = 1 + 0.4 * rng.normal(size=clusters)
        own = 0.1 * rng.normal(size=(clusters, 4))
        nats = tokens[:, None] * 1.2 * l0**-0.6 * (shared[:, None] + own)
        loss = nats.sum(0) / tokens.sum()
        drawn = (weights @ nats) / (weights @ tokens)[:, None]
        expansion = interval_expansion(tokens)
        replicates = np.stack([centre_replicates(loss[i], drawn[:, i], expansion) for i in range(4)], axis=1)
        values = np.stack([np.broadcast_to(l0, (401, 4)), np.concatenate([loss[None], replicates])], axis=-1)
        found = estimate_with_interval(Curve(values, (True, True)).positions(1, 0.3)[0].values[:, 0])
        assert found.low is not None
        assert found.high is not None
        hits += found.low < truth < found.high
        widths.append((found.high - found.low) / found.value)
    assert 0.91 < hits / times < 0.98  # 0.95 ± 3.7 simulation errors
    assert 0.2 < np.median(widths) < 0.5  # worth quoting, and not trivially wide


def test_centring_makes_the_interval_of_dead_features_cover():
    """Plain percentiles never cover: a feature that fires in one document is dead in a third of the replicates."""
    rng, clusters, width, times = np.random.default_rng(8), 40, 300, 150
    rates = rng.exponential(0.06, width)  # chance to fire in a document
    expected = ((1 - rates) ** clusters).sum()
    weights, plain, moved = replicate_weights(clusters, 200), 0, 0
    expansion = interval_expansion(np.full(clusters, 700))
    for _ in range(times):
        fires = rng.random((clusters, width)) < rates
        dead = float((fires.sum(0) == 0).sum())
        drawn = ((weights @ fires) == 0).sum(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        plain += low <= expected <= high
        found = estimate_with_interval(np.concatenate([[dead], centre_replicates(dead, drawn, expansion)]))
        assert found.low is not None
        assert found.high is not None
        moved += found.low <= expected <= found.high
    assert plain / times < 0.3
    assert moved / times > 0.85
