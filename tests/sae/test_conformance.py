"""What every architecture must do, over the registry: a new file in jumpahead/sae/ is tested before its first test."""

from __future__ import annotations

import importlib
import json
import re
from typing import NamedTuple

import pytest
import torch
from pydantic import BaseModel

from jumpahead.engine import kernel_layer, step
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.base import SAE, Architecture, Counts, Entries, Knobs
from jumpahead.sae.recipe import Setting
from jumpahead.training import begin_as
from tests.engine.cases import CASES, LAYERS, activations, draw, layer, scrambled, start

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
names = pytest.mark.parametrize("name", ARCHITECTURES.names())
C = 17.3  # the scale: x_raw = C·x
D, WIDTH = 10, 37


def saved_form(case, seed=1):
    """(state, folded SAE): random everything, as a run would save it."""
    state = scrambled(case, D, WIDTH, seed, torch.float32)
    return state, SAE(state.arch, state.arch.fold(state.p, C), {"inputs": "abc", "mean": [0.25, -3.0]})


# ---------------------------------------------------------------------------------------------- the registry


def test_the_registry_lists_the_three_that_the_frontier_compares():
    assert ARCHITECTURES.names() == sorted(ARCHITECTURES.names())
    assert {"gated", "jumprelu", "topk"} <= set(ARCHITECTURES.names())
    assert {case.architecture for case in CASES} == set(ARCHITECTURES.names())


@pytest.mark.parametrize(("wrong", "right"), [("jumprelo", "jumprelu"), ("topkk", "topk"), ("gate", "gated")])
def test_an_unknown_architecture_names_the_nearest(wrong, right):
    with pytest.raises(StudyError, match=f"'{wrong}'.*Did you mean '{right}'"):
        ARCHITECTURES.get(wrong)


@pytest.mark.parametrize("support", ["base", "ste", "recipe", "control", "auxk", "threshold", "checked", "__init__"])
def test_files_that_help_are_not_architectures(support):
    with pytest.raises(StudyError):
        ARCHITECTURES.get(support)


@names
def test_the_header_has_the_paper_and_the_departures_from_it(name):
    header = importlib.import_module(f"jumpahead.sae.architectures.{name}").__doc__ or ""
    assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{5}\b", header)
    assert re.search(r"^Departures from the paper: \w+", header, re.MULTILINE)
    assert re.search(r"^ {4}\S+ +=", header, re.MULTILINE), "equations stand in the header"


@names
def test_class_attributes_are_complete(name):
    kind = ARCHITECTURES.get(name)
    assert issubclass(kind, Architecture)
    assert kind.name == name
    assert kind.title
    assert re.fullmatch(r"#[0-9A-F]{6}", kind.colour)
    assert kind.symbol
    assert isinstance(kind.order, int)
    assert kind.settings
    assert set(kind.settings) <= {"l0", "lambda", "k"}
    assert "l0" in kind.settings, "every series takes l0 = [...]"
    assert "b_enc" in kind.vectors
    assert issubclass(kind.Options, BaseModel)
    kind.Options()  # every option has a default
    assert kind.Options.model_config["extra"] == "forbid"
    assert kind.reconstructions[0].target == "input"
    assert kind.reconstructions[0].live


def test_options_against_the_setting_are_refused_without_a_study_too():
    case = next(case for case in CASES if case.options.get("target") == "batch")
    with pytest.raises(StudyError, match=r'^jumprelu: target = "batch" is a loss of a requested L0: give it l0'):
        case._replace(setting=Setting("lambda", 0.3)).arch()


DASHES = {"solid", "dot", "dash", "longdash", "dashdot", "longdashdot"}


@pytest.mark.parametrize("attribute", ["name", "title", "colour", "symbol", "order"])
def test_curves_can_be_told_apart(attribute):
    found = [getattr(ARCHITECTURES.get(name), attribute) for name in ARCHITECTURES.names()]
    assert len(set(found)) == len(found)


