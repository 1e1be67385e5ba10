"""Training diagnostics of a step: by hand, against dense autograd, and without influence on the step."""

from __future__ import annotations

import math

import pytest
import torch

from jumpahead.engine import StepDiagnostics, dense_features, initial_state, train_step
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.recipe import Setting
from tests.engine.cases import (
    CASES,
    LAYERS,
    activations,
    assert_same_bytes,
    clone,
    layer,
    one_per_options,
    quick_recipe,
    random_state,
)

B, D, M = 60, 8, 40
PATHS = {
    "support": {"DENSE_SHARE": 1.0, "MIN_DENSE_FEATURES": 10**9, "MAX_DEAD_PER_SELECTED": 0},
    "products": {
        "DENSE_SHARE": -1.0,
        "MIN_DENSE_FEATURES": 1,
        "MAX_DEAD_PER_SELECTED": 10**9,
        "BLOCK_ENTRIES": 7 * B,
        "MAX_CACHED_ENTRIES": 0,
    },
}
FIXED_LAMBDA = [case for case in CASES if case.setting.kind == "lambda" and not case.options.get("pre_activation")]
"""Cases whose gradient at λ = 0 is that of the reconstruction unobserved."""


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Put every entry in the support, or every feature in dense blocks of seven."""
    for name, value in PATHS[request.param].items():
        monkeypatch.setattr(dense_features, name, value)
    return request.param


def hand_checkable_state(form: str):
    """Return three features with π = x: W_enc = W_dec = 1, no biases; θ = 0.5, 0.2, 0.8; ε = 0.2."""
    kind = ARCHITECTURES.get("jumprelu")
    recipe = quick_recipe(
        threshold_form=form, initial_threshold=0.5, bandwidth=0.2, centre_b_dec=False, dead_after_tokens=150
    )
    state = initial_state(kind(kind.Options(), Setting("lambda", 0.09), recipe), 3, 3, 0, torch.zeros(4, 3).double())
    theta = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    name = "threshold" if form == "raw" else "log_threshold"
    state.params |= {"W_enc": torch.eye(3).double(), "W_dec": torch.eye(3).double(), "b_enc": torch.zeros(3).double(),
                "b_dec": torch.zeros(3).double(), name: theta if form == "raw" else theta.log()}  # fmt: skip
    return state


X = torch.tensor(
    [[0.45, 0.00, 0.95], [0.58, 0.15, 0.00], [0.70, 0.00, 0.71], [0.00, 0.28, 0.00], [0.0, 0.29, 0.5]],
    dtype=torch.float64,
)
"""[5, 3]. In the windows 0.4-0.6, 0.1-0.3, 0.7-0.9: 0.45, 0.58; 0.15, 0.28, 0.29; 0.71. Active: two, two, one."""


@pytest.mark.parametrize("form", ["raw", "log"])
def test_counts_and_gradients_by_hand(form, path):
    """x̂ − x is −x if a feature is inactive and 0 if it is active; a projection is 2/B·(x̂ − x)_j.

    θ gets −(1/ε)·θ_j·projection = (θ_j/ε)·(2/B)·x from inactive entries in the window, and −(1/ε)·λ/B from every entry
    in the window; log θ gets both times θ_j.
    """
    state = hand_checkable_state(form)
    diagnostics = StepDiagnostics(state, 5, warmup=0.5)
    train_step(state, X, 0.0, 0.5, layer("torch"), diagnostics)
    found = diagnostics.summary(state, remaining_learning_rate=0.25)
    chain = [0.5, 0.2, 0.8] if form == "log" else [1.0, 1.0, 1.0]
    reconstruction = [
        c * t / 0.2 * 2 / 5 * x for c, t, x in zip(chain, (0.5, 0.2, 0.8), (0.45, 0.15, 0.71), strict=True)
    ]
    sparsity = [c / 0.2 * 0.045 / 5 * n for c, n in zip(chain, (2, 3, 1), strict=True)]
    assert found.pop("sparsity_gradient_ratio") == pytest.approx(
        math.hypot(*sparsity) / math.hypot(*reconstruction), rel=1e-12
    )
    travel = 3.0 * 0.25  # threshold_lr_multiplier × Σ lr
    assert found == pytest.approx({
        "dead": 0.0, "above_1pct": 1.0, "above_10pct": 1.0, "lambda": 0.045,
        "theta_05": 0.23, "theta_25": 0.35, "theta_50": 0.5, "theta_75": 0.65, "theta_95": 0.77,
        "theta_in_sqrt_lambda": 0.5 / math.sqrt(0.045), "window": 6 / 15, "window_features": 1.0,
        "threshold_travel": travel if form == "log" else math.log(1 + travel / 0.5),
    }, rel=1e-12)  # fmt: skip


def test_empty_windows_dead_and_frequent_features_by_hand(path):
    """16 tokens: the first feature fires on all, the second on one (6 %), the third never. Only the second's window has
    an entry, an inactive one."""
    x = torch.zeros(16, 3).double()
    x[:, 0], x[3, 1], x[4, 1] = 2.0, 3.0, 0.12
    state = hand_checkable_state("log")
    state.tokens_since_fired[:] = torch.tensor([5, 7, 149])
    diagnostics = StepDiagnostics(state, 16, warmup=1.0)
    train_step(state, x, 0.0, 1.0, layer("torch"), diagnostics)
    found = diagnostics.summary(state, 0.0)
    assert (found["window"], found["window_features"]) == pytest.approx((1 / 48, 1 / 3))
    assert (found["above_10pct"], found["above_1pct"], found["dead"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert found["threshold_travel"] == 0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", FIXED_LAMBDA, ids=lambda case: case.label)
def test_sparsity_gradient_ratio_equals_dense_autograd(case, name, path):
    """The loss is affine in λ: its gradient without λ is the reconstruction's, the rest the sparsity term's."""
    state = random_state(case, D, M, 5)
    state.controller = None
    x = activations(B, D, 40)
    gradients = []
    for sparsity_coefficient in (0.0, 0.4 * case.setting.value):
        p = {key: tensor.clone().requires_grad_() for key, tensor in state.params.items()}
        state.arch.loss(p, x, StepInputs(sparsity_coefficient)).backward()
        gradients.append({key: p[key].grad for key in state.arch.trained_vectors if p[key].grad is not None})
    changed = [key for key in gradients[0] if not torch.equal(gradients[0][key], gradients[1][key])]
    assert changed
    reconstruction = torch.cat([gradients[0][key] for key in changed]).norm()
    sparsity = torch.cat([gradients[1][key] - gradients[0][key] for key in changed]).norm()
    diagnostics = StepDiagnostics(state, B, warmup=0.4)
    train_step(state, x, 0.001, 0.4, layer(name), diagnostics)
    assert diagnostics.summary(state, 1.0)["sparsity_gradient_ratio"] == pytest.approx(
        float(sparsity / reconstruction), rel=1e-9
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", one_per_options(), ids=lambda case: case.label)
def test_observing_a_step_changes_no_byte(case, name, path):
    observed = random_state(case, D, M, 6, torch.float32)
    unobserved = clone(observed)
    for i in range(3):
        x = activations(B, D, 50 + i, torch.float32)
        diagnostics = StepDiagnostics(observed, B, warmup=0.7)
        result = train_step(observed, x, 0.01, 0.7, layer(name), diagnostics)
        assert result == train_step(unobserved, x, 0.01, 0.7, layer(name))
        found = diagnostics.summary(observed, 0.5)
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
        assert_same_bytes(observed, unobserved)


def test_diagnostics_without_meaning_for_an_architecture_are_absent():
    found = {}
    for case in CASES:
        state = random_state(case, D, M, 7)
        diagnostics = StepDiagnostics(state, B, warmup=1.0)
        train_step(state, activations(B, D, 60), 0.01, 1.0, layer("torch"), diagnostics)
        found[case.label] = set(diagnostics.summary(state, 0.5))
    always = {"dead", "above_1pct", "above_10pct"}
    for case in CASES:
        state = random_state(case, D, M, 7)
        has_thresholds = state.arch.thresholds(state.arch.derive(state.params)) is not None
        assert always <= found[case.label]
        assert ("window" in found[case.label]) == ("threshold_travel" in found[case.label]) == has_thresholds
        assert ("lambda" in found[case.label]) == ("lambda" in state.arch.settings)
