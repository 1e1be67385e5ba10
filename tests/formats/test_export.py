"""Exported files hold, in the library's own equations, what the SAE computes; impossible pairs are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import jumpahead
from jumpahead import api
from jumpahead.cli import app
from jumpahead.errors import StudyError
from jumpahead.formats import FORMATS, load, save
from jumpahead.interchange.common_form import common_form
from jumpahead.interchange.hook_names import gemma_scope_name, site_name, transformer_lens_name
from jumpahead.lm.sites import KINDS, Site, parse_site
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.architectures.jumprelu import JumpReLU
from jumpahead.sae.saved import SAE
from tests.engine.cases import CASES, activations, random_state
from tests.formats.layouts import FILES, OUTPUTS, read_weights
from tests.sae.variants import architecture, one_per

C, D, WIDTH = 3.3, 10, 37
ABOUT = {"lm": {"model": "google/gemma-2-2b", "context": 64, "bos": "auto"}, "site": "layers.3.residual"}
HOLDS = {
    "saelens": {"relu", "jumprelu", "topk", "gated"},
    "dictionary_learning": {"relu", "jumprelu", "topk", "gated"},
    "llamascopium": {"relu", "jumprelu", "topk"},
    "gemma_scope": {"relu", "jumprelu"},
    "gemma_scope_2": {"relu", "jumprelu"},
    "sparsify": {"topk"},
    "qwen_scope": set(),
}
"""The activation functions that each library has."""
exports = pytest.mark.parametrize("name", HOLDS)


def saved(case, about=ABOUT):
    state = random_state(case, D, WIDTH, 3, torch.float32)
    return SAE(state.arch, state.arch.fold(state.params, C), dict(about))


def read(name, folder):
    """Return the configuration and the tensors of exported files, read without jumpahead."""
    config, weights = FILES[name]
    return json.loads((folder / config).read_text()) if config else {}, read_weights(folder / weights)


def agree(ours, theirs):
    """Check two features [n, M] on the tokens with the same active features; return the mask of these tokens."""
    same = ((ours > 0) == (theirs > 0)).all(1)
    assert same.double().mean() > 0.98
    torch.testing.assert_close(ours[same].double(), theirs[same].double(), rtol=1e-5, atol=1e-5 * float(ours.max()))
    return same


def test_every_format_is_tried():
    assert {*HOLDS, "jumpahead"} == set(FORMATS.names())


@exports
@one_per(architecture)
def test_an_export_computes_the_same(case, name, tmp_path):
    sae, x = saved(case), C * activations(300, D, 5, torch.float32)
    kind = common_form(sae, "a format").activation
    if kind not in HOLDS[name]:
        with pytest.raises(StudyError, match=f"of architecture '{case.architecture}' cannot be exported to "):
            save(sae, name, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    assert save(sae, name, tmp_path) == tmp_path
    f, x_hat = OUTPUTS[name](
        read(name, tmp_path)[0], {k: v.double() for k, v in read(name, tmp_path)[1].items()}, x.double()
    )
    same = agree(sae.encode(x), f)
    torch.testing.assert_close(sae(x)[same].double(), x_hat[same], rtol=1e-5, atol=1e-5 * float(x_hat.abs().max()))
    again = load(tmp_path)
    assert again.architecture == ("jumprelu" if name.startswith("gemma") else kind)
    agree(sae.encode(x), again.encode(x))
    if name not in ("gemma_scope", "sparsify"):
        assert again.location.site == "layers.3.residual"
    if name in ("saelens", "gemma_scope_2", "dictionary_learning"):
        assert again.location.lm == "google/gemma-2-2b"


@exports
@one_per(architecture)
def test_an_input_bias_is_exported(case, name, tmp_path):
    sae, x = saved(case), C * activations(300, D, 5, torch.float32)
    sae = SAE(sae.arch, sae.params | {"b_pre": torch.linspace(-3.0, 5.0, D)}, sae.about)
    if common_form(sae, "a format").activation not in HOLDS[name]:
        return
    x = x + sae.params["b_pre"]
    save(sae, name, tmp_path)
    config, tensors = read(name, tmp_path)
    f, x_hat = OUTPUTS[name](config, {key: value.double() for key, value in tensors.items()}, x.double())
    same = agree(sae.encode(x), f)
    torch.testing.assert_close(sae(x)[same].double(), x_hat[same], rtol=1e-5, atol=1e-5 * float(x_hat.abs().max()))
    agree(sae.encode(x), load(tmp_path).encode(x))
    if name == "saelens":
        assert config["apply_b_dec_to_input"] is True


@pytest.mark.parametrize(
    ("name", "kind"), [("saelens", "jumprelu"), ("dictionary_learning", "topk"), ("sparsify", "topk")]
)
def test_a_mean_a_thousand_times_the_spread_costs_no_precision(name, kind, tmp_path):
    """If the format has an input bias, W_enc·x and b_enc are not large numbers that nearly cancel."""
    sae = saved(next(case for case in CASES if case.architecture == kind))
    mean = 1000.0 * C * torch.linspace(-1.0, 1.0, D).round(decimals=1)
    sae = SAE(sae.arch, sae.params | {"b_pre": mean, "b_dec": sae.params["b_dec"] + mean}, sae.about)
    save(sae, name, tmp_path)
    again, x = load(tmp_path), mean + C * activations(300, D, 5, torch.float32)
    assert again.b_pre is not None
    f, g = sae.encode(x), again.encode(x)
    same = (f > 0) == (g > 0)
    assert same.double().mean() > 0.999
    assert ((f - g).abs() * same).max() < 1e-6 * f.max()
    assert (f > 0).any()


@exports
def test_an_sae_without_a_known_location_is_exported(name, tmp_path):
    if not HOLDS[name]:
        return
    case = next(case for case in CASES if case.architecture == ("topk" if name == "sparsify" else "jumprelu"))
    save(saved(case, {}), name, tmp_path)
    assert load(tmp_path).width == WIDTH


def test_what_saelens_must_be_told(tmp_path):
    """Its default is an input bias, and a file without a version is read with the rules of version 5."""
    save(saved(next(case for case in CASES if case.architecture == "topk")), "saelens", tmp_path)
    config, tensors = read("saelens", tmp_path)
    assert config["apply_b_dec_to_input"] is False
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert (config["k"], config["rescale_acts_by_decoder_norm"], config["dtype"]) == (4, False, "float32")
    assert (config["metadata"]["hook_name"], config["metadata"]["model_name"]) == (
        "blocks.3.hook_resid_post", "google/gemma-2-2b",
    )  # fmt: skip
    assert (config["metadata"]["prepend_bos"], config["metadata"]["context_size"]) == (True, 64)
    assert config["reshape_activations"] == "none"
    assert all(value.is_contiguous() for value in tensors.values())


def test_attention_is_reshaped_in_saelens(tmp_path):
    case = next(case for case in CASES if case.architecture == "jumprelu")
    save(saved(case, {"site": "layers.3.attention"}), "saelens", tmp_path)
    config, _ = read("saelens", tmp_path)
    assert (config["reshape_activations"], config["metadata"]["hook_name"]) == ("hook_z", "blocks.3.attn.hook_z")
    assert load(tmp_path).location.site == "layers.3.attention"


def test_an_activation_function_that_no_format_has_is_refused(tmp_path):
    class Squared(JumpReLU):
        name, title = "squared", "Squared"

        def activate(self, params, pre):
            return pre.square() * (pre > params["threshold"])

    sae = saved(next(case for case in CASES if case.architecture == "jumprelu"))
    other = SAE(Squared(Squared.Options(), None, None), sae.params)
    with pytest.raises(StudyError, match="SAELens has no activation function like that of 'squared'"):
        save(other, "saelens", tmp_path)


def test_names_of_sites_agree_with_the_language_models():
    for layer in (0, 3, 11):
        for kind in KINDS:
            site = Site(layer, kind)
            assert site_name(transformer_lens_name(site.key)) == site_name(gemma_scope_name(site.key)) == site.key
            assert parse_site(transformer_lens_name(site.key)) == site
            # Gemma's names are paths: in other models another module may be the MLP's or the attention's
            assert kind != "residual" or parse_site(gemma_scope_name(site.key)) == site
    for name in (
        "blocks.4.hook_resid_pre",
        "model.layers.4.input",
        "gpt_neox.layers.3.output",
        "transformer.h.3.residual",
    ):
        assert site_name(name) == parse_site(name).key == "layers.3.residual"
    assert site_name("blocks.0.hook_resid_pre") == "blocks.0.hook_resid_pre"


# ---------------------------------------------------------------------------------------------- the command line


def test_export_on_the_command_line(tmp_path):
    saved(next(case for case in CASES if case.architecture == "jumprelu")).save(tmp_path / "sae")
    run = CliRunner().invoke
    out = tmp_path / "out"
    done = run(app, ["export", str(tmp_path / "sae"), "--to", "gemma-scope", "--out", str(out)])
    assert (done.exit_code, done.stdout) == (0, f"exported: {out}\n")
    assert load(out).width == WIDTH
    done = run(app, ["export", str(tmp_path / "sae"), "--to", "gemma-scope", "--out", str(out)])
    assert done.exit_code == 1
    assert f"{out} exists" in done.stderr
    done = run(app, ["export", str(tmp_path / "sae"), "--to", "saelen", "--out", str(tmp_path / "new")])
    assert done.exit_code == 1
    assert "Did you mean 'saelens'?" in done.stderr
    done = run(app, ["export", str(tmp_path / "none"), "--to", "saelens", "--out", str(tmp_path / "new")])
    assert done.exit_code == 1
    assert "does not exist" in done.stderr
    assert not (tmp_path / "new").exists()
    saved(next(case for case in CASES if case.architecture == "gated")).save(tmp_path / "gated")
    with pytest.raises(StudyError, match="'gated' cannot be exported to Gemma Scope: it has one threshold"):
        api.export(tmp_path / "gated", to="gemma-scope", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_formats_of_other_packages_are_registered():
    from jumpahead.interchange.format import Format

    class Mine(Format):
        name, title, weights, files = "mine", "Mine", "mine.bin", ("mine.bin",)

    try:
        jumpahead.register(Mine)
        assert "mine" in FORMATS.names()
    finally:
        FORMATS._registered.pop("mine")
    assert ARCHITECTURES.names()
