"""SAEs in the layouts that other libraries publish are read as what those libraries compute."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import jumpahead
from jumpahead import engine
from jumpahead.formats import FORMATS, find_files, format_of, load
from jumpahead.sae.saved import SAE
from tests.formats.layouts import FILES, LAYOUTS, WIDTH, D, K, layouts, normal, write_weights

every = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label)
BOUNDARY = 1e-4
"""Distance of a pre-activation from where its feature begins, as a share of the largest feature, within which float32
may decide otherwise than float64."""


def test_every_format_has_a_layout_here():
    assert {layout.format for layout in LAYOUTS} | {"jumpahead"} == set(FORMATS.names())
    for name in FORMATS.names():
        assert FORMATS.get(name).name == name
        assert FORMATS.get(name).weights in FORMATS.get(name).files


def compare(sae, layout, x):
    """Check features and reconstructions on the tokens whose active features agree; return the share of the others."""
    f, x_hat = layout.outputs(x)
    ours = sae.encode(x)
    if layout.scales_features:
        norms = {"llamascopium": "W_D"}[layout.format]
        f = f * layout.tensors[norms].double().norm(dim=1)
    same = ((ours > 0) == (f > 0)).all(1)
    top = float(f.max())
    torch.testing.assert_close(ours[same].double(), f[same], rtol=1e-5, atol=1e-5 * top)
    torch.testing.assert_close(sae(x)[same].double(), x_hat[same], rtol=1e-5, atol=1e-5 * float(x_hat.abs().max()))
    assert 0 < (f > 0).double().mean() < 1
    return float((~same).double().mean())


@every
def test_features_and_reconstructions_are_the_librarys(layout, tmp_path):
    folder = layout.write(tmp_path)
    sae, x = load(folder), normal(400, D, seed=11, scale=2.0)
    assert isinstance(sae, SAE)
    assert (sae.d, sae.width, sae.architecture, sae.recipe) == (D, WIDTH, layout.architecture, None)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in sae.params.values())
    assert compare(sae, layout, x) <= 0.01
    assert (sae.location.site, sae.location.lm) == (layout.site, layout.model)
    assert sae.about["source"] == {"format": layout.format}
    assert format_of(find_files(str(folder))).name == layout.format
    sparse = engine.encode(sae, x, engine.kernel_layer("torch"))
    assert abs(len(sparse.feature) - int((sae.encode(x) > 0).sum())) <= 3


@every
def test_the_file_of_weights_names_the_sae_too(layout, tmp_path):
    folder = layout.write(tmp_path)
    named, whole = jumpahead.load(folder / FILES[layout.format][1]), load(folder)
    assert all(torch.equal(named.params[name], value) for name, value in whole.params.items())
    named.save(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.about == whole.about
    assert (again.setting, again.recipe) == (whole.setting, None)
    assert all(torch.equal(again.params[name], value) for name, value in whole.params.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes_become_float32(dtype, tmp_path):
    layout = next(layout for layout in LAYOUTS if layout.label == "saelens-jumprelu")
    cast = layout._replace(tensors={name: value.to(dtype) for name, value in layout.tensors.items()})
    sae = load(cast.write(tmp_path))
    assert compare(sae, cast, normal(200, D, seed=11, scale=2.0)) <= 0.01


def test_k_and_groups_are_known(tmp_path):
    for layout in LAYOUTS:
        sae = load(layout.write(tmp_path))
        if layout.architecture in ("topk", "batchtopk", "matryoshka"):
            assert sae.setting == ("k", K)
        if layout.architecture == "matryoshka":
            assert sae.arch.group_ends(WIDTH) == [3, 12, WIDTH]


def test_square_matrices_are_read_too(tmp_path):
    for layout in layouts(width=24, d=24):
        sae = load(layout.write(tmp_path))
        f = layout.outputs(normal(50, 24, seed=3, scale=2.0))[0]
        assert ((sae.encode(normal(50, 24, seed=3, scale=2.0)) > 0) == (f > 0)).double().mean() > 0.999


def test_a_compressed_npz_is_read(tmp_path):
    layout = next(layout for layout in LAYOUTS if layout.label == "gemma-scope")
    folder = layout.write(tmp_path)
    np.savez_compressed(folder / "params.npz", **{name: value.numpy() for name, value in layout.tensors.items()})
    assert compare(load(folder), layout, normal(200, D, seed=11, scale=2.0)) <= 0.01


def test_fortran_order_is_read(tmp_path):
    layout = next(layout for layout in LAYOUTS if layout.label == "gemma-scope")
    folder = layout.write(tmp_path)
    arrays = {name: np.asfortranarray(value.numpy()) for name, value in layout.tensors.items()}
    np.savez(folder / "params.npz", **arrays)
    assert compare(load(folder), layout, normal(200, D, seed=11, scale=2.0)) <= 0.01


def test_checkpoints_of_dictionary_learning(tmp_path):
    layout = next(layout for layout in LAYOUTS if layout.label == "BatchTopKSAE")
    folder = layout.write(tmp_path)
    (folder / "checkpoints").mkdir()
    write_weights(folder / "checkpoints" / "ae_200.pt", layout.tensors)
    sae = load(folder / "checkpoints" / "ae_200.pt")
    assert all(torch.equal(sae.params[name], value) for name, value in load(folder).params.items())


def test_sites_that_are_no_blocks_keep_their_names(tmp_path):
    layout = next(layout for layout in LAYOUTS if layout.label == "saelens-standard")
    folder = layout.write(tmp_path)
    for name, wanted in (("hook_embed", "hook_embed"), ("blocks.4.hook_resid_pre", "layers.3.residual")):
        metadata = {**layout.config["metadata"], "hook_name": name}
        (folder / "cfg.json").write_text(json.dumps({**layout.config, "metadata": metadata}))
        assert load(folder).location.site == wanted
