"""The straight-through estimator's mean is the derivative of the expected loss.

For z with density p: d/dθ E[H(z − θ)] = −p(θ) and d/dθ E[z·H(z − θ)] = −θ·p(θ), exactly. The mean pseudo-derivative
must approach both for a small ε, whatever the unit of z, through every parametrisation of θ, in `ste.py` (autograd) and
in `jumprelu.py`'s rule (the engine). Published implementations miss by 2 (step after the jump), by 1/ε (the kernel
divided twice) or by θ (log θ without the chain factor); all tests with ε = 1 pass those.

Draws are quantiles on a grid, not random: the only error left is the curvature of p within the window.
"""

from __future__ import annotations

import math

import pytest
import torch

from jumpahead.sae import ste
from jumpahead.sae.base import Entries, Knobs
from tests.engine.cases import CASES, Case

PRE = torch.tensor([[0.10], [0.52], [0.48], [1.0]], dtype=torch.float64)
THETA = torch.tensor([0.5], dtype=torch.float64)
EPSILON = torch.tensor([0.1], dtype=torch.float64)
GRAD = torch.tensor([[3.0], [0.7], [-0.2], [5.0]], dtype=torch.float64)  # incoming, none of them 1

SCALES = (0.04, 0.3, 6.0)
EPSILONS = (0.02, 0.07, 0.2)  # in the unit of the scale
FORMS = ("raw", "log")
JUMPRELU = next(case for case in CASES if case.architecture == "jumprelu" and case.setting.kind == "lambda")


def test_jumprelu_by_hand():
    z, theta = PRE.clone().requires_grad_(), THETA.clone().requires_grad_()
    f = ste.jumprelu(z, theta, EPSILON)
    assert torch.equal(f, torch.tensor([[0.0], [0.52], [0.0], [1.0]], dtype=torch.float64))
    d_z, d_theta = torch.autograd.grad(f, [z, theta], GRAD)
    assert torch.equal(d_z, torch.tensor([[0.0], [0.7], [0.0], [5.0]], dtype=torch.float64))
    # −(θ/ε)·K = −5 at .52 and .48: −5·0.7 − 5·(−0.2)
    assert d_theta.tolist() == pytest.approx([-2.5], abs=1e-12)


def test_step_by_hand():
    z, theta = PRE.clone().requires_grad_(), THETA.clone().requires_grad_()
    h = ste.step(z, theta, EPSILON)
    assert h.flatten().tolist() == [0, 1, 0, 1]
    d_z, d_theta = torch.autograd.grad(h, [z, theta], GRAD, allow_unused=True)
    assert d_z is None or not d_z.any()
    # −(1/ε)·K = −10 at .52 and .48: −10·0.7 − 10·(−0.2)
    assert d_theta.tolist() == pytest.approx([-5.0], abs=1e-12)


def test_a_preactivation_at_the_threshold_is_off():
    at = torch.tensor([[0.5], [0.45], [0.55]], dtype=torch.float64)
    assert ste.step(at, THETA, EPSILON).flatten().tolist() == [0, 0, 1]
    assert ste.jumprelu(at, THETA, EPSILON).flatten().tolist() == [0, 0, 0.55]


