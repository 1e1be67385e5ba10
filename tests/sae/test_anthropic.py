"""The tanh penalty, the straight-through estimator in π and the pre-activation loss: by hand and in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from jumpahead.sae import ste
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.gradients import Counts, StepInputs
from jumpahead.sae.recipe import Setting
from jumpahead.sae.support import AboveThreshold, Entries
from tests.engine.cases import CASES, Case, activations, random_state
from tests.sae.test_ste_matches_true_derivative import (
    EPSILON,
    EPSILONS,
    FORMS,
    GRAD,
    PRE,
    SCALES,
    THETA,
    normal_density,
    normal_grid,
    trained,
)
from tests.sae.variants import loss_terms, one_per

ANTHROPIC = [case for case in CASES if case.architecture == "anthropic"]
D, NORM = 9, 1.7


def one_feature(form: str, theta: float, epsilon: float, **options):
    """A feature with ‖d‖ = 1.7 among 9 dimensions: (architecture, parameters, what `derive` gives)."""
    case = Case("anthropic", options, Setting("lambda", 0.1), {"threshold_form": form, "bandwidth": epsilon}, "")
    value = torch.tensor([theta], dtype=torch.float64)
    w_dec = torch.zeros(1, D, dtype=torch.float64)
    w_dec[0, 3] = NORM
    arch, p = case.arch(), {trained(form): value.log() if form == "log" else value, "W_dec": w_dec}
    return arch, p, arch.derive(p)


def entry_gradients(arch, p, v, pre, step_inputs):
    """Of one feature's entries [n]."""
    entries = Entries(pre, torch.zeros(len(pre), dtype=torch.int32))
    values = arch.values(entries, p, v)
    return arch.entry_gradients(
        entries, values, p, v, step_inputs, Counts(len(pre), (values[0] > 0).sum().double().reshape(1))
    )


