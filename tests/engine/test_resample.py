"""Resampling of dead features: which, their directions and thresholds, and that it is reproducible."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine.resample import is_resampling_step, resample_dead_features
from jumpahead.engine.step import train_step
from tests.engine.cases import CASES, activations, assert_same_bytes, clone, layer, random_state

TOKENS, D, WIDTH = 64, 12, 80


def state_with_dead_features(case, dead: int, **changes):
    """Return a state with `dead` dead features, a centred batch, and random residuals."""
    state = random_state(case, D, WIDTH, 5, resample_every=6, revive_until_step=40, **changes)
    state.tokens_since_fired[:] = 3
    state.tokens_since_fired[:dead] = state.arch.recipe.dead_after_tokens + 7
    x = activations(TOKENS, D, 71)
    return state, layer("torch").centre_input(x, state.params["b_dec"]), activations(TOKENS, D, 72)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_resampled_features_point_along_residuals_and_fire_as_often_as_others(case):
    state, centred, error = state_with_dead_features(case, 9)
    before = clone(state)
    l0 = 5.0
    assert resample_dead_features(state, centred, error, l0, layer("torch")) == 9
    rows = state.params["W_dec"][:9]
    assert torch.equal(rows, state.params["W_enc"][:9])
    cosine = rows @ (-error / error.norm(dim=1, keepdim=True)).T
    token = cosine.argmax(1)
    assert cosine.amax(1).min() > 1 - 1e-12
    assert len(set(token.tolist())) == 9, "no token is drawn twice"
    assert torch.equal(state.params["W_dec"][9:], before.params["W_dec"][9:])
    assert (state.tokens_since_fired[:9] == 0).all()
    assert torch.equal(state.tokens_since_fired[9:], before.tokens_since_fired[9:])
    assert (state.last_touched[:9] == state.steps_done).all()
    for name in state.arch.trained_vectors:
        assert torch.equal(state.params[name][9:], before.params[name][9:]), name
    for name, moment in state.second_moments.items():
        if name != "b_dec":
            torch.testing.assert_close(moment[4], before.second_moments[name][9:].mean(0))
    for name, moment in state.first_moments.items():
        assert (moment[:9] == 0).all() or name == "b_dec"
        assert torch.equal(moment[9:], before.first_moments[name][9:])
    theta = state.arch.derive(state.params).get("theta")
    if theta is not None:  # as many tokens reach it as features have on average: 64·5/80 = 4
        reaching = (centred.x @ rows.T >= theta[:9] * (1 - 1e-12)).sum(0)
        assert (reaching == 4).all()


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.label)
def test_at_most_half_as_many_features_as_tokens_are_resampled(case):
    state, centred, error = state_with_dead_features(case, 60)
    assert resample_dead_features(state, centred, error, 5.0, layer("torch")) == TOKENS // 2
    assert int((state.tokens_since_fired == 0).sum()) == TOKENS // 2


def test_nothing_changes_without_dead_features_or_residuals():
    state, centred, error = state_with_dead_features(CASES[0], 0)
    before = clone(state)
    assert resample_dead_features(state, centred, error, 5.0, layer("torch")) == 0
    assert_same_bytes(state, before)
    state, centred, error = state_with_dead_features(CASES[0], 7)
    before = clone(state)
    assert resample_dead_features(state, centred, torch.zeros_like(error), 5.0, layer("torch")) == 0, (
        "nothing is left to explain"
    )
    assert_same_bytes(state, before)


def test_resampling_steps():
    state, _, _ = state_with_dead_features(CASES[0], 0)
    steps = []
    for state.steps_done in range(1, 60):
        if is_resampling_step(state):
            steps.append(state.steps_done)
    assert steps == [6, 12, 18, 24, 30, 36]
    disabled = random_state(CASES[0], D, WIDTH, 5)
    assert not any(is_resampling_step(disabled) for disabled.steps_done in range(1, 60))


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_a_resampling_step_is_reproducible(name):
    state, _, _ = state_with_dead_features(CASES[0], 9)
    state.steps_done = 17
    twin, kernels = clone(state), layer(name)
    for one in (state, twin):
        for i in range(8):  # step 18 resamples
            train_step(one, activations(TOKENS, D, 300 + i), 0.003, 1.0, kernels)
    assert_same_bytes(state, twin)
    assert (state.last_touched[:9] >= 18).all()
