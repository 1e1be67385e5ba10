"""The Triton kernels: steps equal dense autograd, supports equal those of torch bit for bit, runs equal the CPU's."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine import dense_features, kernel_layer, train_step
from jumpahead.engine.batch_topk import select_support
from jumpahead.engine.reference import reference_step
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.support import AboveThreshold, TopKOfBatch, TopKPerToken
from tests.engine.cases import (
    CASES,
    activations,
    assert_close,
    clone,
    random_state,
    standard_normal,
    untrained_state,
    with_current_moments,
)
from tests.gpu.device import (
    CASES_AND_PATHS,
    DEVICE,
    PATHS,
    TritonKernels,
    new_layer,
    selection,
    to_cpu,
    to_device,
    triton_layer,
)


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=lambda one: getattr(one, "label", one))
def test_two_steps_equal_dense_autograd_with_dense_adam(case, path, monkeypatch):
    """float64, to 1e-10; with dead features, rows not touched for many steps, features of several pieces."""
    d, width, tokens = 5, 12, 8
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense_features, name, value)
    monkeypatch.setattr(triton_layer, "PIECE", 3)
    state = random_state(case, d, width, seed=7, adam_epsilon=1.0)
    ours, theirs, layer_, results = to_device(state), with_current_moments(state), new_layer(), []
    wanted = []
    for i in range(2):
        x = activations(tokens, d, seed=7 * i)
        results.append(train_step(ours, x.to(DEVICE), 0.3, 0.37, layer_))
        f = theirs.arch.activate_batch(
            theirs.params,
            (x - theirs.params["b_dec"]) @ theirs.params["W_enc"].T + theirs.params["b_enc"],
            StepInputs(),
        )
        error = (x - f @ theirs.params["W_dec"] - theirs.params["b_dec"]).square().sum() / tokens
        wanted.append((error.item(), (f > 0).sum().item() / tokens))
        reference_step(theirs, x, 0.3, 0.37)
    found = to_cpu(ours, layer_)
    theirs.last_touched[:] = theirs.steps_done
    assert_close(found, theirs, 1e-10)
    assert (results[0].num_dense_features > 0) == (path == "products")
    for result, (error, l0) in zip(results, wanted, strict=True):
        assert result.read().squared_error == pytest.approx(error, rel=1e-11)
        assert result.read().l0 == l0
    encoder = ours.encoder_for(layer_)
    torch.testing.assert_close(encoder.norms, ours.params["W_enc"].norm(dim=1), rtol=1e-12, atol=0)


def adversarial(kind, tokens=45, d=20, width=150):
    """Return float32 data on which a wrong error bound fails; smaller than in tests/engine/test_step_is_exact.py."""
    x, w = standard_normal(tokens, d, seed=1).float(), standard_normal(width, d, seed=2).float() / d**0.5
    b, half = 0.1 * standard_normal(width, seed=3).float(), d // 2
    if kind == "constant":
        x[:] = (1 + (torch.arange(tokens) // 8)[:, None] * 0.137) * (
            1 + 1e-6 * standard_normal(tokens, 1, seed=4).float()
        )
        w[:] = 1 + 0.5 * standard_normal(width, 1, seed=5).float().abs().clamp_max(1.0)
        w[:8] = 1.9 * (1 + 3e-6 * standard_normal(8, 1, seed=6).float())
        b[:] = 0.0
    if kind == "massive":
        x[:, 3] = 1e4 * (1 + 0.1 * standard_normal(tokens, seed=5).float())
        w[:, 3] *= 1e-3
    if kind == "ties":
        x, w = (x * 2).round() / 8, (w * 8).round() / 8
        w[width // 2 :], b[:] = w[: width // 2], 0.0
    if kind == "bias":
        b = 3e3 * standard_normal(width, seed=7).float()
        assert half > 0
    if kind == "tiny":
        x, w, b = x * 1e-15, w * 1e-15, b * 1e-30
    return x, w, b


@pytest.mark.parametrize("kind", ["ordinary", "constant", "massive", "ties", "bias", "tiny"])
@pytest.mark.parametrize("which", ["above", "largest", "dead", "batch"])
def test_supports_equal_those_of_torch_bit_for_bit(kind, which, monkeypatch):
    """Screened in bfloat16, in blocks of 64 features and 32 tokens; lower bounds equal some entries' values."""
    for name, value in {"BLOCK_ENTRIES": 1, "MAX_STORED_ENTRIES": 1, "MAX_TILE": 32}.items():
        monkeypatch.setattr(selection, name, value)
    x, w, b = adversarial(kind)
    pre = x.double() @ w.double().T + b.double()
    lower = pre[torch.arange(len(w)) % len(x), torch.arange(len(w))].float()
    dead = torch.arange(len(w)) % 3 == 0
    chosen = {
        "above": AboveThreshold(lower), "largest": TopKPerToken(6), "dead": TopKPerToken(6, dead, 4),
        "batch": TopKOfBatch(4.4, 0.3, dead, 3),
    }[which]  # fmt: skip
    found = []
    for one, device in ((new_layer(is_async=False), DEVICE), (kernel_layer("torch"), torch.device("cpu"))):
        moved = chosen._replace(**{k: v.to(device) for k, v in chosen._asdict().items() if isinstance(v, torch.Tensor)})
        centred = one.centre_input(x.to(device), torch.zeros(x.shape[1], device=device))
        encoder = one.prepare_encoder(w.to(device))
        if device == DEVICE and isinstance(one, TritonKernels):
            assert encoder.bf16 is not None, "not screened in bfloat16"
        found.append(select_support(centred, encoder, b.to(device), moved, one).support)
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours.cpu(), theirs)
    assert len(found[0].pre) > 0


