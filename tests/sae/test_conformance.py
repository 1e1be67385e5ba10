"""What every architecture must do, over the registry: a new file in architectures/ is tested before its first test."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from typing import NamedTuple

import pytest
import torch

from jumpahead.engine import kernel_layer, train_step
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.sae.architecture import Architecture, Options
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.gradients import Counts, StepInputs
from jumpahead.sae.recipe import Setting
from jumpahead.sae.saved import SAE
from jumpahead.sae.support import Entries
from jumpahead.sae.unit import Unit
from jumpahead.storage.json_files import write_json
from jumpahead.training.job import warm_start
from tests.engine.cases import CASES, LAYERS, activations, layer, random_state, standard_normal, untrained_state
from tests.sae.variants import architecture, loss_terms, one_per, options, parametrisation

names = pytest.mark.parametrize("name", ARCHITECTURES.names())
C = 17.3  # the scale: x_raw = C·x
D, WIDTH = 10, 37


def saved_form(case, seed=1):
    """(state, folded SAE): random everything, as a run would save it."""
    state = random_state(case, D, WIDTH, seed, torch.float32)
    return state, SAE(state.arch, state.arch.fold(state.params, C), {"inputs": "abc", "mean": [0.25, -3.0]})


# ---------------------------------------------------------------------------------------------- the registry


def test_the_registry_lists_the_three_architectures_of_the_paper():
    assert ARCHITECTURES.names() == sorted(ARCHITECTURES.names())
    assert {"gated", "jumprelu", "topk"} <= set(ARCHITECTURES.names())
    assert {case.architecture for case in CASES} == set(ARCHITECTURES.names())


@pytest.mark.parametrize(("wrong", "right"), [("jumprelo", "jumprelu"), ("topkk", "topk"), ("gate", "gated")])
def test_an_unknown_architecture_names_the_nearest(wrong, right):
    with pytest.raises(StudyError, match=f"'{wrong}'.*Did you mean '{right}'"):
        ARCHITECTURES.get(wrong)


@pytest.mark.parametrize("helper", ["architecture", "recipe", "threshold", "auxk", "__init__"])
def test_modules_beside_the_folder_are_not_architectures(helper):
    with pytest.raises(StudyError):
        ARCHITECTURES.get(helper)


@names
def test_the_header_has_a_link_to_the_source_equations_and_departures(name):
    header = importlib.import_module(f"jumpahead.sae.architectures.{name}").__doc__ or ""
    assert re.search(r"https://\S+\w", header.partition("\n")[0]), "the first line links to the source"
    assert re.search(r"^Departures from the paper: \w+", header, re.MULTILINE)
    assert re.search(r"^ {4}\S+ +=", header, re.MULTILINE), "equations stand in the header"


@names
def test_class_attributes_are_complete(name):
    kind = ARCHITECTURES.get(name)
    assert issubclass(kind, Architecture)
    assert kind.name == name
    assert kind.title
    assert kind.settings
    assert set(kind.settings) <= {"l0", "lambda", "k"}
    assert "l0" in kind.settings, "every series takes l0 = [...]"
    assert "b_enc" in kind.vectors
    assert dataclasses.is_dataclass(kind.Options)
    assert issubclass(kind.Options, Options)
    kind.Options()  # every option has a default
    with pytest.raises(TypeError):
        kind.Options(wings=2)
    assert kind.reconstructions[0].target == "input"
    assert kind.reconstructions[0].trains_decoder


def test_options_against_the_setting_are_refused_without_a_study_too():
    case = next(case for case in CASES if case.options.get("target") == "batch")
    with pytest.raises(StudyError, match=r'^jumprelu: target = "batch" is a loss of a requested L0: give it l0'):
        case._replace(setting=Setting("lambda", 0.3)).arch()


def test_titles_are_unique():
    titles = [ARCHITECTURES.get(name).title for name in ARCHITECTURES.names()]
    assert len(set(titles)) == len(titles)


# ---------------------------------------------------------------------------------------------- initialisation


@one_per(parametrisation)
def test_initialisation_is_a_function_of_the_seed(case):
    one, same, other = (untrained_state(case, D, WIDTH, torch.float32, seed=seed) for seed in (5, 5, 6))
    assert set(one.params) >= {"W_enc", "W_dec", "b_dec", *case.arch().trained_vectors}
    for name, tensor in one.params.items():
        assert torch.equal(tensor, same.params[name])
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        shape = {"W_enc": (WIDTH, D), "W_dec": (WIDTH, D), "b_dec": (D,)}.get(name, (WIDTH,))
        assert tensor.shape == shape
    assert not torch.equal(one.params["W_enc"], other.params["W_enc"])
    torch.testing.assert_close(one.params["W_dec"].norm(dim=1), torch.ones(WIDTH))
    assert one.params["W_enc"].data_ptr() != one.params["W_dec"].data_ptr(), "untied"


# ---------------------------------------------------------------------------------------------- the saved SAE


@one_per(architecture)
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


@one_per(architecture)
def test_forward_is_decode_of_encode_and_the_decoder_is_affine(case):
    _, one = saved_form(case)
    x = C * activations(50, D, 2, torch.float32)
    f = one.encode(x)
    assert torch.equal(one(x), one.decode(f))
    assert (f > 0).any()
    assert not (f > 0).all()
    torch.testing.assert_close(one.decode(f), f @ one.params["W_dec"] + one.params["b_dec"])
    assert torch.equal(one.decode(torch.zeros(WIDTH)), one.params["b_dec"])


@one_per(options)
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


@one_per(parametrisation)
def test_folded_takes_the_lms_own_activations(case):
    """folded(C·x) = C·training(x), features too; the training form is what the engine computes from its support."""
    state, one = saved_form(case)
    p, arch = state.params, state.arch
    x = activations(400, D, 2, torch.float32)
    v, layer_ = arch.derive(p), kernel_layer("torch")
    selection = arch.selection(p, v, StepInputs(), training=False)
    support = layer_.find_support(
        layer_.centre_input(x, p["b_dec"]), layer_.prepare_encoder(p["W_enc"]), p["b_enc"], selection
    )
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
@one_per(lambda case: (case.architecture, case.arch().decoder_norm))
def test_the_declared_decoder_norm_holds_after_every_step(case, name):
    state, kernels_ = untrained_state(case, D, WIDTH, torch.float32), layer(name)
    for i in range(12):
        train_step(state, activations(40, D, i, torch.float32), 0.02, 1.0, kernels_)
        norms = state.params["W_dec"].norm(dim=1)
        if state.arch.decoder_norm == "unit":
            assert (norms - 1).abs().max() < 1e-6
    if state.arch.decoder_norm == "free":
        assert (norms - 1).abs().max() > 0.01, "declared free, and yet they keep their norm"


@one_per(loss_terms)
def test_the_rule_serves_a_dense_block_of_features_alike(case):
    """Elementwise: entries in a vector, or in a block [features of the block, B], give the same gradients."""
    state = random_state(case, D, WIDTH, seed=9)
    p, arch = state.params, state.arch
    v, step_inputs, tokens, block = arch.derive(p), StepInputs(0.03), 6, torch.arange(5, 31)
    pre = (p["W_enc"] @ (activations(tokens, D, 4) - p["b_dec"]).T + p["b_enc"][:, None])[block]
    sparse = Entries(pre.flatten(), block.repeat_interleave(tokens).int(), token=torch.arange(tokens).repeat(26))
    whole = Entries(pre, block)
    values = arch.values(sparse, p, v), arch.values(whole, p, v)
    incoming = tuple(0.3 * standard_normal(26, tokens, seed=i) for i in range(len(values[0])))
    for flat, dense in zip(*values, strict=True):
        assert torch.equal(flat, dense.flatten())
    counts = Counts(
        tokens, standard_normal(WIDTH, seed=31).abs(), standard_normal(tokens, seed=32).abs()
    )  # of other blocks too
    pairs = list(zip((sparse, whole), values, strict=True))
    flat, dense = (arch.entry_gradients(one, value, p, v, step_inputs, counts) for one, value in pairs)
    flattened = tuple(one.flatten() for one in incoming)
    assert torch.equal(flat.pre.evaluate(flattened), dense.pre.evaluate(incoming).flatten())
    torch.testing.assert_close(*(arch.sparsity_sum(one, value, v) for one, value in pairs))
    assert set(flat.vectors) == set(dense.vectors) == set(arch.trained_vectors)
    for name, gradient in flat.vectors.items():
        assert torch.equal(gradient.evaluate(flattened), dense.vectors[name].evaluate(incoming).flatten())


@one_per(parametrisation)
def test_unfolded_is_what_folds_to_it(case):
    """On activations of another scale too; and rows of W_dec are unit, as training wants them."""
    state, saved = saved_form(case)
    for scale in (C, 2.7):
        p = state.arch.unfold(saved.params, scale)
        assert {name: tensor.shape for name, tensor in p.items()} == {
            n: tensor.shape for n, tensor in state.params.items()
        }
        assert torch.allclose(p["W_dec"].norm(dim=1), torch.ones(WIDTH))
        again = state.arch.fold(p, scale)
        for name, tensor in saved.params.items():
            torch.testing.assert_close(again[name], tensor, rtol=2e-5, atol=2e-5)


@one_per(architecture)
def test_saes_with_one_warm_start_share_no_memory(case):
    _, saved = saved_form(case)
    kept = {name: tensor.clone() for name, tensor in saved.params.items()}
    sample, layer = activations(300, saved.d, 5, torch.float32), kernel_layer("torch")
    one, other = (untrained_state(case, saved.d, saved.width, torch.float32) for _ in range(2))
    for state in (one, other):
        warm_start(state, saved, Unit(C), sample)
    before = {name: tensor.clone() for name, tensor in other.params.items()}
    train_step(one, sample, 0.03, 0.37, layer)
    assert any(not torch.equal(one.params[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(other.params[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(saved.params[name], tensor) for name, tensor in kept.items())


# ---------------------------------------------------------------------------------------------- foreign folders


class Damage(NamedTuple):
    what: str
    names: str
    """What the sentence must name."""


def spoil(folder, what):
    config, weights = folder / "config.json", folder / "weights.safetensors"
    about = {key: value for key, value in json.loads(config.read_text()).items() if key != "checksum"}
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
        # These have a right checksum: somebody wrote them so.
        case "another schema":
            write_json(config, {**about, "schema": "other/2"})
        case "another library":
            config.write_text(json.dumps({"architecture": "jumprelu", "d_in": 10, "d_sae": 37}))
        case "an unknown architecture":
            write_json(config, {**about, "architecture": "jumprelo"})
        case "an unknown option":
            write_json(config, {**about, "options": {"wings": 2}})
        case "a setting it does not take":
            write_json(config, {**about, "setting": {"kind": "wings", "value": 2}})
        case "options against the setting":
            other = {"options": {"target": "batch"}, "setting": {"kind": "lambda", "value": 0.1}}
            write_json(config, {**about, "architecture": "jumprelu", **other})
        case "no setting":
            write_json(config, {key: value for key, value in about.items() if key != "setting"})
        case "another shape":
            write_json(config, {**about, "width": 38})
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
def test_a_damaged_or_foreign_folder_is_an_artefact_error_that_names_the_file(damage, tmp_path):
    saved_form(CASES[0])[1].save(tmp_path)
    with pytest.raises(ArtefactError, match=re.escape(damage.names)):
        SAE.load(spoil(tmp_path, damage.what))


def test_weights_of_another_sae_are_refused(tmp_path):
    from jumpahead.storage.tensors import write_tensors

    one = saved_form(CASES[0])[1]
    one.save(tmp_path)
    for wrong in ("W_enc", "b_enc", "b_dec"):
        write_tensors(tmp_path / "weights.safetensors", {**one.params, wrong: one.params[wrong][:-1].clone()})
        with pytest.raises(ArtefactError, match=f"{WIDTH}×{D} {one.architecture}"):
            SAE.load(tmp_path)
    write_tensors(tmp_path / "weights.safetensors", {**one.params, "extra": torch.zeros(3)})
    with pytest.raises(ArtefactError, match=f"{WIDTH}×{D} {one.architecture}"):
        SAE.load(tmp_path)
