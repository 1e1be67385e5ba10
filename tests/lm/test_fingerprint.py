"""Digests: what changes them, and that those of runs made before a key existed stay as they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jumpahead.lm import fingerprint
from jumpahead.lm.config import LMConfig
from jumpahead.text.config import TextConfig
from jumpahead.text.sources import source_of


def test_later_keys_leave_digests_alone_until_they_are_used():
    # The tables as they were when the first runs were made.
    assert fingerprint.settings(LMConfig()) == {
        "model": "tiny", "revision": None, "dtype": "float32", "context": None, "batch": 16, "bos": "auto",
        "trust_remote_code": False,
    }  # fmt: skip
    assert fingerprint.settings(TextConfig()) == {
        "source": "stdlib", "pattern": "*", "separator": None, "held_out": 0.1, "max_tokens": None,
    }  # fmt: skip
    assert fingerprint.settings(LMConfig(packing="plain"))["packing"] == "plain"
    assert fingerprint.settings(TextConfig(column="story"))["column"] == "story"
    for config, later in [(LMConfig(), "LMConfig"), (TextConfig(), "TextConfig")]:
        defaults = {key: getattr(config, key) for key in fingerprint.LATER[later]}
        assert defaults == fingerprint.LATER[later]


@pytest.fixture
def tokens(tmp_path, lm_folder):
    """`tokens(lm keys, text keys)` is the digest of a study's tokens; beside it, the model's and the text's folder."""
    model, text = Path(shutil.copytree(lm_folder("llama"), tmp_path / "model")), tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("alpha")

    def digest(lm=None, about=None):
        config = TextConfig(**{"source": str(text), **(about or {})})
        return fingerprint.of_tokens(LMConfig(**{"model": str(model), **(lm or {})}), source_of(config))

    return digest, model, text


@pytest.mark.parametrize("change", [{"context": 9}, {"batch": 5}, {"bos": "none"}, {"packing": "plain"}])
def test_tokens_depend_on_how_contexts_are_cut(tokens, change):
    assert tokens[0](change) != tokens[0]()


@pytest.mark.parametrize("change", [{"separator": "x"}, {"held_out": 0.2}, {"max_tokens": 9}, {"column": "story"}])
def test_tokens_depend_on_how_text_is_taken(tokens, change):
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