@pytest.mark.parametrize("k", [1, 7, 40, 64])
def test_the_kth_largest_is_bracketed(k):
    values = standard_normal(64, 45, seed=k).float().to(DEVICE)
    low, high = new_layer().kth_largest_bounds(values, k)
    exact = torch.topk(values, k, dim=0).values[-1].clamp_min(0.0)
    assert (low <= exact).all()
    assert (exact <= high).all()
    assert (high - low).max() < 1e-3


ONE_PER_ARCHITECTURE = [
    next(case for case in CASES if case.architecture == name) for name in dict.fromkeys(c.architecture for c in CASES)
]


@pytest.mark.parametrize("case", ONE_PER_ARCHITECTURE, ids=lambda case: case.architecture)
def test_twenty_float32_steps_equal_the_cpus(case):
    """From initialisation, with the schedule and the controller of λ; a large Adam ε makes the update smooth."""
    d, width, tokens = 6, 14, 10
    begin = untrained_state(case, d, width, torch.float32, dead_after_tokens=3 * tokens, adam_epsilon=0.1)
    ours, theirs, layer_, cpu, results = to_device(begin), clone(begin), new_layer(), kernel_layer("numba"), []
    for i in range(20):
        x = activations(tokens, d, 50 + i, torch.float32)
        found = train_step(ours, x.to(DEVICE), 0.05, min(1.0, i / 7), layer_)
        results.append((found, train_step(theirs, x, 0.05, min(1.0, i / 7), cpu)))
    assert_close(to_cpu(ours, layer_), theirs, 2e-5)
    for found, wanted in results:  # results of replayed steps are corrected in place
        assert found.read()[:4] == pytest.approx(wanted[:4], rel=2e-5)


@pytest.mark.parametrize(("beta1", "most"), [(0.0, 10), (0.9, 14)])
def test_an_sae_in_training_takes_at_most_14_bytes_per_parameter_with_momentum_and_10_without(beta1, most):
    d, width = 64, 512
    state, layer_ = to_device(untrained_state(CASES[0], d, width, torch.float32, beta1=beta1)), new_layer()
    encoder = state.encoder_for(layer_)
    held = [
        *state.params.values(),
        *state.second_moments.values(),
        *state.first_moments.values(),
        state.last_touched,
        state.tokens_since_fired,
        state.support_share,
    ]
    held += [one for one in (encoder.norms, encoder.bf16, encoder.rounding_norms) if one is not None]
    matrices = [one for one in held if one.numel() == width * d]
    assert sum(one.numel() * one.element_size() for one in matrices) == (18 if beta1 == 0 else 26) * width * d
    assert sum(one.numel() * one.element_size() for one in held) <= most * 2 * width * d
