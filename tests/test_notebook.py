"""The notebook can be executed, and shows what executing it printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tools.notebook import code_cells, execute

NOTEBOOK = json.loads((Path(__file__).parent.parent / "examples" / "first-frontier.ipynb").read_text(encoding="utf-8"))
SMALLER = {
    '"max_tokens": 2_000_000': '"max_tokens": 30_000', '{"tokens": 500_000}': '{"tokens": 16_384}',
    '{"tokens": 50_000}': '{"tokens": 1_000}', '{"width": 2048}': '{"width": 256}', "[8, 16, 32]": "[8, 32]",
}  # fmt: skip


def smaller(source: str) -> str:
    for much, little in SMALLER.items():
        source = source.replace(much, little)
    return source


def words(cell_text: str) -> list[str]:
    """The first word or quoted token of every line: no number that training changes."""
    return [re.match(r"'.*?'|\S+", line)[0] for line in cell_text.splitlines()]  # type: ignore[index]


def test_a_smaller_run_prints_what_the_notebook_shows(tmp_path: Path, monkeypatch) -> None:
    cells = code_cells(NOTEBOOK)
    assert all(any(much in "".join(cell["source"]) for cell in cells) for much in SMALLER)
    shown = ["".join(line for output in cell["outputs"] for line in output["text"]) for cell in cells]
    monkeypatch.chdir(tmp_path)
    printed = execute(NOTEBOOK, smaller)
    assert len(printed) == len(shown) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    points, answers, features, splice = zip(map(words, printed[1:]), map(words, shown[1:]), strict=True)
    assert printed[0] == shown[0]
    assert [points[0].count(name) for name in ("jumprelu", "gated", "topk")] == [2, 2, 2]
    assert [points[1].count(name) for name in ("jumprelu", "gated", "topk")] == [3, 3, 3]
    assert {"JumpReLU", "Gated", "TopK"} >= set(answers[0][:-1])
    assert features[0] == features[1]
    assert len(splice[0]) == len(splice[1]) == 1
    assert "nats per token" in printed[-1]
