"""The shape of a language model, read from its config.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumpahead.errors import StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_shape import read_model_shape
from jumpahead.lm.sites import Site
from jumpahead.storage.json_files import write_json

SHAPE = {
    "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "head_dim": 8, "vocab_size": 300,
    "max_position_embeddings": 64,
}  # fmt: skip


def test_shapes_of_several_families(tmp_path: Path):
    def shape_of(raw: dict) -> tuple | None:
        write_json(tmp_path / "config.json", raw)
        return read_model_shape(LMConfig(model=str(tmp_path)))

    assert shape_of(SHAPE) == (3, 24, 32, 64, 300, None)
    gpt2 = {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 20, "vocab_size": 50}
    assert shape_of(gpt2) == (2, 12, 12, 20, 50, None)
    assert shape_of({"model_type": "gemma3", "text_config": SHAPE}) == (3, 24, 32, 64, 300, None)
    assert shape_of({"n_layer": 2, "n_embd": 12}) == (2, 12, 12, 1024, 0, None)
    with pytest.raises(StudyError, match="not a language model's config"):
        shape_of({"image_size": 224})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StudyError, match=r"config\.json is torn"):
        read_model_shape(LMConfig(model=str(tmp_path)))
    bundled = read_model_shape(LMConfig())
    assert bundled is not None
    assert bundled.num_blocks >= 4


def test_the_shape_agrees_with_the_model(lm_of, lm_folder):
    for family in ("gpt2", "llama", "neox", "gemma2"):
        shape = read_model_shape(LMConfig(model=str(lm_folder(family))))
        assert shape is not None
        for kind in ("residual", "mlp", "attention"):
            assert shape.width_at(Site(1, kind)) == lm_of(family).width_at(Site(1, kind))
        assert shape.num_blocks == len(lm_of(family).blocks)
