"""Sparse encoding and decoding with the engine's kernels equal the saved SAE's dense forward pass."""

from __future__ import annotations

import pytest
import torch

from jumpahead import engine
from jumpahead.engine import SparseFeatures
from jumpahead.sae.saved import SAE
from tests.engine.cases import CASES, LAYERS, activations, layer, one_per_options, random_state

cases = pytest.mark.parametrize("case", one_per_options(), ids=lambda case: case.label)
layers = pytest.mark.parametrize("name", LAYERS)
C, D, WIDTH = 17.3, 18, 90


def saved_sae(case, bias=0.0):
    """Return a saved SAE with random weights, for activations of scale C."""
    state = random_state(case, D, WIDTH, seed=6, dtype=torch.float32, bias=bias)
    return SAE(state.arch, state.arch.fold(state.params, C))


def to_dense(features, width):
    """Return sparse features as a dense tensor [n, width]."""
    out = torch.zeros(len(features.indptr) - 1, width)
    token = torch.arange(len(out)).repeat_interleave(features.indptr.diff())
    out[token, features.feature.long()] = features.value
    return out


@layers
@cases
def test_sparse_features_equal_dense_features(case, name):
    sae, x = saved_sae(case), C * activations(300, D, 5, torch.float32)
    found, wanted = engine.encode(sae, x, layer(name)), sae.encode(x)
    assert (found.indptr.dtype, found.feature.dtype, found.value.dtype) == (torch.int64, torch.int32, torch.float32)
    assert found.indptr[0] == 0
    assert found.indptr[-1] == len(found.feature) == len(found.value)
    assert (found.value > 0).all()
    token = torch.arange(300).repeat_interleave(found.indptr.diff())
    assert ((token * WIDTH + found.feature).diff() > 0).all(), "ascending within a token, without repetition"
    same = ((to_dense(found, WIDTH) > 0) == (wanted > 0)).all(1)
    assert (~same).double().mean() <= 0.01, "more than entries at a boundary differ"
    torch.testing.assert_close(to_dense(found, WIDTH)[same], wanted[same], rtol=1e-5, atol=1e-5 * float(wanted.max()))
    assert 0 < len(found.feature) < 300 * WIDTH


@layers
@cases
def test_sparse_decoding_equals_dense_decoding(case, name):
    sae, x = saved_sae(case), C * activations(70, D, 5, torch.float32)
    found = engine.encode(sae, x, layer(name))
    wanted = sae.decode(to_dense(found, WIDTH))
    torch.testing.assert_close(engine.decode(sae, found), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@cases
def test_both_layers_give_the_same_bits(case):
    sae, x = saved_sae(case), C * activations(100, D, 5, torch.float32)
    for ours, theirs in zip(*(engine.encode(sae, x, layer(name)) for name in LAYERS), strict=True):
        assert torch.equal(ours, theirs)


@layers
@cases
def test_tokens_without_a_feature_decode_to_the_bias(case, name):
    sae, x = saved_sae(case), C * activations(9, D, 5, torch.float32)
    sae.params["b_enc"] -= 1e6
    found = engine.encode(sae, x, layer(name))
    assert found.indptr.tolist() == [0] * 10
    assert len(found.feature) == len(found.value) == 0
    assert torch.equal(engine.decode(sae, found), sae.params["b_dec"].expand(9, D))


@layers
@cases
def test_an_empty_batch(case, name):
    sae = saved_sae(case)
    found = engine.encode(sae, torch.zeros(0, D), layer(name))
    assert [len(part) for part in found] == [1, 0, 0]
    assert engine.decode(sae, found).shape == (0, D)


def test_decoding_by_hand():
    case = next(case for case in CASES if case.architecture == "jumprelu")
    sae = saved_sae(case)
    sae.params["W_dec"], sae.params["b_dec"] = torch.zeros(WIDTH, D), torch.zeros(D)
    sae.params["W_dec"][3, 0], sae.params["W_dec"][7, 1], sae.params["b_dec"][2] = 2.0, 5.0, 0.25
    features = SparseFeatures(torch.tensor([0, 2, 2, 3]), torch.tensor([3, 7, 7]).int(), torch.tensor([1.5, 0.5, 3.0]))
    assert engine.decode(sae, features)[:, :3].tolist() == [[3.0, 2.5, 0.25], [0, 0, 0.25], [0, 15.0, 0.25]]


def test_the_default_layer_is_numba():
    assert "numba" in engine.kernel_layer().name
    assert engine.kernel_layer("torch").name == "plain torch"
