"""Digests of a study's model and text: what changes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import tokens_digest
from jumpahead.text.config import TextConfig
from jumpahead.text.sources import source_of


@pytest.fixture
def tokens(tmp_path, lm_folder):
    """Return a function from keys of `lm` and `text` to the tokens' digest, and both folders."""
    model, text = Path(shutil.copytree(lm_folder("llama"), tmp_path / "model")), tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("alpha")

    def digest(lm=None, about=None):
        config = TextConfig(**{"source": str(text), **(about or {})})
        return tokens_digest(LMConfig(**{"model": str(model), **(lm or {})}), source_of(config))

    return digest, model, text


@pytest.mark.parametrize("change", [{"context": 9}, {"batch": 5}, {"bos": "none"}, {"packing": "plain"}])
def test_tokens_depend_on_the_keys_of_contexts(tokens, change):
    assert tokens[0](change) != tokens[0]()


@pytest.mark.parametrize("change", [{"separator": "x"}, {"held_out": 0.2}, {"max_tokens": 9}, {"column": "story"}])
def test_tokens_depend_on_the_keys_of_text(tokens, change):
    assert tokens[0](None, change) != tokens[0]()


def test_tokens_depend_on_the_tokenizer_and_the_text_but_not_on_weights_or_dtype(tokens):
    digest, model, text = tokens
    first = digest()
    (model / "model.safetensors").write_bytes(b"other weights")
    assert digest({"dtype": "bfloat16"}) == first
    for path in [text / "b.txt", model / "tokenizer.json", model / "generation_config.json"]:
        path.write_text("{}")
        assert digest() != first
        first = digest()
