"""Hugging Face datasets: configurations and splits of a local one, and errors. Nothing is downloaded."""

from __future__ import annotations

import json

import datasets
import huggingface_hub
import pytest

from jumpahead.errors import DataError
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A dataset with two configurations, one of which has two splits."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("small/train", "small/test", "large/train"):
        path = tmp_path / "set" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(3)))
    card = "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: small/train.jsonl}\n"
    card += "  - {split: test, path: small/test.jsonl}\n- config_name: large\n  data_files: large/*.jsonl\n---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    return tmp_path / "set"


def read(source, **options):
    return [document.text for document in documents(TextConfig(source=source, **options))]


def test_configuration_and_split_are_chosen(folder):
    assert read(f"hf:{folder}:small") == [f"small/train {i}" for i in range(3)]
    assert read(f"hf:{folder}:small", split="test") == [f"small/test {i}" for i in range(3)]
    assert read(f"hf:{folder}:large") == [f"large/train {i}" for i in range(3)]


@pytest.mark.parametrize(
    ("suffix", "options", "says"),
    [
        (":smal", {}, r"cannot be read: .*smal"),
        (":small", {"split": "trian"}, r"cannot be read: .*trian.*train"),
        ("", {}, r"cannot be read: .*(small|large)"),
    ],
)
def test_errors_are_one_sentence(folder, suffix, options, says):
    with pytest.raises(DataError, match=says) as caught:
        read(f"hf:{folder}{suffix}", **options)
    assert "\n" not in str(caught.value)


def test_a_dataset_that_does_not_exist_is_named(folder):
    with pytest.raises(DataError, match=r"text\.source = 'hf:nobody/nothing-at-all' cannot be read: \S"):
        read("hf:nobody/nothing-at-all")


def test_a_torn_row_is_named(folder):
    (folder / "large" / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"cannot be read: \S"):
        read(f"hf:{folder}:large")
