"""What a step says of training's health: counted by hand, compared with dense autograd, and without a trace."""

from __future__ import annotations

import math

import pytest
import torch

from jumpahead.engine import Watch, dense_features, fresh_state, step
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.base import Knobs
from jumpahead.sae.recipe import Setting
from tests.engine.cases import CASES, LAYERS, activations, assert_same_bytes, clone, layer, scrambled, some_recipe

B, D, M = 60, 8, 40
WAYS = {
    "support": {"POPULAR": 1.0, "FEWEST": 10**9, "CROWDED": 0},
    "products": {"POPULAR": -1.0, "FEWEST": 1, "CROWDED": 10**9, "SIZE": 7 * B, "KEPT": 0},
}
PRICED = [case for case in CASES if case.setting.kind == "lambda" and not case.options.get("pre_activation")]
"""Those whose gradient without λ is the reconstruction's alone."""


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every entry in the support, or every one in blocks of seven features."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(dense_features, name, value)
    return request.param


def by_hand(form: str):
    """Three features that read off x: W_enc = W_dec = 1, no biases; theta = 0.5, 0.2, 0.8, epsilon = 0.2."""
    kind = ARCHITECTURES.get("jumprelu")
    recipe = some_recipe(threshold_form=form, threshold_start=0.5, bandwidth=0.2, centre=False, dead_after=150)
    state = fresh_state(kind(kind.Options(), Setting("lambda", 0.09), recipe), 3, 3, 0, torch.zeros(4, 3).double())
    theta = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    name = "threshold" if form == "raw" else "log_threshold"
    state.p |= {"W_enc": torch.eye(3).double(), "W_dec": torch.eye(3).double(), "b_enc": torch.zeros(3).double(),
                "b_dec": torch.zeros(3).double(), name: theta if form == "raw" else theta.log()}  # fmt: skip
    return state


X = torch.tensor(
    [[0.45, 0.00, 0.95], [0.58, 0.15, 0.00], [0.70, 0.00, 0.71], [0.00, 0.28, 0.00], [0.0, 0.29, 0.5]],
    dtype=torch.float64,
)
"""[5, 3]. In the windows 0.4-0.6, 0.1-0.3, 0.7-0.9: 0.45, 0.58; 0.15, 0.28, 0.29; 0.71. On: two, two, one."""


@pytest.mark.parametrize("form", ["raw", "log"])
def test_counts_and_gradients_by_hand(form, way):
    """x̂ − x is −x where a feature is off, 0 where it is on; a projection is 2/B·(x̂ − x)_j.

    Into θ goes −(1/ε)·θ_j·projection = (θ_j/ε)·(2/B)·x in the window and off, and −(1/ε)·λ/B per entry in the window;
    for log θ both times θ_j.
    """
    state = by_hand(form)
    watch = Watch(state, 5, warmup=0.5)
    step(state, X, 0.0, 0.5, layer("plain"), watch)
    found = watch.health(state, rate_left=0.25)
    chain = [0.5, 0.2, 0.8] if form == "log" else [1.0, 1.0, 1.0]
    learned = [c * t / 0.2 * 2 / 5 * x for c, t, x in zip(chain, (0.5, 0.2, 0.8), (0.45, 0.15, 0.71), strict=True)]
    priced = [c / 0.2 * 0.045 / 5 * n for c, n in zip(chain, (2, 3, 1), strict=True)]
    assert found.pop("pressure") == pytest.approx(math.hypot(*priced) / math.hypot(*learned), rel=1e-12)
    travel = 3.0 * 0.25  # threshold_rate × Σ lr
    assert found == pytest.approx({
        "dead": 0.0, "above_1pct": 1.0, "above_10pct": 1.0, "lambda": 0.045,
        "theta_05": 0.23, "theta_25": 0.35, "theta_50": 0.5, "theta_75": 0.65, "theta_95": 0.77,
        "theta_in_sqrt_lambda": 0.5 / math.sqrt(0.045), "window": 6 / 15, "window_features": 1.0,
        "travel": travel if form == "log" else math.log(1 + travel / 0.5),
    }, rel=1e-12)  # fmt: skip


def test_empty_windows_dead_and_frequent_features_by_hand(way):
    """16 tokens: the first feature fires on all, the second on one (6 %), the third never; only the second's window
    has an entry, which is not on."""
    x = torch.zeros(16, 3).double()
    x[:, 0], x[3, 1], x[4, 1] = 2.0, 3.0, 0.12
    state = by_hand("log")
    state.silent[:] = torch.tensor([5, 7, 149])
    watch = Watch(state, 16, warmup=1.0)
    step(state, x, 0.0, 1.0, layer("plain"), watch)
    found = watch.health(state, 0.0)
    assert (found["window"], found["window_features"]) == pytest.approx((1 / 48, 1 / 3))
    assert (found["above_10pct"], found["above_1pct"], found["dead"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert found["travel"] == 0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", PRICED, ids=lambda case: case.label)
def test_pressure_is_that_of_dense_autograd(case, name, way):
    """The loss is affine in λ: its gradient without λ is the reconstruction's, the rest the sparsity term's."""
    state = scrambled(case, D, M, 5)
    state.control = None
    x = activations(B, D, 40)
    norms = []
    for price in (0.0, 0.4 * case.setting.value):
        p = {key: tensor.clone().requires_grad_() for key, tensor in state.p.items()}
        state.arch.loss(p, x, Knobs(price)).backward()
        norms.append({key: p[key].grad for key in state.arch.trained if p[key].grad is not None})
    moved = [key for key in norms[0] if not torch.equal(norms[0][key], norms[1][key])]
    assert moved
    learned = torch.cat([norms[0][key] for key in moved]).norm()
    priced = torch.cat([norms[1][key] - norms[0][key] for key in moved]).norm()
    watch = Watch(state, B, warmup=0.4)
    step(state, x, 0.001, 0.4, layer(name), watch)
    assert watch.health(state, 1.0)["pressure"] == pytest.approx(float(priced / learned), rel=1e-9)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_watching_leaves_no_trace(case, name, way):
    watched = scrambled(case, D, M, 6, torch.float32)
    alone = clone(watched)
    for i in range(3):
        x = activations(B, D, 50 + i, torch.float32)
        watch = Watch(watched, B, warmup=0.7)
        seen = step(watched, x, 0.01, 0.7, layer(name), watch)
        assert seen == step(alone, x, 0.01, 0.7, layer(name))
        found = watch.health(watched, 0.5)
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
        assert_same_bytes(watched, alone)


def test_architectures_without_thresholds_tell_what_they_have():
    found = {}
    for case in CASES:
        state = scrambled(case, D, M, 7)
        watch = Watch(state, B, warmup=1.0)
        step(state, activations(B, D, 60), 0.01, 1.0, layer("plain"), watch)
        found[case.label] = set(watch.health(state, 0.5))
    always = {"dead", "above_1pct", "above_10pct"}
    for case in CASES:
        state = scrambled(case, D, M, 7)
        has_thresholds = state.arch.thresholds(state.arch.derive(state.p)) is not None
        assert always <= found[case.label]
        assert ("window" in found[case.label]) == ("travel" in found[case.label]) == has_thresholds
        assert ("lambda" in found[case.label]) == ("lambda" in state.arch.settings)