def test_a_dash_comes_again_only_where_there_are_no_more():
    found = {ARCHITECTURES.get(name).dash for name in ARCHITECTURES.names()}
    assert found <= DASHES
    assert len(found) == min(len(ARCHITECTURES.names()), len(DASHES))


# ---------------------------------------------------------------------------------------------- initialisation


@cases
def test_initialisation_is_a_function_of_the_seed(case):
    one, same, other = (start(case, D, WIDTH, torch.float32, seed=seed) for seed in (5, 5, 6))
    assert set(one.p) >= {"W_enc", "W_dec", "b_dec", *case.arch().trained}
    for name, tensor in one.p.items():
        assert torch.equal(tensor, same.p[name])
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        shape = {"W_enc": (WIDTH, D), "W_dec": (WIDTH, D), "b_dec": (D,)}.get(name, (WIDTH,))
        assert tensor.shape == shape
    assert not torch.equal(one.p["W_enc"], other.p["W_enc"])
    torch.testing.assert_close(one.p["W_dec"].norm(dim=1), torch.ones(WIDTH))
    assert one.p["W_enc"].data_ptr() != one.p["W_dec"].data_ptr(), "untied"


# ---------------------------------------------------------------------------------------------- the saved SAE


@cases
def test_shapes_and_dtype(case):
    _, one = saved_form(case)
    assert (one.d, one.width, one.architecture) == (D, WIDTH, case.architecture)
    for lead in [(), (1,), (0,), (4, 3)]:
        x = C * activations(12, D, 2, torch.float32)[: max(1, torch.Size(lead).numel())].expand(*lead, -1, D)[..., 0, :]
        f = one.encode(x)
        assert (f.shape, f.dtype) == ((*lead, WIDTH), torch.float32)
        assert (f >= 0).all()
        x_hat = one.decode(f)
        assert (x_hat.shape, x_hat.dtype) == ((*lead, D), torch.float32)
    with pytest.raises(DataError, match=f"{D} values.*not {D + 1}"):
        one.encode(torch.zeros(2, D + 1))
    with pytest.raises(DataError, match=f"{WIDTH} values.*not {D}"):
        one.decode(torch.zeros(2, D))


@cases
def test_forward_is_decode_of_encode_and_the_decoder_is_affine(case):
    _, one = saved_form(case)
    x = C * activations(50, D, 2, torch.float32)
    f = one.encode(x)
    assert torch.equal(one(x), one.decode(f))
    assert (f > 0).any()
    assert not (f > 0).all()
    torch.testing.assert_close(one.decode(f), f @ one.params["W_dec"] + one.params["b_dec"])
    assert torch.equal(one.decode(torch.zeros(WIDTH)), one.params["b_dec"])


@cases
def test_load_of_save_is_bitwise(case, tmp_path):
    _, one = saved_form(case)
    one.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    assert set(again.params) == set(one.params) == {"W_enc", "W_dec", "b_dec", *case.arch().vectors}
    for name, tensor in one.params.items():
        assert torch.equal(again.params[name], tensor)
        assert again.params[name].dtype == tensor.dtype == torch.float32
    assert type(again.arch) is type(one.arch)
    assert (again.arch.options, again.arch.setting, again.arch.recipe) == (
        one.arch.options, one.arch.setting, one.arch.recipe,
    )  # fmt: skip
    assert again.about == one.about == {"inputs": "abc", "mean": [0.25, -3.0]}
    x = C * activations(50, D, 2, torch.float32)
    assert torch.equal(again(x), one(x))
    before = (tmp_path / "sae" / "weights.safetensors").read_bytes()
    again.save(tmp_path / "sae")
    assert (tmp_path / "sae" / "weights.safetensors").read_bytes() == before


