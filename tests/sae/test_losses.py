"""Each `loss`, the oracle of every other test, against the paper written once more: in numpy, token by token.

Constants that the paper holds fixed (stop-gradients) are separate arguments here, so that finite differences give the
gradient the paper means.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from jumpahead.sae.gradients import StepInputs
from tests.engine.cases import CASES, Case, activations, random_state
from tests.sae.variants import loss_terms, one_per

D, WIDTH, TOKENS, SPARSITY = 4, 9, 7, 0.23


def relu(z):
    return np.maximum(z, 0.0)


def jumprelu(p, fixed, x, options, k, dead):
    """mean ‖x − x̂‖² + λ·‖f‖₀, or what stands for ‖f‖₀; k: the requested L0.

    θ is not differentiated here (test_ste_matches_true_derivative.py does).
    """
    theta = np.exp(fixed["log_threshold"]) if "log_threshold" in fixed else fixed["threshold"]
    error, l0, on = 0.0, np.zeros(len(x)), np.zeros(WIDTH)
    for i, row in enumerate(x):
        pi = p["W_enc"] @ (row - p["b_dec"]) + p["b_enc"]
        f = pi * (pi > theta)
        error += ((row - p["W_dec"].T @ f - p["b_dec"]) ** 2).sum() / len(x)
        if options["aux_weight"]:  # + α·‖e − ê‖², e a constant, ê from the d/2 largest ReLU(π) among the dead
            fixed_pi = fixed["W_enc"] @ (row - fixed["b_dec"]) + fixed["b_enc"]
            e = row - fixed["W_dec"].T @ (fixed_pi * (fixed_pi > theta)) - fixed["b_dec"]
            kept = sorted(np.flatnonzero(dead), key=lambda j: (-pi[j], j))[: D // 2]
            missed = e - sum((relu(pi[j]) * p["W_dec"][j] for j in kept), np.zeros(D))
            error += options["aux_weight"] * (missed**2).sum() / len(x)
        l0[i] = (pi > theta).sum()
        on += pi > theta
    if options["target"] == "batch":
        return error + SPARSITY * (l0.mean() / k - 1) ** 2
    if options["target"] == "token":
        return error + SPARSITY * np.mean([(one / k - 1) ** 2 for one in l0])
    if options["frequency_scale"] is not None:
        return error + SPARSITY * sum(p_j + p_j**2 / options["frequency_scale"] for p_j in on / len(x))
    return error + SPARSITY * l0.mean()


def anthropic(p, fixed, x, options, k, dead):
    """mean ‖x − x̂‖² + λ_S·Σ tanh(c·f·‖d‖) + λ_P·Σ ReLU(θ − π)·‖d‖, in the update's unit, and then in ours.

    There activations have norm √D: x, θ and biases are √D times as large, the loss D times, and SPARSITY is λ_S/D.
    """
    root = np.sqrt(D)
    theta = root * (np.exp(fixed["log_threshold"]) if "log_threshold" in fixed else fixed["threshold"])
    norms, total = np.sqrt((p["W_dec"] ** 2).sum(1)), 0.0
    penalised = np.ones(WIDTH, bool) if options["pre_activation_of"] == "all" else dead
    for row in root * x:
        pi = p["W_enc"] @ (row - root * p["b_dec"]) + root * p["b_enc"]
        f = pi * (pi > theta)
        total += ((row - p["W_dec"].T @ f - root * p["b_dec"]) ** 2).sum()
        total += SPARSITY * D * np.tanh(options["scale"] * f * norms).sum()
        total += options["pre_activation"] * (relu(theta - pi) * norms)[penalised].sum()
    return total / len(x) / D


def gated(p, fixed, x, options, k, dead):
    """mean ‖x − x̂‖² + ‖x − x̂_frozen(ReLU(π_gate))‖² + λ·Σ ReLU(π_gate)·(‖d‖ for RI-L1)."""
    total = 0.0
    for row in x:
        h = p["W_enc"] @ (row - p["b_dec"])
        gate, magnitude = h + p["b_enc"], np.exp(p["r_mag"]) * h + p["b_mag"]
        f = (gate > 0) * relu(magnitude)
        total += ((row - p["W_dec"].T @ f - p["b_dec"]) ** 2).sum()
        total += ((row - fixed["W_dec"].T @ relu(gate) - fixed["b_dec"]) ** 2).sum()
        norms = np.sqrt((p["W_dec"] ** 2).sum(1)) if options["norm"] == "ri-l1" else 1.0
        total += SPARSITY * (relu(gate) * norms).sum()
    return total / len(x)


def relu_ri_l1(p, fixed, x, options, k, dead):
    """mean ‖x − x̂‖² + λ·Σ f·‖d‖."""
    total = 0.0
    for row in x:
        f = relu(p["W_enc"] @ (row - p["b_dec"]) + p["b_enc"])
        total += ((row - p["W_dec"].T @ f - p["b_dec"]) ** 2).sum()
        total += SPARSITY * sum(f[j] * np.sqrt((p["W_dec"][j] ** 2).sum()) for j in range(WIDTH))
    return total / len(x)


def prolu(p, fixed, x, options, k, dead):
    """mean ‖x − x̂‖² + λ·Σ f·‖d‖, f = m where m > 0 and m + b > 0."""
    total = 0.0
    for row in x:
        m = p["W_enc"] @ (row - p["b_dec"]) + p["b_enc"]
        f = np.where((m > 0) & (m + p["b_gate"] > 0), m, 0.0)
        total += ((row - p["W_dec"].T @ f - p["b_dec"]) ** 2).sum()
        total += SPARSITY * (f * np.sqrt((p["W_dec"] ** 2).sum(1))).sum()
    return total / len(x)


def topk(p, fixed, x, options, k, dead):
    """mean ‖x − x̂‖² + α·(Var x/Var e)·mean ‖e − ê‖², e and both variances constants."""

    def reconstruct(p, row, k, among):
        pi = p["W_enc"] @ (row - p["b_dec"]) + p["b_enc"]
        kept = sorted(np.flatnonzero(among), key=lambda j: (-pi[j], j))[:k]
        return sum((relu(pi[j]) * p["W_dec"][j] for j in kept), np.zeros(D))

    everyone = np.ones(WIDTH, bool)
    loss = np.mean([((row - reconstruct(p, row, k, everyone) - p["b_dec"]) ** 2).sum() for row in x])
    if options["aux"] == 0 or not dead.any():
        return loss
    e = np.array([row - reconstruct(fixed, row, k, everyone) - fixed["b_dec"] for row in x])
    ratio = ((x - x.mean(0)) ** 2).sum() / ((e - e.mean(0)) ** 2).sum()
    k_aux = options["k_aux"] or D // 2
    missed = np.mean([((e[i] - reconstruct(p, row, k_aux, dead)) ** 2).sum() for i, row in enumerate(x)])
    return loss + options["aux"] * ratio * missed


def batchtopk(p, fixed, x, options, k, dead):
    """As topk, but x̂ from the k·B largest of the batch; ê from the k_aux largest of each token among the dead."""
    return nested(p, fixed, x, options, k, dead, {WIDTH: 1.0})


def matryoshka(p, fixed, x, options, k, dead):
    """As batchtopk, but Σ_g w_g·mean ‖x − x̂_g‖², x̂_g of the kept entries among the first m_g features."""
    shares, weights = options["groups"], options["weights"] or [1.0] * len(options["groups"])
    ends = [max(1, round(sum(shares[: g + 1]) * WIDTH)) for g in range(len(shares))]
    levels = {}
    for end, weight in zip(ends, weights, strict=True):
        levels[end] = levels.get(end, 0.0) + weight
    return nested(p, fixed, x, options, k, dead, levels)


def nested(p, fixed, x, options, k, dead, levels):
    """levels: m → the weight of the error of the first m features."""

    def pres(p):
        return np.array([p["W_enc"] @ (row - p["b_dec"]) + p["b_enc"] for row in x])

    def errors(p, m):
        pi = pres(p)
        entries = [(i, j) for i in range(len(x)) for j in range(WIDTH)]
        kept = sorted(entries, key=lambda at: (-pi[at], at[1], at[0]))[: k * len(x)]
        e = x - p["b_dec"]
        for i, j in kept:
            if j < m:
                e[i] = e[i] - relu(pi[i, j]) * p["W_dec"][j]
        return e

    loss = sum(weight * (errors(p, m) ** 2).sum() for m, weight in levels.items()) / len(x)
    if options["aux"] == 0 or not dead.any():
        return loss
    e, pi = errors(fixed, WIDTH), pres(p)
    ratio = ((x - x.mean(0)) ** 2).sum() / ((e - e.mean(0)) ** 2).sum()
    missed = 0.0
    for i in range(len(x)):
        chosen = sorted(np.flatnonzero(dead), key=lambda j: (-pi[i, j], j))[: options["k_aux"] or D // 2]
        missed += ((e[i] - sum((relu(pi[i, j]) * p["W_dec"][j] for j in chosen), np.zeros(D))) ** 2).sum() / len(x)
    return loss + options["aux"] * ratio * missed


PAPERS = {
    "jumprelu": jumprelu, "gated": gated, "topk": topk, "relu": relu_ri_l1, "batchtopk": batchtopk,
    "matryoshka": matryoshka, "anthropic": anthropic, "prolu": prolu,
}  # fmt: skip
cases = one_per(loss_terms, [case for case in CASES if case.architecture in PAPERS])


def setting_up(case: Case):
    state = random_state(case, D, WIDTH, seed=21)
    if case.setting.kind != "lambda":
        state.arch.setting = state.arch.setting._replace(value=3.0)
    dead = torch.arange(WIDTH) % 2 == 0
    step_inputs = StepInputs(SPARSITY, dead if state.arch.needs_dead_features else None)
    return state, activations(TOKENS, D, seed=5), step_inputs, dead.numpy()


def on_paper(case: Case, live, fixed, x, dead):
    options = asdict(case.arch().options) | {"aux_weight": case.arch().recipe.aux_weight}
    return PAPERS[case.architecture](live, fixed, x.numpy(), options, 3, dead)


@cases
def test_the_loss_is_the_papers(case):
    state, x, step_inputs, dead = setting_up(case)
    p = {name: tensor.numpy() for name, tensor in state.params.items()}
    wanted = on_paper(case, p, p, x, dead)
    assert state.arch.loss(state.params, x, step_inputs).item() == pytest.approx(wanted, rel=1e-12)
    assert wanted > 0.1


@cases
def test_the_gradient_is_the_papers_with_its_constants_held_fixed(case):
    state, x, step_inputs, dead = setting_up(case)
    names = [name for name in state.second_moments if "threshold" not in name]
    if case.architecture == "prolu" or (case.architecture == "anthropic" and state.arch.options.ste == "all"):
        names = ["W_dec"]  # others get the straight-through estimator's gradient, which is tested elsewhere
    leaves = {name: state.params[name].clone().requires_grad_() for name in names}
    found = torch.autograd.grad(
        state.arch.loss(state.params | leaves, x, step_inputs), [leaves[name] for name in names]
    )
    fixed = {name: tensor.numpy() for name, tensor in state.params.items()}
    step = 1e-6
    for name, gradient in zip(names, found, strict=True):
        wanted = np.zeros(gradient.shape)
        for place in np.ndindex(*gradient.shape):
            sides = []
            for sign in (1, -1):
                moved = {key: value.copy() for key, value in fixed.items()}
                moved[name][place] += sign * step
                sides.append(on_paper(case, moved, fixed, x, dead))
            wanted[place] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.abs(wanted).max() > 1e-3, f"{name} gets no gradient here"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.options.get("aux") == 0.21], ids=lambda case: case.label
)
def test_a_feature_that_is_both_active_and_dead_reconstructs_twice(case):
    """It fires again while AuxK still counts it: its gradient has both terms."""
    state, x, step_inputs, _ = setting_up(case)
    everyone = step_inputs._replace(dead=torch.ones(WIDTH, dtype=torch.bool))
    p = {name: tensor.numpy() for name, tensor in state.params.items()}
    wanted = on_paper(case, p, p, x, np.ones(WIDTH, bool))
    assert state.arch.loss(state.params, x, everyone).item() == pytest.approx(wanted, rel=1e-12)