@pytest.mark.parametrize("form", FORMS)
def test_the_engines_rule_by_hand(form):
    arch, p, v = one_feature(form, 0.5, 0.1)
    entries = Entries(PRE.flatten(), torch.zeros(4, dtype=torch.int32))
    values = arch.values(entries, p, v)
    assert values[0].tolist() == [0, 0.52, 0, 1]
    g = arch.rule(entries, values, p, v, Knobs(sparsity=0.024), tokens=4)
    incoming = (GRAD.flatten(),)
    assert g.pre.at(incoming).tolist() == [0, 0.7, 0, 5]
    assert g.vectors["b_enc"].at(incoming).tolist() == [0, 0.7, 0, 5]
    # −(1/ε)·(θ·incoming + λ/B) = −10·(0.5·incoming + 0.006) in the window; times θ for log θ
    chain = {"raw": 1.0, "log": 0.5}[form]
    by_hand = [0, -3.56 * chain, 0.94 * chain, 0]
    assert g.vectors[trained(form)].at(incoming).tolist() == pytest.approx(by_hand, abs=1e-12)
    assert g.penalty.item() == pytest.approx(0.012)  # λ·2/4


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("form", FORMS)
def test_mean_of_the_pseudo_derivative_is_minus_the_density(form, scale, epsilon):
    theta, width = 0.5 * scale, epsilon * scale
    density = normal_density(theta, 0.0, scale)
    z = normal_grid(200_000, 0.0, scale)
    step, jump = by_autograd(z, theta, width, form)
    step_rule, jump_rule = by_rule(z, theta, width, form)
    chain = {"raw": 1.0, "log": theta}[form]
    for found in (step, step_rule):
        assert found == pytest.approx(-density * chain, rel=0.01)
    for found in (jump, jump_rule):
        assert found == pytest.approx(-theta * density * chain, rel=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_the_short_recipes_own_bandwidth_is_narrow_enough(form):
    """Whatever ε the default recipe derives from θ: within 6 % of the truth, and no rectified zero in the window."""
    arch, p, v = one_feature(form, 0.5, None)
    epsilon = float(v["epsilon"][0])
    assert 0 < epsilon <= 2 * 0.5
    z = normal_grid(200_000, 0.0, 1.3)
    entries = Entries(z, torch.zeros(len(z), dtype=torch.int32))
    zero = torch.zeros_like(z)
    g = arch.rule(entries, (zero,), p, v, Knobs(sparsity=0.8), tokens=len(z))
    chain = {"raw": 1.0, "log": 0.5}[form]
    assert g.vectors[trained(form)].at((zero,)).sum().item() == pytest.approx(
        -0.8 * chain * normal_density(0.5, 0, 1.3), rel=0.06
    )


@pytest.mark.parametrize("epsilon", [0.0007, 0.003, 0.009])
@pytest.mark.parametrize("theta", [0.02, 0.08, 0.12])
@pytest.mark.parametrize("form", FORMS)
def test_the_whole_losss_derivative_in_theta(form, theta, epsilon):
    """One feature, active on 10 % of tokens with magnitude a ~ N(.3, .1²), encoder noise N(0, .05²).

    L = (a − f)² + λ·H(π − θ), so dE[L]/dθ = (2θ·E[a | π = θ] − θ² − λ)·p(θ). At θ = .02, λ = .006 that is −0.0425
    (a finite difference gives the same). What remains is the estimator's own bias, of first order in ε.
    """
    sparsity, noise, spread = 0.006, 0.05, math.hypot(0.1, 0.05)
    off, on = normal_grid(900_000, 0.0, noise), normal_grid(100_000, 0.3, spread)
    shrink = 0.1**2 / spread**2  # E[a | π] = .3 + shrink·(π − .3) where active, 0 elsewhere
    pre = torch.cat([off, on])
    a = torch.cat([torch.zeros_like(off), 0.3 + shrink * (on - 0.3)])

    p_off, p_on = 0.9 * normal_density(theta, 0.0, noise), 0.1 * normal_density(theta, 0.3, spread)
    mean_a = p_on * (0.3 + shrink * (theta - 0.3)) / (p_on + p_off)
    true = (2 * theta * mean_a - theta**2 - sparsity) * (p_on + p_off)
    if theta == 0.02:
        assert true == pytest.approx(-0.0425, abs=1e-4)

    arch, p, v = one_feature(form, theta, epsilon)
    entries = Entries(pre, torch.zeros(len(pre), dtype=torch.int32))
    values = arch.values(entries, p, v)
    projection = 2 * (values[0] - a) / len(pre)
    g = arch.rule(entries, values, p, v, Knobs(sparsity), tokens=len(pre))
    chain = {"raw": 1.0, "log": theta}[form]
    assert g.vectors[trained(form)].at((projection,)).sum().item() / chain == pytest.approx(
        true, abs=0.01 * abs(true) + 0.25 * epsilon
    )


# ---------------------------------------------------------------------------------------------- helpers


def trained(form):
    return {"raw": "threshold", "log": "log_threshold"}[form]


def one_feature(form, theta, epsilon):
    """A JumpReLU SAE's vectors at width 1: (architecture, parameters, what `derive` gives)."""
    case: Case = JUMPRELU._replace(changes={"threshold_form": form, "bandwidth": epsilon})
    arch = case.arch()
    value = torch.tensor([theta], dtype=torch.float64)
    p = {trained(form): value.log() if form == "log" else value}
    return arch, p, arch.derive(p)


def normal_grid(n, mean, deviation):
    """n quantiles of N(mean, deviation²), in the order of their values."""
    quantile = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return mean + deviation * torch.special.ndtri(quantile)


def normal_density(z, mean, deviation):
    return math.exp(-0.5 * ((z - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))


def by_autograd(z, theta, epsilon, form):
    """Mean pseudo-derivatives in the trained parameter of H and of JumpReLU, through ste.py."""
    parameter = torch.tensor([theta], dtype=torch.float64)
    parameter = (parameter.log() if form == "log" else parameter).requires_grad_()
    width = torch.tensor([epsilon], dtype=torch.float64)
    found = []
    for function in (ste.step, ste.jumprelu):
        value = parameter.exp() if form == "log" else parameter
        (d,) = torch.autograd.grad(function(z[:, None], value, width).mean(), [parameter])
        found.append(d.item())
    return found


def by_rule(z, theta, epsilon, form):
    """The same, through the engine's rule: λ = 0.8 alone, then an incoming gradient of 0.3 alone."""
    arch, p, v = one_feature(form, theta, epsilon)
    entries = Entries(z, torch.zeros(len(z), dtype=torch.int32))
    values = arch.values(entries, p, v)
    nothing, something = torch.zeros_like(z), torch.full_like(z, 0.3 / len(z))
    step = arch.rule(entries, values, p, v, Knobs(sparsity=0.8), tokens=len(z)).vectors[trained(form)]
    jump = arch.rule(entries, values, p, v, Knobs(sparsity=0.0), tokens=len(z)).vectors[trained(form)]
    return step.at((nothing,)).sum().item() / 0.8, jump.at((something,)).sum().item() / 0.3
