"""Dead features that start anew: which, where, with what threshold; and that resuming repeats it."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine.resample import is_due, resample
from jumpahead.engine.step import step
from tests.engine.cases import CASES, activations, assert_same_bytes, clone, layer, scrambled

TOKENS, D, WIDTH = 64, 12, 80


def prepared(case, dead: int, **changes):
    """A state with `dead` dead features, and a batch's residuals."""
    state = scrambled(case, D, WIDTH, 5, resample_every=6, revive_until=40, **changes)
    state.silent[:] = 3
    state.silent[:dead] = state.arch.recipe.dead_after + 7
    x = activations(TOKENS, D, 71)
    return state, layer("plain").centre(x, state.p["b_dec"]), activations(TOKENS, D, 72)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_dead_features_point_along_residuals_and_fire_as_often_as_others(case):
    state, centred, error = prepared(case, 9)
    before = clone(state)
    l0 = 5.0
    assert resample(state, centred, error, l0, layer("plain")) == 9
    rows = state.p["W_dec"][:9]
    assert torch.equal(rows, state.p["W_enc"][:9])
    cosine = rows @ (-error / error.norm(dim=1, keepdim=True)).T
    token = cosine.argmax(1)
    assert cosine.amax(1).min() > 1 - 1e-12
    assert len(set(token.tolist())) == 9, "no token is drawn twice"
    assert torch.equal(state.p["W_dec"][9:], before.p["W_dec"][9:])
    assert (state.silent[:9] == 0).all()
    assert torch.equal(state.silent[9:], before.silent[9:])
    assert (state.last[:9] == state.t).all()
    for name in state.arch.trained:
        assert torch.equal(state.p[name][9:], before.p[name][9:]), name
    for name, moment in state.v.items():
        if name != "b_dec":
            torch.testing.assert_close(moment[4], before.v[name][9:].mean(0))
    theta = state.arch.derive(state.p).get("theta")
    if theta is not None:  # at or above it lie as many tokens as features have on average: 64·5/80 = 4
        often = (centred.x @ rows.T >= theta[:9] * (1 - 1e-12)).sum(0)
        assert (often == 4).all()


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.label)
def test_at_most_half_as_many_at_once_as_there_are_tokens(case):
    state, centred, error = prepared(case, 60)
    assert resample(state, centred, error, 5.0, layer("plain")) == TOKENS // 2
    assert int((state.silent == 0).sum()) == TOKENS // 2


def test_nothing_to_do_changes_nothing():
    state, centred, error = prepared(CASES[0], 0)
    before = clone(state)
    assert resample(state, centred, error, 5.0, layer("plain")) == 0
    assert_same_bytes(state, before)
    state, centred, error = prepared(CASES[0], 7)
    before = clone(state)
    assert resample(state, centred, torch.zeros_like(error), 5.0, layer("plain")) == 0, "nothing is left to explain"
    assert_same_bytes(state, before)


def test_it_is_due_every_so_many_steps_until_reviving_ends():
    state, _, _ = prepared(CASES[0], 0)
    due = []
    for state.t in range(1, 60):
        if is_due(state):
            due.append(state.t)
    assert due == [6, 12, 18, 24, 30, 36]
    never = scrambled(CASES[0], D, WIDTH, 5)
    assert not any(is_due(never) for never.t in range(1, 60))


@pytest.mark.parametrize("name", ["plain", "cpu"])
def test_a_step_that_resamples_is_repeated_bit_by_bit(name):
    state, _, _ = prepared(CASES[0], 9)
    state.t = 17
    twin, kernels = clone(state), layer(name)
    for one in (state, twin):
        for i in range(8):  # step 18 resamples
            step(one, activations(TOKENS, D, 300 + i), 0.003, 1.0, kernels)
    assert_same_bytes(state, twin)
    assert (state.last[:9] >= 18).all()