@cases
def test_folded_takes_the_lms_own_activations(case):
    """folded(C·x) = C·training(x), features too; the training form is what the engine computes from its support."""
    state, one = saved_form(case)
    p, arch = state.p, state.arch
    x = activations(400, D, 2, torch.float32)
    v, layer_ = arch.derive(p), kernel_layer("plain")
    selection = arch.selection(p, v, Knobs(), training=False)
    support = layer_.support(layer_.centre(x, p["b_dec"]), layer_.encoder(p["W_enc"]), p["b_enc"], selection)
    values = arch.features(arch.values(Entries(support.pre, support.feature, support.part), p, v))
    f = torch.zeros(len(x), WIDTH)
    f[support.token.long(), support.feature.long()] = values
    x_hat = f @ p["W_dec"] + p["b_dec"]

    found = one.encode(C * x)
    same = ((found > 0) == (f > 0)).all(1)
    assert (~same).double().mean() <= 0.01, "more than entries at a boundary differ"
    norms = p["W_dec"].norm(dim=1)
    size = (C * x_hat).norm(dim=1).max()
    assert (one.decode(found) - C * x_hat)[same].norm(dim=1).max() <= 1e-5 * size
    assert (found - C * f * norms)[same].abs().max() <= 1e-5 * found.max()
    torch.testing.assert_close(one.params["W_dec"].norm(dim=1), torch.ones(WIDTH), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", LAYERS)
@cases
def test_the_declared_decoder_norm_holds_after_every_step(case, name):
    state, kernels_ = start(case, D, WIDTH, torch.float32), layer(name)
    for i in range(12):
        step(state, activations(40, D, i, torch.float32), 0.02, 1.0, kernels_)
        norms = state.p["W_dec"].norm(dim=1)
        if state.arch.decoder_norm == "unit":
            assert (norms - 1).abs().max() < 1e-6
    if state.arch.decoder_norm == "free":
        assert (norms - 1).abs().max() > 0.01, "declared free, and yet they keep their norm"


@cases
def test_the_rule_serves_a_dense_block_of_features_alike(case):
    """Elementwise: entries in a vector, or in a block [features of the block, B], give the same gradients."""
    state = scrambled(case, D, WIDTH, seed=9)
    p, arch = state.p, state.arch
    v, knobs, tokens, block = arch.derive(p), Knobs(0.03), 6, torch.arange(5, 31)
    pre = (p["W_enc"] @ (activations(tokens, D, 4) - p["b_dec"]).T + p["b_enc"][:, None])[block]
    sparse = Entries(pre.flatten(), block.repeat_interleave(tokens).int(), token=torch.arange(tokens).repeat(26))
    whole = Entries(pre, block)
    values = arch.values(sparse, p, v), arch.values(whole, p, v)
    incoming = tuple(0.3 * draw(26, tokens, seed=i) for i in range(len(values[0])))
    for flat, dense in zip(*values, strict=True):
        assert torch.equal(flat, dense.flatten())
    counts = Counts(tokens, draw(WIDTH, seed=31).abs(), draw(tokens, seed=32).abs())  # of other blocks too
    pairs = list(zip((sparse, whole), values, strict=True))
    flat, dense = (arch.rule(one, value, p, v, knobs, counts) for one, value in pairs)
    flattened = tuple(one.flatten() for one in incoming)
    assert torch.equal(flat.pre.at(flattened), dense.pre.at(incoming).flatten())
    torch.testing.assert_close(*(arch.charge(one, value, v) for one, value in pairs))
    assert set(flat.vectors) == set(dense.vectors) == set(arch.trained)
    for name, gradient in flat.vectors.items():
        assert torch.equal(gradient.at(flattened), dense.vectors[name].at(incoming).flatten())


@cases
def test_unfolded_is_what_folds_to_it(case):
    """On activations of another scale too; and rows of W_dec are unit, as training wants them."""
    state, saved = saved_form(case)
    for scale in (C, 2.7):
        p = state.arch.unfold(saved.params, scale)
        assert {name: tensor.shape for name, tensor in p.items()} == {n: tensor.shape for n, tensor in state.p.items()}
        assert torch.allclose(p["W_dec"].norm(dim=1), torch.ones(WIDTH))
        again = state.arch.fold(p, scale)
        for name, tensor in saved.params.items():
            torch.testing.assert_close(again[name], tensor, rtol=2e-5, atol=2e-5)


@cases
def test_saes_that_begin_as_one_share_nothing_with_it_or_each_other(case):
    _, saved = saved_form(case)
    kept = {name: tensor.clone() for name, tensor in saved.params.items()}
    sample, layer = activations(300, saved.d, 5, torch.float32), kernel_layer("plain")
    one, other = (start(case, saved.d, saved.width, torch.float32) for _ in range(2))
    for state in (one, other):
        begin_as(state, saved, C, sample)
    before = {name: tensor.clone() for name, tensor in other.p.items()}
    step(one, sample, 0.03, 0.37, layer)
    assert any(not torch.equal(one.p[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(other.p[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(saved.params[name], tensor) for name, tensor in kept.items())


# ---------------------------------------------------------------------------------------------- foreign folders


class Damage(NamedTuple):
    what: str
    names: str
    """What the sentence must name."""


def spoil(folder, what):
    config, weights = folder / "config.json", folder / "weights.safetensors"
    about = json.loads(config.read_text())
    match what:
        case "no folder":
            return folder / "nowhere"
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "torn config":
            config.write_bytes(config.read_bytes()[:-40])
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:-4])
        case "empty weights":
            weights.write_bytes(b"")
        case "a flipped bit":
            content = bytearray(weights.read_bytes())
            content[-9] ^= 4
            weights.write_bytes(content)
        case "another schema":
            config.write_text(json.dumps({**about, "schema": "other/2"}))
        case "another library":
            config.write_text(json.dumps({"architecture": "jumprelu", "d_in": 10, "d_sae": 37}))
        case "an unknown architecture":
            config.write_text(json.dumps({**about, "architecture": "jumprelo"}))
        case "an unknown option":
            config.write_text(json.dumps({**about, "options": {"wings": 2}}))
        case "a setting it does not take":
            config.write_text(json.dumps({**about, "setting": {"kind": "wings", "value": 2}}))
        case "options against the setting":
            other = {"options": {"target": "batch"}, "setting": {"kind": "lambda", "value": 0.1}}
            config.write_text(json.dumps({**about, "architecture": "jumprelu", **other}))
        case "no setting":
            config.write_text(json.dumps({key: value for key, value in about.items() if key != "setting"}))
        case "another shape":
            config.write_text(json.dumps({**about, "width": 38}))
    return folder


DAMAGES = [
    Damage("no folder", "config.json"), Damage("no config", "config.json"),
    Damage("no weights", "weights.safetensors"), Damage("torn config", "config.json"),
    Damage("torn weights", "weights.safetensors"), Damage("empty weights", "weights.safetensors"),
    Damage("a flipped bit", "weights.safetensors"), Damage("another schema", "config.json"),
    Damage("another library", "config.json"), Damage("an unknown architecture", "config.json"),
    Damage("an unknown option", "config.json"), Damage("a setting it does not take", "config.json"),
    Damage("no setting", "config.json"), Damage("options against the setting", "config.json"),
    Damage("another shape", "weights.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.what.replace(" ", "-"))
@names
def test_a_torn_or_foreign_folder_is_an_artefact_error_that_names_the_file(name, damage, tmp_path):
    case = next(case for case in CASES if case.architecture == name)
    saved_form(case)[1].save(tmp_path)
    with pytest.raises(ArtefactError, match=re.escape(damage.names)):
        SAE.load(spoil(tmp_path, damage.what))


@names
def test_weights_of_another_sae_are_refused(name, tmp_path):
    from jumpahead.store import write_tensors

    case = next(case for case in CASES if case.architecture == name)
    one = saved_form(case)[1]
    one.save(tmp_path)
    for wrong in ("W_enc", "b_enc", "b_dec"):
        write_tensors(tmp_path / "weights.safetensors", {**one.params, wrong: one.params[wrong][:-1].clone()})
        with pytest.raises(ArtefactError, match=f"{WIDTH}×{D} {name}"):
            SAE.load(tmp_path)
    write_tensors(tmp_path / "weights.safetensors", {**one.params, "extra": torch.zeros(3)})
    with pytest.raises(ArtefactError, match=f"{WIDTH}×{D} {name}"):
        SAE.load(tmp_path)
