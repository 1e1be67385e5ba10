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
from jumpahead.sae.gradients import Counts, StepInputs
from jumpahead.sae.recipe import Setting
from jumpahead.sae.support import Entries
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
    counts, step_inputs = counted(values), StepInputs(sparsity_coefficient=0.024)
    g = arch.entry_gradients(entries, values, p, v, step_inputs, counts)
    incoming = (GRAD.flatten(),)
    assert g.pre.evaluate(incoming).tolist() == [0, 0.7, 0, 5]
    assert g.vectors["b_enc"].evaluate(incoming).tolist() == [0, 0.7, 0, 5]
    # −(1/ε)·(θ·incoming + λ/B) = −10·(0.5·incoming + 0.006) in the window; times θ for log θ
    chain = {"raw": 1.0, "log": 0.5}[form]
    by_hand = [0, -3.56 * chain, 0.94 * chain, 0]
    assert g.vectors[trained(form)].evaluate(incoming).tolist() == pytest.approx(by_hand, abs=1e-12)
    assert arch.penalty(0.0, counts, step_inputs) == pytest.approx(0.012)  # λ·2/4


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
    g = arch.entry_gradients(entries, (zero,), p, v, StepInputs(sparsity_coefficient=0.8), counted((zero,)))
    chain = {"raw": 1.0, "log": 0.5}[form]
    assert g.vectors[trained(form)].evaluate((zero,)).sum().item() == pytest.approx(
        -0.8 * chain * normal_density(0.5, 0, 1.3), rel=0.06
    )


@pytest.mark.parametrize(("theta", "epsilon"), [(0.02, 0.0007), (0.02, 0.009), (0.08, 0.003), (0.12, 0.009)])
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
    g = arch.entry_gradients(entries, values, p, v, StepInputs(sparsity), counted(values))
    chain = {"raw": 1.0, "log": theta}[form]
    assert g.vectors[trained(form)].evaluate((projection,)).sum().item() / chain == pytest.approx(
        true, abs=0.01 * abs(true) + 0.25 * epsilon
    )


# ---------------------------------------------------------------------------------------------- of the whole batch

# Two features, four tokens. Features on: token 0 both, token 1 the first, token 2 the second, token 3 neither.
TWO = torch.tensor([[0.9, 0.52, 0.47, 0.1], [0.31, 0.2, 0.7, 0.28]], dtype=torch.float64)
THETAS = [0.5, 0.3]  # with ε = 0.1, in the window: feature 0 at tokens 1 and 2, feature 1 at tokens 0 and 3
SUMMED = {
    # λ/B = 0.006, p = (1/2, 1/2), ω₀ = 0.25: −10·0.006·(1 + 2·0.5/0.25) = −0.3 at each entry in the window
    "frequency": ({"frequency_scale": 0.25}, Setting("lambda", 0.02), [-0.6, -0.6], 0.072),  # λ·2·0.5·(1 + 2)
    # L̄0 = 1, L0* = 0.8: −10·0.006·(2/0.8)·(1/0.8 − 1) = −0.0375
    "batch": ({"target": "batch"}, Setting("l0", 0.8), [-0.075, -0.075], 0.0015),  # λ·0.25²
    # ‖f‖₀ = 2, 1, 1, 0: −0.15·(‖f‖₀/0.8 − 1) = −0.225, −0.0375, −0.0375, 0.15
    "token": ({"target": "token"}, Setting("l0", 0.8), [-0.075, -0.075], 0.02025),  # λ·(1.5² + 2·0.25² + 1)/4
}


@pytest.mark.parametrize("kind", list(SUMMED))
@pytest.mark.parametrize("form", FORMS)
def test_sparsity_terms_of_the_whole_batch_by_hand(form, kind):
    options, setting, wanted, penalty = SUMMED[kind]
    arch, p, v = features(form, THETAS, 0.1, options, setting)
    block = Entries(TWO, torch.arange(2))
    values, step_inputs = arch.values(block, p, v), StepInputs(sparsity_coefficient=0.024)
    counts = counted(values, of=2)
    assert counts.fired.tolist() == [2, 2]
    assert counts.active.tolist() == [2, 1, 1, 0]
    g = arch.entry_gradients(block, values, p, v, step_inputs, counts).vectors[trained(form)]
    chain = {"raw": [1.0, 1.0], "log": THETAS}[form]
    by_hand = [one * factor for one, factor in zip(wanted, chain, strict=True)]
    assert g.evaluate((torch.zeros_like(TWO),)).sum(1).tolist() == pytest.approx(by_hand, abs=1e-12)
    assert arch.penalty(0.0, counts, step_inputs) == pytest.approx(penalty, rel=1e-12)