def test_the_estimator_in_z_by_hand():
    z, theta = PRE.clone().requires_grad_(), THETA.clone().requires_grad_()
    d_z, d_theta = torch.autograd.grad(ste.jumprelu(z, theta, EPSILON, to_input=True), [z, theta], GRAD)
    # H = 0, 1, 0, 1; and (θ/ε)·K = 5 at .52 and .48, times 0.7 and −0.2
    assert d_z.flatten().tolist() == pytest.approx([0, 0.7 + 3.5, -1.0, 5.0], abs=1e-12)
    assert d_theta.tolist() == pytest.approx([-2.5], abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_rule_by_hand(form):
    """θ = 0.5, ε = 0.1, ‖d‖ = 1.7, c = 0.4·√9 = 1.2, λ/B = 0.006; dead, λ_P/B = 0.012/√9/4 = 0.001.

    f = 0, 0.52, 0, 1; the tanh's slope 0.006·1.2·1.7·(1 − tanh²(2.04·f)); in the window .52 and .48, (θ/ε)·K = 5.
    """
    arch, p, v = one_feature(form, 0.5, 0.1, scale=0.4, pre_activation=0.012)
    found = entry_gradients(
        arch, p, v, PRE.flatten(), StepInputs(sparsity_coefficient=0.024, dead=torch.tensor([True]))
    )
    tanh = [math.tanh(2.04 * f) for f in (0, 0.52, 0, 1)]
    slope = [0.006 * 2.04 * (1 - one**2) for one in tanh]
    incoming = [3.0 + slope[0], 0.7 + slope[1], -0.2 + slope[2], 5.0 + slope[3]]
    below_weight = [0.001, 0.0, 0.001, 0.0]
    chain = {"raw": 1.0, "log": 0.5}[form]
    d_pre = [
        (h + w) * g - 1.7 * q for h, w, g, q in zip((0, 1, 0, 1), (0, 5, 5, 0), incoming, below_weight, strict=True)
    ]
    d_threshold = [chain * (1.7 * q - w * g) for w, g, q in zip((0, 5, 5, 0), incoming, below_weight, strict=True)]
    given = (GRAD.flatten(),)
    assert found.pre.evaluate(given).tolist() == pytest.approx(d_pre, abs=1e-12)
    assert found.vectors["b_enc"].evaluate(given).tolist() == pytest.approx(d_pre, abs=1e-12)
    assert found.vectors[trained(form)].evaluate(given).tolist() == pytest.approx(d_threshold, abs=1e-12)
    below = [0.4, 0.0, 0.02, 0.0]  # ReLU(θ − π)
    shrink = [s * f / 1.7 + q * b for s, f, q, b in zip(slope, (0, 0.52, 0, 1), below_weight, below, strict=True)]
    assert found.shrink.tolist() == pytest.approx(shrink, abs=1e-12)


@pytest.mark.parametrize(("scale", "epsilon"), list(zip(SCALES, EPSILONS, strict=True)))
@pytest.mark.parametrize("form", FORMS)
def test_the_mean_in_the_preactivation_is_the_expected_losss_derivative(form, scale, epsilon):
    """z ~ N(m, s²): d/dm E[z·H(z − θ)] = P(z > θ) + θ·p(θ). The true derivative of f alone misses the second term."""
    theta, mean = 0.5 * scale, -0.2 * scale
    z = normal_grid(200_000, mean, scale)
    beyond = 0.5 * math.erfc((theta - mean) / (scale * math.sqrt(2)))
    wanted = beyond + theta * normal_density(theta, mean, scale)
    for kind, true in (("all", wanted), ("threshold", beyond)):
        arch, p, v = one_feature(form, theta, epsilon * scale, ste=kind)
        found = (
            entry_gradients(arch, p, v, z, StepInputs()).pre.evaluate((torch.full_like(z, 0.3 / len(z)),)).sum().item()
            / 0.3
        )
        assert found == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_the_penaltys_gradient_of_a_threshold_in_closed_form(form):
    """Half of the window is off, where the tanh's slope is that at 0: the mean is −cθ·(1 + (1 − tanh² cθ))/2·p(θ). The
    derivative of E[tanh(c·f)] is −tanh(cθ)·p(θ): alike for cθ ≪ 1, and cθ/2 times less where the tanh is flat."""
    for theta in (0.02, 0.5):
        arch, p, v = one_feature(form, theta, 0.02 * theta, scale=0.9)
        z, steep = normal_grid(2_000_000, 0.1, 1.3), 0.9 * math.sqrt(D) * NORM
        found = (
            entry_gradients(arch, p, v, z, StepInputs(sparsity_coefficient=0.8))
            .vectors[trained(form)]
            .evaluate((torch.zeros_like(z),))
            .sum()
            .item()
        )
        bent = (2 - math.tanh(steep * theta) ** 2) / 2
        chain = {"raw": 1.0, "log": theta}[form]
        wanted = -0.8 * steep * theta * bent * normal_density(theta, 0.1, 1.3) * chain
        assert found == pytest.approx(wanted, rel=0.01)


@one_per(loss_terms, ANTHROPIC)
def test_the_loss_does_not_depend_on_the_norms_of_decoder_rows(case):
    """d_j grows, and π_j, f_j and θ_j shrink, by a factor of each feature's own."""
    state, x = random_state(case, 6, 20, seed=3), activations(30, 6, 4)
    p, by = state.params, torch.linspace(0.4, 3.0, 20, dtype=torch.float64)
    name = state.arch.sparsity_parameter
    moved = p | {"W_dec": p["W_dec"] * by[:, None], "W_enc": p["W_enc"] / by[:, None], "b_enc": p["b_enc"] / by}
    moved |= {name: p[name] - by.log() if name == "log_threshold" else p[name] / by}
    step_inputs = StepInputs(0.07, torch.arange(20) % 3 == 0)
    losses = [state.arch.loss(one, x, step_inputs).item() for one in (p, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] > state.arch.loss(p, x, StepInputs(0.0)).item()


def test_dead_features_have_every_token_in_their_support_and_others_their_window():
    kind = ARCHITECTURES.get("anthropic")
    for options, penalised in (
        ({}, [False, True]),
        ({"pre_activation": 0.0}, 2 * [False]),
        ({"pre_activation_of": "all"}, 2 * [True]),
    ):
        case = Case("anthropic", options, Setting("lambda", 0.1), {"bandwidth": 0.1, "threshold_form": "raw"}, "")
        arch = case.arch()
        assert isinstance(arch, kind)
        p = {"threshold": torch.tensor([0.02, 0.3]), "W_dec": torch.ones(2, 4)}
        dead = torch.tensor([False, True]) if arch.needs_dead_features else None
        found = arch.selection(p, arch.derive(p), StepInputs(0.1, dead), training=True)
        assert isinstance(found, AboveThreshold)
        assert (found.lower == -torch.inf).tolist() == penalised
        below = [-0.03, 0.25]  # the first window reaches below zero
        assert found.lower.tolist() == pytest.approx(
            [-math.inf if d else b for d, b in zip(penalised, below, strict=True)]
        )
        assert arch.needs_dead_features == (options == {})
