"""Paths of a run: names of folders, and when an SAE counts as done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jumpahead.errors import ArtefactError
from jumpahead.sae.recipe import Setting
from jumpahead.storage.json_files import write_json, write_json_lines
from jumpahead.storage.layout import SAE_SCHEMA, RunPaths, SAEFolder, sae_key, setting_text
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


def done_sae(tmp_path: Path) -> SAEFolder:
    sae = RunPaths(tmp_path).sae_folder(sae_key("layers.1.residual", 4096, "topk", {"kind": "k", "value": 32}, 0))
    write_tensors(sae.weights, {"w": torch.zeros(2)})
    write_json_lines(sae.log, [{"step": 1}, {"step": 2}])
    files = sae.file_digests(with_log=True)
    write_json(sae.config, {"schema": SAE_SCHEMA, "inputs": "abc", "files": files})
    return sae


def test_an_sae_is_done_if_it_is_saved_and_from_the_same_inputs(tmp_path: Path):
    sae = done_sae(tmp_path)
    assert sae.is_done("abc")
    assert not sae.is_done("abd")
    sae.config.write_text('{"inputs": "ab')
    assert not sae.is_done("abc")


@pytest.mark.parametrize("damage", ["no weights", "other weights", "header", "log", "no log", "config"])
def test_an_sae_whose_files_are_not_those_of_its_config_is_not_done(tmp_path: Path, damage: str):
    sae = done_sae(tmp_path)
    if damage == "no weights":
        sae.weights.unlink()
    elif damage == "other weights":
        write_tensors(sae.weights, {"w": torch.ones(2)})
    elif damage == "header":
        sae.weights.write_bytes(sae.weights.read_bytes().replace(b"F32", b"I32"))
    elif damage == "log":
        sae.log.write_bytes(sae.log.read_bytes().replace(b"2", b"3"))
    elif damage == "no log":
        sae.log.unlink()
    else:
        sae.config.write_bytes(sae.config.read_bytes().replace(b"abc", b"abd"))
    assert not sae.is_done("abc")
    assert not sae.is_done("abd")
    with pytest.raises(ArtefactError):
        sae.check()
