"""Paths of a run: names of folders, and when an SAE counts as done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jumpahead.errors import ArtefactError
from jumpahead.sae.recipe import Setting
from jumpahead.storage.json_files import write_json
from jumpahead.storage.layout import RunPaths, sae_key, setting_text
from jumpahead.storage.tensors import write_tensors


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (("l0", 16.0), "l0-16"),
        (("l0", 16), "l0-16"),
        (("l0", 2.5), "l0-2.5"),
        (("lambda", 6e-4), "lambda-0.0006"),
        (("lambda", 1.234567890123e-7), "lambda-1.234567890123e-07"),
        (("k", 32), "k-32"),
    ],
)
def test_setting_text(setting: tuple[str, float], text: str):
    assert setting_text(setting) == text
    assert float(text.partition("-")[2]) == setting[1]


def test_sae_folder(tmp_path: Path):
    run = RunPaths(tmp_path)
    sae = run.sae_folder(sae_key("layers.1.residual", 4096, "jumprelu", Setting("l0", 16.0), 3))
    assert run.relative(sae.weights) == "saes/layers.1.residual/4096/jumprelu/l0-16_seed-3/weights.safetensors"
    other = sae_key("layers.1.residual", 4096, "jumprelu", {"kind": "l0", "value": 16.0}, 3, stream_seed=2)
    assert other.rpartition("/")[2] == "l0-16_seed-3_stream-2"
    with pytest.raises(ArtefactError, match="cannot be a folder's name"):
        sae_key("layers.1.residual", 4096, "../x", Setting("l0", 16.0), 3)


def test_saved_saes_lists_only_those_with_a_config(tmp_path: Path):
    run = RunPaths(tmp_path)
    saved, unfinished = (run.sae_folder(sae_key("layers.1.mlp", 64, "topk", Setting("k", k), 0)) for k in (2, 4))
    write_json(saved.config, {})
    write_json(unfinished.checkpoint / "state.json", {})
    assert run.saved_saes() == [saved]


@pytest.mark.parametrize("path", ["../other", "a/../../b", "/etc/passwd", "C:/x", "a\\b"])
def test_paths_out_of_the_run_are_refused(tmp_path: Path, path: str):
    with pytest.raises(ArtefactError, match="outside of it"):
        RunPaths(tmp_path).resolve(path)


def test_an_sae_is_done_if_it_is_saved_and_from_the_same_inputs(tmp_path: Path):
    sae = RunPaths(tmp_path).sae_folder(sae_key("layers.1.residual", 4096, "topk", {"kind": "k", "value": 32}, 0))
    assert not sae.is_done("abc")
    write_json(sae.config, {"inputs": "abc"})
    assert not sae.is_done("abc")  # config without weights
    write_tensors(sae.weights, {"w": torch.zeros(2)})
    assert sae.is_done("abc")
    assert not sae.is_done("abd")
    sae.config.write_text('{"inputs": "ab')
    assert not sae.is_done("abc")