@pytest.mark.parametrize("scale", SCALES[1:])
@pytest.mark.parametrize("kind", list(SUMMED))
@pytest.mark.parametrize("form", FORMS)
def test_sparsity_terms_of_the_whole_batch_have_the_expected_losss_derivative(form, kind, scale):
    """Two independent features, π_j ~ N(m_j, s²), on with probability P_j = Φ((m_j − θ_j)/s). Expected losses:

        λ·Σ P_j·(1 + P_j/ω₀)      λ·((P_0 + P_1)/L0* − 1)²      λ·(that + (P_0·(1 − P_0) + P_1·(1 − P_1))/L0*²)

    Central differences of these in θ_j are what the engine's rule must add up to, and the autograd of `ste.py`. (In the
    last, ‖f‖₀ of a token in the window depends on its side of θ_j: there the bias is of first order in ε.)
    """
    options, setting, _, _ = SUMMED[kind]
    l0, scale_of_p = 0.3, options.get("frequency_scale")
    setting = setting._replace(value=l0)
    sparsity, means, thetas = 0.7, [-0.4 * scale, 0.1 * scale], [0.5 * scale, 0.3 * scale]

    def expected(theta):
        p = [0.5 * math.erfc((t - m) / (scale * math.sqrt(2))) for t, m in zip(theta, means, strict=True)]
        if kind == "frequency":
            return sparsity * sum(one * (1 + one / scale_of_p) for one in p)
        spread = sum(one * (1 - one) for one in p) / l0**2 if kind == "token" else 0.0
        return sparsity * ((sum(p) / l0 - 1) ** 2 + spread)

    arch, p, v = features(form, thetas, 0.02 * scale, options, setting)
    n = 400_009  # prime: the second grid's order has nothing to do with the first's
    shuffled = normal_grid(n, means[1], scale)[torch.arange(n) * 247_219 % n]
    pre = torch.stack([normal_grid(n, means[0], scale), shuffled])
    block = Entries(pre, torch.arange(2))
    values = arch.values(block, p, v)
    g = arch.entry_gradients(block, values, p, v, StepInputs(sparsity), counted(values, of=2)).vectors[trained(form)]
    by_rule = g.evaluate((torch.zeros_like(pre),)).sum(1).tolist()

    parameter = p[trained(form)].clone().requires_grad_()
    on = ste.step(pre.T.relu(), parameter.exp() if form == "log" else parameter, v["epsilon"])
    (by_autograd,) = torch.autograd.grad(sparsity * arch._sparsity(on, arch.setting.value), [parameter])
    for j in range(2):
        step = 1e-5 * scale
        sides = [expected([t + sign * step * (i == j) for i, t in enumerate(thetas)]) for sign in (1, -1)]
        true = (sides[0] - sides[1]) / (2 * step) * (thetas[j] if form == "log" else 1.0)
        assert abs(true) > 0.05 / scale * (thetas[j] if form == "log" else 1.0)
        assert by_rule[j] == pytest.approx(true, rel=0.006)
        assert by_autograd[j].item() == pytest.approx(by_rule[j], rel=1e-10)


# ---------------------------------------------------------------------------------------------- helpers


def trained(form):
    return {"raw": "threshold", "log": "log_threshold"}[form]


def one_feature(form, theta, epsilon):
    """A JumpReLU SAE's vectors at width 1: (architecture, parameters, what `derive` gives)."""
    return features(form, [theta], epsilon)


def features(form, thetas, epsilon, options=None, setting=None):
    """The same for several features."""
    case: Case = JUMPRELU._replace(
        changes={"threshold_form": form, "bandwidth": epsilon},
        options=options or {},
        setting=setting or JUMPRELU.setting,
    )
    arch = case.arch()
    value = torch.tensor(thetas, dtype=torch.float64)
    p = {trained(form): value.log() if form == "log" else value}
    return arch, p, arch.derive(p)


def counted(values, of=1):
    """What fired among the values, feature by feature: [of·tokens]."""
    on = (values[0] > 0).reshape(of, -1).double()
    return Counts(on.shape[1], on.sum(1), on.sum(0))


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
    counts = counted(values)
    step = arch.entry_gradients(entries, values, p, v, StepInputs(sparsity_coefficient=0.8), counts).vectors[
        trained(form)
    ]
    jump = arch.entry_gradients(entries, values, p, v, StepInputs(sparsity_coefficient=0.0), counts).vectors[
        trained(form)
    ]
    return step.evaluate((nothing,)).sum().item() / 0.8, jump.evaluate((something,)).sum().item() / 0.3
