"""Names of sites in jumpahead and in other libraries."""

import subprocess
import sys

import pytest

from jumpahead.errors import SiteError
from jumpahead.lm.sites import KINDS, Site, parse_site


@pytest.mark.parametrize("kind", KINDS)
def test_own_names_round_trip(kind):
    assert parse_site(f"layers.12.{kind}") == Site(12, kind)
    assert parse_site(Site(12, kind).key) == Site(12, kind)
    assert parse_site(Site(12, kind).transformer_lens) == Site(12, kind)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model.layers.7.output", "layers.7.residual"),
        ("blocks.7.hook_resid_post", "layers.7.residual"),
        ("blocks.7.hook_resid_pre", "layers.6.residual"),
        ("blocks.7.hook_mlp_out", "layers.7.mlp"),
        ("blocks.7.attn.hook_z", "layers.7.attention"),
    ],
)
def test_other_libraries_names(name, key):
    assert parse_site(name).key == key


@pytest.mark.parametrize(
    "name",
    ["gpt_neox.layers.7.mlp.output", "h.7.attn.c_proj.input", "model.layers.7.post_feedforward_layernorm.output"],
)
def test_a_modules_path_means_that_module(name):
    """Other libraries mean a block's site by some of these; that is decided where their files are read."""
    path, _, side = name.rpartition(".")
    assert parse_site(name) == Site(None, side, path)
    assert parse_site(name).key == name


@pytest.mark.parametrize(
    ("name", "near"),
    [("layers.3.residul", "layers.3.residual"), ("layer.3.mlp", "layers.3.mlp"), ("attention", "layers.0.attention")],
)
def test_unknown_names_get_the_nearest(name, near):
    with pytest.raises(SiteError, match=f"there is no site '{name}'.* Did you mean '{near}'"):
        parse_site(name)


@pytest.mark.parametrize("name", ["", "blocks.0.hook_resid_pre", "layers.-1.residual", "layers.1.residual.x"])
def test_nonsense_is_refused(name):
    with pytest.raises(SiteError):
        parse_site(name)


def test_no_torch_is_imported():
    code = (
        "import sys, jumpahead.activations.origins, jumpahead.lm.config, jumpahead.text.contexts, jumpahead.lm.sites, "
        "jumpahead.text.documents; jumpahead.activations.origins.ORIGINS.names(); "
        "print([m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
