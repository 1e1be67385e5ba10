"""The examples of docs/python.md run one after the other, on a small run in the place of the demo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import jumpahead
from jumpahead.progress import SilentProgress
from tests.texts import random_words

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python[^\n]*\n(.*?)^```", PAGE, re.M | re.S)
SITE = "layers.1.residual"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    random_words(folder / "text", 30)
    study = {
        "name": "demo", "lm": {"model": "tiny", "context": 64}, "text": {"source": str(folder / "text")},
        "activations": {"sites": [SITE]}, "sae": {"width": 512}, "train": {"tokens": 3_072, "batch": 512},
        "evaluate": {"tokens": 300, "replicates": 40},
        "series": [{"architecture": "jumprelu", "l0": [8, 16]}, {"architecture": "topk", "k": [8, 16]}],
    }  # fmt: skip
    jumpahead.run(study, out=folder / "runs" / "demo", progress=SilentProgress())
    return folder


def test_the_examples_of_the_page_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"python.md, block {number + 1}", "exec"), names)
    printed = capsys.readouterr().out
    assert "without feature" in printed
    assert "['jumprelu', 'again', 'topk']" in printed
    assert "self" in printed
    assert len(BLOCKS) == PAGE.count("```python") >= 6
