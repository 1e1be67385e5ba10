"""The largest of a whole batch: exact, whatever the guess, the layer and the product; ties by a stated rule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from jumpahead.engine import step
from jumpahead.engine.batch_topk import GUESSES, guesses, select
from jumpahead.engine.kernels.numba import Compiled
from jumpahead.engine.kernels.numba.product import PRODUCTS, is_exact
from jumpahead.sae.base import DEAD, MAIN, Knobs, LargestOfBatch
from tests.engine.cases import CASES, LAYERS, activations, assert_same_bytes, clone, draw, layer, scrambled
from tests.engine.test_step_is_exact import adversarial, check_layout, dense, dyadic

layers = pytest.mark.parametrize("name", LAYERS)
CASE = next(case for case in CASES if case.architecture == "batchtopk" and case.options.get("aux") == 0.21)


class Counting:
    """A kernel layer that remembers how many entries each call of `support` returned."""

    def __init__(self, kernels):
        self.kernels, self.sizes = kernels, []

    def support(self, *args):
        found = self.kernels.support(*args)
        self.sizes.append(len(found.pre))
        return found

    def __getattr__(self, name):
        return getattr(self.kernels, name)


def selected(kernels, x, w, b, selection):
    """(support, the smallest selected π)."""
    kernels = layer(kernels) if isinstance(kernels, str) else kernels
    return select(kernels.centre(x, torch.zeros(x.shape[1], dtype=x.dtype)), kernels.encoder(w), b, selection, kernels)


def wanted_of(pre, n):
    """Python's own sort: the n largest positive of pre [B, M], of equal ones the lower feature, the earlier token."""
    entries = [(i, j) for i in range(pre.shape[0]) for j in range(pre.shape[1]) if pre[i, j] > 0]
    found = torch.zeros(pre.shape, dtype=torch.bool)
    for i, j in sorted(entries, key=lambda at: (-pre[at].item(), at[1], at[0]))[:n]:
        found[i, j] = True
    return found


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0.04, 0.5, 3, 7.3, 11.2])
def test_exactly_n_are_kept_and_ties_go_to_the_lower_feature_then_to_the_earlier_token(name, dtype, k):
    x, w, b = dyadic(23, 5, 40, seed=round(10 * k), dtype=dtype, levels=2)
    x[11:22], w[20:], b[20:] = x[:11], w[:20], b[:20]
    pre, n = x @ w.T + b, max(1, round(k * 23))
    for guess in (0.0, 0.3, 2.0):
        found, least = selected(name, x, w, b, LargestOfBatch(k, guess))
        check_layout(found, 23, 40)
        assert found.part is None
        assert len(found.pre) == n < (pre > 0).sum()
        assert torch.equal(dense(found, 40) > 0, wanted_of(pre, n))
        assert torch.equal(found.pre.double(), pre[found.token.long(), found.feature.long()].double())
        assert least == found.pre.min().item()
    at = pre == least
    assert 0 < (at & (dense(found, 40) > 0)).sum() < at.sum(), "no tie was decided"


@layers
@pytest.mark.parametrize("k", [30.0, 1000.0])
def test_where_fewer_are_positive_than_asked_for_all_of_them_are_kept(name, k):
    x, w, b = dyadic(9, 4, 33, seed=7, dtype=torch.float64)
    b -= 0.5
    pre = x @ w.T + b
    assert 0 < (pre > 0).sum() < 9 * 30
    found, least = selected(name, x, w, b, LargestOfBatch(k, 0.3))
    check_layout(found, 9, 33)
    assert torch.equal(dense(found, 33) > 0, pre > 0)
    assert least == pre[pre > 0].min()


@layers
def test_where_none_is_positive_none_is_kept(name):
    x, w, b = dyadic(9, 4, 33, seed=7, dtype=torch.float32)
    found, least = selected(name, x, w, b - 100, LargestOfBatch(3, 0.3))
    check_layout(found, 9, 33)
    assert (len(found.pre), least) == (0, None)


@layers
def test_of_one_token_they_are_its_k_largest(name):
    x, w, b = draw(1, 6, seed=1).float(), draw(50, 6, seed=2).float(), draw(50, seed=3).float()
    found, least = selected(name, x, w, b, LargestOfBatch(4, 1.0))
    best = torch.topk((x @ w.T + b)[0], 4)
    assert sorted(found.feature.tolist()) == sorted(best.indices.tolist())
    assert least == pytest.approx(best.values[-1].item(), rel=1e-6)


