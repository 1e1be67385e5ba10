"""Trained parameters and those of a saved SAE say the same, whatever the unit and however large the mean."""

from __future__ import annotations

import pytest
import torch

from jumpahead import engine
from jumpahead.sae.saved import SAE
from jumpahead.sae.unit import Unit
from tests.engine.cases import CASES, LAYERS, activations, layer, random_state
from tests.sae.variants import architecture, one_per, parametrisation

D, WIDTH, C, GAMMA = 18, 90, 17.3, 300.0


def mean(gamma: float, seed: int) -> torch.Tensor:
    """Return a mean of the norm gamma·C."""
    direction = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    return gamma * C * direction / direction.norm()


def trained(case):
    """Return an SAE in the middle of training, in the unit of its activations, and that unit."""
    return random_state(case, D, WIDTH, 6, torch.float32), Unit(C, mean(GAMMA, 1))


def rows(unit: Unit) -> torch.Tensor:
    """Return 300 activations of the LM in float32."""
    return unit.mean + unit.scale * activations(300, D, 5, torch.float32)


def same_but_at_boundaries(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Assert that features [n, M] are equal, except for the tokens of at most 1 % of the rows, where one flips."""
    same = ((found > 0) == (wanted > 0)).all(1)
    assert float((~same).double().mean()) <= 0.01
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found[same], wanted[same], rtol=tolerance, atol=tolerance * scale)


@one_per(parametrisation)
def test_a_folded_sae_computes_what_was_trained_though_the_mean_is_300_times_the_spread(case):
    """The trained one in float64, on the same float32 activations."""
    state, unit = trained(case)
    x = rows(unit)
    z, _ = unit.apply(x)
    saved = SAE(state.arch, unit.fold(state.arch, state.params))
    exact = {name: tensor.double() for name, tensor in state.arch.fold(state.params, 1.0).items()}
    wanted = C * state.arch.activate(exact, z.double() @ exact["W_enc"].T + exact["b_enc"])
    assert float((wanted > 0).double().mean()) > 0.02
    same_but_at_boundaries(saved.encode(x).double(), wanted, 1e-5)
    x_hat = (wanted @ exact["W_dec"] + C * exact["b_dec"]) + unit.mean
    torch.testing.assert_close(saved.decode(wanted.float()).double(), x_hat, rtol=1e-6, atol=1e-6 * GAMMA * C)


@one_per(architecture)
@pytest.mark.parametrize("name", LAYERS)
def test_the_sparse_encoder_subtracts_the_mean_too(case, name):
    state, unit = trained(case)
    x = rows(unit)
    saved = SAE(state.arch, unit.fold(state.arch, state.params))
    found = engine.encode(saved, x, layer(name))
    dense = torch.zeros(len(x), WIDTH)
    dense[torch.arange(len(x)).repeat_interleave(found.indptr.diff()), found.feature.long()] = found.value
    same_but_at_boundaries(dense, saved.encode(x), 1e-5)
    torch.testing.assert_close(engine.decode(saved, found), saved.decode(dense), rtol=1e-5, atol=1e-5 * GAMMA * C)


UNITS = {"same": Unit(C, mean(GAMMA, 1)), "published": Unit(40.0), "other": Unit(2.7, mean(30.0, 9), 5.0)}


@one_per(parametrisation)
@pytest.mark.parametrize("start", UNITS)
def test_an_sae_saved_in_any_unit_is_unfolded_in_any_other(case, start):
    """The trained parameters in the new unit fold to an SAE that encodes and decodes as the one they come from."""
    state = random_state(case, D, WIDTH, 6, torch.float32)
    first, x = (
        SAE(state.arch, UNITS[start].fold(state.arch, state.params)),
        rows(UNITS["same"] if start == "same" else UNITS["other"]),
    )
    for unit in UNITS.values():
        params = unit.unfold(state.arch, first.params)
        assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
            name: (p.shape, p.dtype) for name, p in state.params.items()
        }
        again = SAE(state.arch, unit.fold(state.arch, params))
        assert ("b_pre" in again.params) == (unit.mean is not None)
        if unit.mean is not None:
            assert torch.equal(again.params["b_pre"], unit.mean)
        same_but_at_boundaries(again.encode(x), first.encode(x), 3e-3 if unit is not UNITS[start] else 1e-4)
        f = first.encode(x)
        torch.testing.assert_close(again.decode(f), first.decode(f), rtol=1e-4, atol=1e-5 * GAMMA * C)


def test_a_saved_sae_keeps_its_b_pre(tmp_path):
    state, unit = trained(CASES[0])
    saved = SAE(state.arch, unit.fold(state.arch, state.params))
    saved.save(tmp_path)
    again = SAE.load(tmp_path)
    assert again.params.keys() == saved.params.keys()
    assert all(torch.equal(again.params[name], tensor) for name, tensor in saved.params.items())
    assert torch.equal(again.encode(rows(unit)), saved.encode(rows(unit)))
    assert SAE(state.arch, Unit(C).fold(state.arch, state.params)).b_pre is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mean_is_subtracted_before_anything_is_rounded(dtype):
    """bfloat16 rows near their mean: x − μ is exact in float32, and 3e-2 of x off in bfloat16."""
    unit = Unit(0.5, torch.full((4,), 100.3))
    x = torch.tensor([[100.5, 101.0, 99.5, 100.0]]).to(dtype)
    z, limited = unit.apply(x)
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert limited is None
    torch.testing.assert_close(z, ((x.double() - unit.mean.double()) / 0.5).to(z.dtype), rtol=1e-6, atol=1e-6)
