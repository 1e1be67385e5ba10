"""An SAE that is used: inputs are cast, a recipe and a setting are optional, and it knows where it belongs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from jumpahead import engine
from jumpahead.errors import ArtefactError, DataError, DivergedError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.location import Location
from jumpahead.sae.recipe import Setting
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import read_json, write_json
from tests.engine.cases import CASES, LAYERS, activations, layer, random_state
from tests.sae.variants import architecture, one_per

C, D, WIDTH = 17.3, 10, 37


def saved(case, about=None):
    state = random_state(case, D, WIDTH, 3, torch.float32)
    return SAE(state.arch, state.arch.fold(state.params, C), about)


def without_training(sae):
    """Return the SAE as one of another make: no recipe, and a setting only where features depend on it."""
    kind = ARCHITECTURES.get(sae.architecture)
    setting = sae.arch.setting if kind.encodes_by_setting else None
    return SAE(kind(sae.arch.options, setting, None), sae.params, {"made_by": "elsewhere"})


def dense(features, width=WIDTH):
    out = torch.zeros(len(features.indptr) - 1, width)
    token = torch.arange(len(out)).repeat_interleave(features.indptr.diff())
    out[token, features.feature.long()] = features.value
    return out


# ---------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "float16", "float32", "float64"])
def test_inputs_of_every_dtype_are_cast(dtype):
    sae, x = saved(CASES[0]), C * activations(12, D, 2, torch.float32).reshape(3, 4, D)
    given = x.numpy().astype(dtype) if isinstance(dtype, str) else x.to(dtype)
    rounded = torch.as_tensor(given).float()
    f = sae.encode(given)
    assert f.dtype == torch.float32
    assert torch.equal(f, sae.encode(rounded))
    assert torch.equal(sae.decode(f.numpy() if isinstance(dtype, str) else f.double()), sae.decode(f))
    assert torch.equal(sae(given), sae(rounded))
    found = engine.encode(sae, given, layer("torch"))
    assert torch.equal(found.value, engine.encode(sae, rounded.reshape(-1, D), layer("torch")).value)
    assert len(found.indptr) == 13, "tokens of [b, t, d] in order"


def test_a_read_only_array_is_no_warning():
    x = np.zeros((3, D), np.float32)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved(CASES[0]).encode(x)


@pytest.mark.parametrize("x", [torch.zeros(2, D, dtype=torch.int64), np.zeros((2, D), np.int32), [[0.5] * D], "text"])
def test_inputs_that_are_no_activations_are_refused(x):
    with pytest.raises(DataError, match="must be a tensor or array of floating-point numbers"):
        saved(CASES[0]).encode(x)


def test_a_single_number_is_refused():
    with pytest.raises(DataError, match=f"must have {D} values"):
        saved(CASES[0]).encode(torch.tensor(0.5))


def test_gradients_reach_inputs_of_another_dtype():
    x = (C * activations(4, D, 2)).requires_grad_()
    saved(CASES[0])(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# ---------------------------------------------------------------------------------------------- input bias


@one_per(architecture)
def test_b_pre_is_subtracted_before_the_encoder_product(case, tmp_path):
    sae, x = saved(case), C * activations(60, D, 2, torch.float32)
    b_pre = torch.linspace(-3.0, 5.0, D)
    with_bias = SAE(sae.arch, sae.params | {"b_pre": b_pre})
    assert sae.b_pre is None
    assert torch.equal(with_bias.encode(x), sae.encode(x - b_pre))
    assert torch.equal(with_bias(x), sae(x - b_pre))
    for name in LAYERS:
        found, wanted = engine.encode(with_bias, x, layer(name)), engine.encode(sae, x - b_pre, layer(name))
        assert torch.equal(found.value, wanted.value)
        assert torch.equal(found.feature, wanted.feature)
    with_bias.save(tmp_path)
    assert torch.equal(SAE.load(tmp_path).encode(x), with_bias.encode(x))


# ---------------------------------------------------------------------------------------------- of another make


@one_per(architecture)
def test_an_sae_without_a_recipe_encodes_and_is_saved(case, tmp_path):
    trained = saved(case)
    sae, x = without_training(trained), C * activations(60, D, 2, torch.float32)
    assert sae.recipe is None
    assert (sae.setting is None) == (case.architecture != "topk")
    assert ("l0" in repr(sae)) == (sae.setting is not None)
    assert torch.equal(sae(x), trained(x))
    for name in LAYERS:
        assert torch.equal(engine.encode(sae, x, layer(name)).value, engine.encode(trained, x, layer(name)).value)
    sae.save(tmp_path)
    again = SAE.load(tmp_path)
    assert (again.recipe, again.setting, again.about) == (sae.recipe, sae.setting, sae.about)
    assert torch.equal(again(x), sae(x))


def test_topk_without_k_is_refused(tmp_path):
    case = next(case for case in CASES if case.architecture == "topk")
    saved(case).save(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), "setting": None})
    with pytest.raises(ArtefactError, match=r"config\.json is not the configuration of an SAE: topk needs a setting"):
        SAE.load(tmp_path)


@one_per(architecture)
def test_unit_decoder_rows_change_features_alone(case):
    sae, x = without_training(saved(case)), C * activations(60, D, 2, torch.float32)
    factors = torch.linspace(0.3, 2.7, WIDTH)
    if sae.arch.encodes_by_setting:
        with pytest.raises(DataError, match="keeps the largest features"):
            sae.with_unit_decoder_rows()
        return
    scaled = SAE(sae.arch, sae.arch.rescale_features(sae.params, 1 / factors))
    assert (scaled.params["W_dec"].norm(dim=1) - factors).abs().max() < 1e-5
    unit = scaled.with_unit_decoder_rows()
    torch.testing.assert_close(unit.params["W_dec"].norm(dim=1), torch.ones(WIDTH))
    same = ((scaled.encode(x) > 0) == (unit.encode(x) > 0)).all(1)
    assert same.float().mean() > 0.95
    torch.testing.assert_close(unit.encode(x)[same], factors * scaled.encode(x)[same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unit(x)[same], scaled(x)[same], rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------------------------------- where it belongs


@pytest.mark.parametrize(
    ("lm", "digest", "name", "other", "same"),
    [
        ("tiny", "a1", "tiny", "a1", True),
        ("tiny", "a1", "tiny", "b2", False),
        ("models/copy", "a1", "tiny", "a1", True),
        ("google/gemma-2-2b", "google/gemma-2-2b@f0", "google/gemma-2-2b", "google/gemma-2-2b@e7", True),
        ("google/gemma-2-2b", None, "/models/Gemma-2-2b/", "a1", True),
        ("gpt2-small", None, "gpt2", "gpt2@e7", True),
        ("gemma-2-2b", None, "google/gemma-2-9b", "google/gemma-2-9b@e7", False),
        (None, None, "tiny", "a1", True),
    ],
)
def test_language_models_are_compared_by_digest_then_by_name(lm, digest, name, other, same):
    assert Location(lm, digest, None, None).is_lm(name, other) is same


@pytest.fixture(scope="module")
def lm():
    return LM.load(LMConfig(model="tiny", context=8, batch=2))


def spliced(lm, about, site):
    """Return the warnings of two splices of an SAE of which `about` is known."""
    case = next(case for case in CASES if case.architecture == "jumprelu")
    state = random_state(case, lm.width_at(site), WIDTH, 3, torch.float32)
    sae = SAE(state.arch, state.arch.fold(state.params, 2.5), about)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            lm.splice([[5, 6, 7, 8]], site, sae)
    return [str(one.message) for one in found]


def test_splicing_where_it_belongs_warns_of_nothing(lm):
    for about in (
        {},
        {"lm": {"model": "tiny", "digest": lm.digest}, "site": "layers.1.residual"},
        {"lm": {"model": "elsewhere/tiny"}, "site": "blocks.1.hook_resid_post"},
    ):
        assert spliced(lm, about, "layers.1.residual") == []


def test_splicing_elsewhere_warns_once_and_names_both(lm):
    (found,) = spliced(lm, {"lm": {"model": "tiny", "digest": "0f"}, "site": "layers.1.mlp"}, "layers.1.residual")
    assert found.endswith("was trained for other weights of tiny and site layers.1.mlp, not layers.1.residual.")
    (found,) = spliced(lm, {"lm": {"model": "gpt2"}, "site": "layers.0.residual"}, "layers.0.residual")
    assert found.endswith("was trained for language model gpt2, not tiny.")
    (found,) = spliced(lm, {"site": "hook_embed"}, "layers.0.residual")
    assert found.endswith("was trained for site hook_embed, not layers.0.residual.")


def test_a_setting_that_is_not_known_stays_none():
    kind = ARCHITECTURES.get("jumprelu")
    arch = kind(kind.Options(), None, None)
    assert (arch.known_setting, arch.known_recipe) == (None, None)
    with pytest.raises(AssertionError, match="without a setting"):
        _ = arch.setting
    arch.setting = Setting("l0", 7.0)
    assert arch.known_setting == Setting("l0", 7.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_saved_sae_is_finite(tmp_path, value):
    sae = saved(CASES[0])
    name = sorted(sae.params)[-1]
    sae.params[name].view(-1)[3] = value
    with pytest.raises(DivergedError, match=f"holds NaN or infinite values in {name}: it is not saved"):
        sae.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
