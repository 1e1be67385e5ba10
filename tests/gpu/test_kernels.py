"""The step on a GPU is the dense step, its supports are those of the CPU's layers, and a run is the CPU's run."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine import dense_features, kernel_layer, reference, step
from jumpahead.engine.batch_topk import select
from jumpahead.sae.base import Above, Knobs, Largest, LargestOfBatch
from tests.engine.cases import CASES, activations, assert_close, clone, draw, scrambled, settled, start
from tests.gpu.card import DEVICE, PATHS, WAYS, back, cuda, layer, there

ONE = [
    next(case for case in CASES if case.architecture == name) for name in dict.fromkeys(c.architecture for c in CASES)
]


@pytest.mark.parametrize(("case", "path"), WAYS, ids=lambda one: getattr(one, "label", one))
def test_two_steps_equal_dense_autograd_with_dense_adam(case, path, monkeypatch):
    """float64, to 1e-10; dead features, rows last touched long ago, features of several pieces."""
    d, width, tokens = 5, 12, 8
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense_features, name, value)
    monkeypatch.setattr(cuda, "LONG", 3)
    state = scrambled(case, d, width, seed=7, adam_epsilon=1.0)
    ours, theirs, layer_, results = there(state), settled(state), layer(), []
    wanted = []
    for i in range(2):
        x = activations(tokens, d, seed=7 * i)
        results.append(step(ours, x.to(DEVICE), 0.3, 0.37, layer_))
        f = theirs.arch.activate_batch(
            theirs.p, (x - theirs.p["b_dec"]) @ theirs.p["W_enc"].T + theirs.p["b_enc"], Knobs()
        )
        error = (x - f @ theirs.p["W_dec"] - theirs.p["b_dec"]).square().sum() / tokens
        wanted.append((error.item(), (f > 0).sum().item() / tokens))
        reference.step(theirs, x, 0.3, 0.37)
    found = back(ours, layer_)
    theirs.last[:] = theirs.t
    assert_close(found, theirs, 1e-10)
    assert (results[0].dense > 0) == (path == "products")
    for result, (error, l0) in zip(results, wanted, strict=True):
        assert result.read().error == pytest.approx(error, rel=1e-11)
        assert result.read().l0 == l0
    encoder = ours.encoder_for(layer_)
    torch.testing.assert_close(encoder.norms, ours.p["W_enc"].norm(dim=1), rtol=1e-12, atol=0)


def adversarial(kind, tokens=45, d=20, width=150):
    """float32 data on which a careless bound fails; as in tests/engine/test_step_is_exact.py, smaller."""
    x, w = draw(tokens, d, seed=1).float(), draw(width, d, seed=2).float() / d**0.5
    b, half = 0.1 * draw(width, seed=3).float(), d // 2
    if kind == "constant":
        x[:] = (1 + (torch.arange(tokens) // 8)[:, None] * 0.137) * (1 + 1e-6 * draw(tokens, 1, seed=4).float())
        w[:] = 1 + 0.5 * draw(width, 1, seed=5).float().abs().clamp_max(1.0)
        w[:8] = 1.9 * (1 + 3e-6 * draw(8, 1, seed=6).float())
        b[:] = 0.0
    if kind == "massive":
        x[:, 3] = 1e4 * (1 + 0.1 * draw(tokens, seed=5).float())
        w[:, 3] *= 1e-3
    if kind == "ties":
        x, w = (x * 2).round() / 8, (w * 8).round() / 8
        w[width // 2 :], b[:] = w[: width // 2], 0.0
    if kind == "bias":
        b = 3e3 * draw(width, seed=7).float()
        assert half > 0
    if kind == "tiny":
        x, w, b = x * 1e-15, w * 1e-15, b * 1e-30
    return x, w, b


@pytest.mark.parametrize("kind", ["ordinary", "constant", "massive", "ties", "bias", "tiny"])
@pytest.mark.parametrize("which", ["above", "largest", "dead", "batch"])
def test_supports_are_those_of_plain_torch_bit_for_bit(kind, which, monkeypatch):
    """Screened in bfloat16, in blocks of 64 features, races of 32 tokens; bounds are entries' own values."""
    for name, value in {"CHUNK": 1, "KEPT": 1, "TILE": 32}.items():
        monkeypatch.setattr(cuda, name, value)
    x, w, b = adversarial(kind)
    pre = x.double() @ w.double().T + b.double()
    lower = pre[torch.arange(len(w)) % len(x), torch.arange(len(w))].float()
    dead = torch.arange(len(w)) % 3 == 0
    chosen = {
        "above": Above(lower), "largest": Largest(6), "dead": Largest(6, dead, 4),
        "batch": LargestOfBatch(4.4, 0.3, dead, 3),
    }[which]  # fmt: skip
    found = []
    for one, device in ((layer(is_late=False), DEVICE), (kernel_layer("plain"), torch.device("cpu"))):
        moved = chosen._replace(**{k: v.to(device) for k, v in chosen._asdict().items() if isinstance(v, torch.Tensor)})
        centred = one.centre(x.to(device), torch.zeros(x.shape[1], device=device))
        encoder = one.encoder(w.to(device))
        if device == DEVICE and isinstance(one, cuda.Triton):
            assert encoder.low is not None, "not screened in bfloat16"
        found.append(select(centred, encoder, b.to(device), moved, one).support)
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours.cpu(), theirs)
    assert len(found[0].pre) > 0


@pytest.mark.parametrize("k", [1, 7, 40, 64])
def test_the_kth_largest_is_bracketed(k):
    values = draw(64, 45, seed=k).float().to(DEVICE)
    low, high = layer().kth(values, k)
    exact = torch.topk(values, k, dim=0).values[-1].clamp_min(0.0)
    assert (low <= exact).all()
    assert (exact <= high).all()
    assert (high - low).max() < 1e-3


ONE = [
    next(case for case in CASES if case.architecture == name) for name in dict.fromkeys(c.architecture for c in CASES)
]


@pytest.mark.parametrize("case", ONE, ids=lambda case: case.architecture)
def test_twenty_float32_steps_are_the_cpus(case):
    """From a fresh SAE, with the recipe's schedule of λ and its controller; Adam's ε makes a step a smooth function."""
    d, width, tokens = 6, 14, 10
    begin = start(case, d, width, torch.float32, dead_after=3 * tokens, adam_epsilon=0.1)
    ours, theirs, layer_, cpu, results = there(begin), clone(begin), layer(), kernel_layer("cpu"), []
    for i in range(20):
        x = activations(tokens, d, 50 + i, torch.float32)
        found = step(ours, x.to(DEVICE), 0.05, min(1.0, i / 7), layer_)
        results.append((found, step(theirs, x, 0.05, min(1.0, i / 7), cpu)))
    assert_close(back(ours, layer_), theirs, 2e-5)
    for found, wanted in results:  # a guess that was too high shows a step later, and is put right in place
        assert found.read()[:4] == pytest.approx(wanted[:4], rel=2e-5)


def test_an_sae_in_training_takes_at_most_ten_bytes_per_parameter():
    d, width = 64, 512
    state, layer_ = there(start(CASES[-1], d, width, torch.float32)), layer()
    encoder = state.encoder_for(layer_)
    held = [*state.p.values(), *state.v.values(), state.last, state.silent, state.share]
    held += [one for one in (encoder.norms, encoder.low, encoder.gaps) if one is not None]
    matrices = [one for one in held if one.numel() == width * d]
    assert sum(one.numel() * one.element_size() for one in matrices) == 18 * width * d
    assert sum(one.numel() * one.element_size() for one in held) <= 10 * 2 * width * d
