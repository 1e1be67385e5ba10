"""The largest of a whole batch: exact, whatever the guess, the layer and the product; ties by a stated rule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from jumpahead.engine import train_step
from jumpahead.engine.batch_topk import MAX_GUESSES, decreasing_guesses, select_support
from jumpahead.engine.kernels.numba import NumbaKernels
from jumpahead.engine.kernels.numba.matmul_backends import BACKENDS, is_accurate
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.support import DEAD, MAIN, TopKOfBatch
from tests.engine.cases import (
    CASES,
    LAYERS,
    activations,
    assert_same_bytes,
    clone,
    layer,
    random_state,
    standard_normal,
)
from tests.engine.supports import (
    assert_layout,
    data_with_exact_sums,
    data_with_large_rounding,
    to_dense,
)

layers = pytest.mark.parametrize("name", LAYERS)
CASE = next(case for case in CASES if case.architecture == "batchtopk" and case.options.get("aux") == 0.21)


class CountingKernels:
    """A kernel layer that records how many entries each call of `find_support` returned."""

    def __init__(self, kernels):
        self.kernels, self.sizes = kernels, []

    def find_support(self, *args):
        found = self.kernels.find_support(*args)
        self.sizes.append(len(found.pre))
        return found

    def __getattr__(self, name):
        return getattr(self.kernels, name)


def select(kernels, x, w, b, selection):
    """Return the support and the smallest selected π."""
    kernels = layer(kernels) if isinstance(kernels, str) else kernels
    return select_support(
        kernels.centre_input(x, torch.zeros(x.shape[1], dtype=x.dtype)),
        kernels.prepare_encoder(w),
        b,
        selection,
        kernels,
    )


def expected_selection(pre, n):
    """Return the n largest positive of pre [B, M] by sorting in Python; ties go to the lower feature, then token."""
    entries = [(i, j) for i in range(pre.shape[0]) for j in range(pre.shape[1]) if pre[i, j] > 0]
    found = torch.zeros(pre.shape, dtype=torch.bool)
    for i, j in sorted(entries, key=lambda at: (-pre[at].item(), at[1], at[0]))[:n]:
        found[i, j] = True
    return found


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0.04, 0.5, 3, 7.3, 11.2])
def test_exactly_n_are_selected_and_ties_go_to_the_lower_feature_then_token(name, dtype, k):
    x, w, b = data_with_exact_sums(23, 5, 40, seed=round(10 * k), dtype=dtype, levels=2)
    x[11:22], w[20:], b[20:] = x[:11], w[:20], b[:20]
    pre, n = x @ w.T + b, max(1, round(k * 23))
    for guess in (0.0, 0.3, 2.0):
        found, smallest = select(name, x, w, b, TopKOfBatch(k, guess))
        assert_layout(found, 23, 40)
        assert found.part is None
        assert len(found.pre) == n < (pre > 0).sum()
        assert torch.equal(to_dense(found, 40) > 0, expected_selection(pre, n))
        assert torch.equal(found.pre.double(), pre[found.token.long(), found.feature.long()].double())
        assert smallest == found.pre.min().item()
    at = pre == smallest
    assert 0 < (at & (to_dense(found, 40) > 0)).sum() < at.sum(), "no tie was decided"


@layers
@pytest.mark.parametrize("k", [30.0, 1000.0])
def test_all_positive_entries_are_selected_if_fewer_than_requested(name, k):
    x, w, b = data_with_exact_sums(9, 4, 33, seed=7, dtype=torch.float64)
    b -= 0.5
    pre = x @ w.T + b
    assert 0 < (pre > 0).sum() < 9 * 30
    found, smallest = select(name, x, w, b, TopKOfBatch(k, 0.3))
    assert_layout(found, 9, 33)
    assert torch.equal(to_dense(found, 33) > 0, pre > 0)
    assert smallest == pre[pre > 0].min()


@layers
def test_nothing_is_selected_if_no_entry_is_positive(name):
    x, w, b = data_with_exact_sums(9, 4, 33, seed=7, dtype=torch.float32)
    found, smallest = select(name, x, w, b - 100, TopKOfBatch(3, 0.3))
    assert_layout(found, 9, 33)
    assert (len(found.pre), smallest) == (0, None)


@layers
def test_a_batch_of_one_token_gets_its_k_largest(name):
    x, w, b = (
        standard_normal(1, 6, seed=1).float(),
        standard_normal(50, 6, seed=2).float(),
        standard_normal(50, seed=3).float(),
    )
    found, smallest = select(name, x, w, b, TopKOfBatch(4, 1.0))
    best = torch.topk((x @ w.T + b)[0], 4)
    assert sorted(found.feature.tolist()) == sorted(best.indices.tolist())
    assert smallest == pytest.approx(best.values[-1].item(), rel=1e-6)


GUESSES = [0.0, -1.0, 1e-30, 0.01, 0.5, 1.0, 3.0, 1e6, 1e30, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("kind", ["ordinary", "constant", "massive", "cancelling", "bias", "tiny"])
@pytest.mark.parametrize("has_dead", [False, True])
def test_the_guess_the_layer_and_the_product_change_no_bit(kind, has_dead):
    x, w, b = data_with_large_rounding(kind)
    dead = torch.arange(len(w)) % 3 == 0 if has_dead else None
    supports = {}
    kernels = [layer(name) for name in LAYERS] + [NumbaKernels(product) for product in BACKENDS if is_accurate(product)]
    if kind == "cancelling":  # float64's rounding shows in a float32 here, and layers add in different orders
        kernels = kernels[1:]
    for one in kernels:
        for guess in GUESSES:
            found = select(one, x, w, b, TopKOfBatch(4.4, guess, dead, 5))
            assert_layout(found.support, len(x), len(w))
            supports[one.name, guess] = found
    first = next(iter(supports.values()))
    main = torch.ones_like(first.support.pre) if dead is None else first.support.part & MAIN
    assert main.sum() == round(4.4 * len(x))
    for found in supports.values():
        assert found.smallest == first.smallest
        for ours, theirs in zip(found.support, first.support, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_guesses_decrease_to_zero():
    for expected in (2.5, 1e-20, 1e30):
        found = decreasing_guesses(expected)
        assert len(found) == MAX_GUESSES + 1
        assert expected > found[0]
        assert found[-1] == 0
        assert all(a > b for a, b in pairwise(found))
    assert [decreasing_guesses(expected) for expected in (0.0, -2.0, math.inf, math.nan)] == [[0.0]] * 4


@layers
def test_a_good_guess_takes_one_search_of_few_entries(name):
    x, w, b = (
        standard_normal(80, 12, seed=1).float(),
        standard_normal(600, 12, seed=2).float() / 12**0.5,
        torch.zeros(600),
    )
    smallest = select(name, x, w, b, TopKOfBatch(3, 0.0)).smallest
    good, high = CountingKernels(layer(name)), CountingKernels(layer(name))
    assert select(good, x, w, b, TopKOfBatch(3, smallest)).smallest == smallest
    assert len(good.sizes) == 1
    assert 240 <= good.sizes[0] < 1000
    assert select(high, x, w, b, TopKOfBatch(3, 3 * smallest)).smallest == smallest
    assert len(high.sizes) == 3
    assert high.sizes[0] < high.sizes[1] < 240 <= high.sizes[2]


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [False, True])
def test_dead_features_are_a_second_part_of_each_token(name, dtype, few):
    x, w, b = data_with_exact_sums(25, 4, 48, seed=9, dtype=dtype, levels=2)
    w[24:], b[24:] = w[:24], b[:24]
    pre = x @ w.T + b
    main = expected_selection(pre, 150)
    score = main.sum(0) - 25 * ((pre > 0).sum(0) == main.sum(0)).long()  # selected on some tokens, positive on more
    dead = torch.arange(48) == score.argmax() if few else torch.arange(48) % 2 == 0
    found, smallest = select(name, x, w, b, TopKOfBatch(6, 0.2, dead, 3))
    assert_layout(found, 25, 48)
    among = torch.stack([expected_selection(row[None].masked_fill(~dead, -1), 3)[0] for row in pre])
    assert (main & among).any()
    assert (among & ~main).any()
    assert torch.equal(to_dense(found, 48), MAIN * main.double() + DEAD * among.double())
    assert torch.equal(found.pre.double(), pre[found.token.long(), found.feature.long()].double())
    assert smallest == pre[main].min(), "of the main part alone"


@layers
def test_the_inference_threshold_includes_dead_features_in_a_block(name):
    """θ ← θ + r·(τ − θ), r = 0.2·lr/peak, 0.2 at most; τ over features in a block as well."""
    state = random_state(CASE, 9, 40, seed=3, adam_epsilon=1.0)
    x, p = activations(30, 9, 4), state.params
    f = state.arch.activate_batch(p, (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"], StepInputs())
    assert (f > 0).sum() == 30 * CASE.setting.value
    rare = f.masked_fill(f == 0, torch.inf).amin(0).argmin()
    state.tokens_since_fired[:] = 0
    state.tokens_since_fired[rare] = 10**9
    before, peak = p["threshold"].clone(), state.arch.recipe.lr
    for lr, rate in [(0.5 * peak, 0.1), (peak, 0.2), (7 * peak, 0.2)]:
        after = clone(state)
        result = train_step(after, x, lr, 1.0, layer(name))
        assert result.num_dense_features == 1, "the dead feature is in a block"
        torch.testing.assert_close(after.params["threshold"], before + rate * (f[f > 0].min() - before))


def test_at_inference_a_token_does_not_depend_on_its_batch():
    state = random_state(CASE, 9, 40, seed=3)
    state.params["threshold"][:] = 0.4
    pre = standard_normal(30, 40, seed=5)
    whole = state.arch.activate(state.params, pre)
    assert torch.equal(whole, torch.cat([state.arch.activate(state.params, row[None]) for row in pre]))
    assert not torch.equal(whole, state.arch.activate_batch(state.params, pre, StepInputs()))


def test_the_guess_changes_no_byte_of_a_step():
    """The inference threshold is the guess; apart from itself it influences nothing."""
    found = []
    for threshold in (0.0, 0.05, 40.0):
        state = random_state(CASE, 9, 40, seed=3, dtype=torch.float32)
        state.params["threshold"][:] = threshold
        train_step(state, activations(30, 9, 4, torch.float32), 0.003, 1.0, layer("numba"))
        state.params["threshold"][:] = 0.0
        found.append(state)
    for other in found[1:]:
        assert_same_bytes(other, found[0])
