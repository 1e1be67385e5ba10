"""Every model family, from text to frontier, at every kind of site in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jumpahead.frontier import Frontier
from jumpahead.pipeline.run import run_study
from jumpahead.progress import SilentProgress
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import parse
from jumpahead.study.save import to_toml
from jumpahead.study.schema import sae_specs

MODULES = {
    "gpt2": "transformer.h.1.mlp.c_fc.output",
    "neox": "gpt_neox.layers.1.mlp.dense_h_to_4h.output",
    "gptj": "transformer.h.1.mlp.fc_in.output",
    "gemma3-multimodal": "model.language_model.layers.1.mlp.up_proj.output",
    "phi": "model.layers.1.mlp.fc1.output",
    "opt": "model.decoder.layers.1.fc1.output",
}
"""The MLP's first product: 40 wide, or 4 × 24."""
FAMILIES = ("gpt2", "neox", "llama", "mistral", "qwen3", "gemma2", "gemma3", "gemma3-multimodal", "phi", "opt", "gptj")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_study_of_every_family_runs(family: str, lm_folder, tmp_path: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(24):
        texts.joinpath(f"{number}.txt").write_text(" ".join(str((number * i * i) % 997) for i in range(90)))
    module = MODULES.get(family, "model.layers.1.mlp.up_proj.output")
    sites = ["layers.0.residual", "layers.1.mlp", "layers.1.attention", module]
    one = parse({
        "name": "family",
        "lm": {"model": str(lm_folder(family)), "context": 32, "batch": 4},
        "text": {"source": str(texts), "held_out": 0.3},
        "activations": {"sites": sites, "block": 32, "scale_rows": 300},
        "sae": {"width": 64},
        "train": {"tokens": 1_500, "batch": 128},
        "evaluate": {"tokens": 400, "replicates": 20},
        "series": [{"architecture": "topk", "k": [6]}],
    })  # fmt: skip
    run = Run.create(tmp_path / "run", to_toml(one))
    run_study(one, run, progress=SilentProgress())
    assert len(read_json(run.checks)["checked"]) == 1 + 4 + 1 + 2  # site; identity; hidden state; causal, truncated
    assert {panel.rpartition("/")[0] for panel in Frontier.load(run.folder).panels} == set(sites)
    for unit in sae_specs(one):
        found = read_json(run.sae_folder(unit.key).evaluation)["metrics"]
        assert 2 < found["l0"] <= 6
        assert 0 < found["fvu"] < 1.5
        assert found["delta_lm_loss"] != 0
        about = json.loads((run.sae_folder(unit.key).path / "config.json").read_text())
        assert about["lm"]["model"] == str(lm_folder(family))
        names = about["site_names"]
        assert names["gemma_scope"] == (module if unit.site == module else names["gemma_scope"])
        assert ("transformer_lens" in names) == (unit.site != module)