GUESSED = [0.0, -1.0, 1e-30, 0.01, 0.5, 1.0, 3.0, 1e6, 1e30, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("kind", ["ordinary", "constant", "massive", "cancelling", "bias", "tiny"])
@pytest.mark.parametrize("has_dead", [False, True])
def test_the_guess_the_layer_and_the_product_change_no_bit(kind, has_dead):
    x, w, b = adversarial(kind)
    dead = torch.arange(len(w)) % 3 == 0 if has_dead else None
    supports = {}
    kernels = [layer(name) for name in LAYERS] + [Compiled(product) for product in PRODUCTS if is_exact(product)]
    if kind == "cancelling":  # float64's own rounding shows in a float32 here, and layers add in different orders
        kernels = kernels[1:]
    for one in kernels:
        for guess in GUESSED:
            found = selected(one, x, w, b, LargestOfBatch(4.4, guess, dead, 5))
            check_layout(found.support, len(x), len(w))
            supports[one.name, guess] = found
    first = next(iter(supports.values()))
    main = torch.ones_like(first.support.pre) if dead is None else first.support.part & MAIN
    assert main.sum() == round(4.4 * len(x))
    for found in supports.values():
        assert found.least == first.least
        for ours, theirs in zip(found.support, first.support, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_guesses_fall_to_zero():
    for expected in (2.5, 1e-20, 1e30):
        found = guesses(expected)
        assert len(found) == GUESSES + 1
        assert expected > found[0]
        assert found[-1] == 0
        assert all(a > b for a, b in pairwise(found))
    assert [guesses(expected) for expected in (0.0, -2.0, math.inf, math.nan)] == [[0.0]] * 4


@layers
def test_a_good_guess_looks_at_few_entries_and_once(name):
    x, w, b = draw(80, 12, seed=1).float(), draw(600, 12, seed=2).float() / 12**0.5, torch.zeros(600)
    least = selected(name, x, w, b, LargestOfBatch(3, 0.0)).least
    good, high = Counting(layer(name)), Counting(layer(name))
    assert selected(good, x, w, b, LargestOfBatch(3, least)).least == least
    assert len(good.sizes) == 1
    assert 240 <= good.sizes[0] < 1000
    assert selected(high, x, w, b, LargestOfBatch(3, 3 * least)).least == least
    assert len(high.sizes) == 3
    assert high.sizes[0] < high.sizes[1] < 240 <= high.sizes[2]


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [False, True])
def test_dead_features_are_a_second_part_of_each_token(name, dtype, few):
    x, w, b = dyadic(25, 4, 48, seed=9, dtype=dtype, levels=2)
    w[24:], b[24:] = w[:24], b[:24]
    pre = x @ w.T + b
    main = wanted_of(pre, 150)
    often = main.sum(0) - 25 * ((pre > 0).sum(0) == main.sum(0)).long()  # kept on some tokens, positive on more
    dead = torch.arange(48) == often.argmax() if few else torch.arange(48) % 2 == 0
    found, least = selected(name, x, w, b, LargestOfBatch(6, 0.2, dead, 3))
    check_layout(found, 25, 48)
    among = torch.stack([wanted_of(row[None].masked_fill(~dead, -1), 3)[0] for row in pre])
    assert (main & among).any()
    assert (among & ~main).any()
    assert torch.equal(dense(found, 48), MAIN * main.double() + DEAD * among.double())
    assert torch.equal(found.pre.double(), pre[found.token.long(), found.feature.long()].double())
    assert least == pre[main].min(), "of the main part alone"


@layers
def test_the_threshold_is_observed_before_dead_features_leave_for_their_block(name):
    """θ ← θ + r·(τ − θ), r = 0.2·lr/peak, 0.2 at most; τ over features in a block as well."""
    state = scrambled(CASE, 9, 40, seed=3, adam_epsilon=1.0)
    x, p = activations(30, 9, 4), state.p
    f = state.arch.activate_batch(p, (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"], Knobs())
    assert (f > 0).sum() == 30 * CASE.setting.value
    rare = f.masked_fill(f == 0, torch.inf).amin(0).argmin()
    state.silent[:] = 0
    state.silent[rare] = 10**9
    before, peak = p["threshold"].clone(), state.arch.recipe.lr
    for lr, rate in [(0.5 * peak, 0.1), (peak, 0.2), (7 * peak, 0.2)]:
        after = clone(state)
        result = step(after, x, lr, 1.0, layer(name))
        assert result.dense == 1, "the dead feature is in a block"
        torch.testing.assert_close(after.p["threshold"], before + rate * (f[f > 0].min() - before))


def test_at_evaluation_a_token_does_not_depend_on_its_batch():
    state = scrambled(CASE, 9, 40, seed=3)
    state.p["threshold"][:] = 0.4
    pre = draw(30, 40, seed=5)
    whole = state.arch.activate(state.p, pre)
    assert torch.equal(whole, torch.cat([state.arch.activate(state.p, row[None]) for row in pre]))
    assert not torch.equal(whole, state.arch.activate_batch(state.p, pre, Knobs()))


def test_steps_of_both_layers_and_from_any_threshold_have_the_same_bytes():
    """What the guess is decides nothing but θ itself."""
    found = []
    for threshold in (0.0, 0.05, 40.0):
        state = scrambled(CASE, 9, 40, seed=3, dtype=torch.float32)
        state.p["threshold"][:] = threshold
        step(state, activations(30, 9, 4, torch.float32), 0.003, 1.0, layer("cpu"))
        state.p["threshold"][:] = 0.0
        found.append(state)
    for other in found[1:]:
        assert_same_bytes(other, found[0])
