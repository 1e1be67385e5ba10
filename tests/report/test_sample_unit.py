"""A run without a language model is about rows: no sentence mentions tokens, text or documents."""

from __future__ import annotations

import io
import re

import torch
from rich.console import Console

from jumpahead.api import train_on
from jumpahead.frontier import Frontier
from jumpahead.progress import Progress, SilentProgress
from jumpahead.report import terminal

OF_TEXT = re.compile(r"(?<!\.)\b(tokens?|text|documents?)\b")


def test_a_run_without_a_model_speaks_of_rows(tmp_path):
    told = []

    class Heard(Progress):
        def say(self, sentence):
            told.append(sentence)

        def phase(self, title, total, unit, done=0):
            told.append(f"{title}: {total} {unit}")
            return SilentProgress().phase(title, total, unit, done)

    given = torch.randn(4_000, 12, generator=torch.Generator().manual_seed(5)).split(500)
    series = [{"architecture": "topk", "k": [1, 2, 3]}, {"architecture": "gated", "l0": [2, 3]}]
    run = train_on(
        iter(given), series=series,
        width=64, tokens=6_000, rows=4_000, group=100, out=tmp_path / "run", train={"batch": 200},
        evaluate={"replicates": 20}, progress=Heard(),
    )  # fmt: skip
    frontier, said = Frontier.load(run), io.StringIO()
    terminal.print_frontier(frontier, Console(file=said, width=80))
    terminal.print_answer(frontier.ask(fvu=0.4), Console(file=said, width=80))
    declared = [str(one) for one in frontier.data["metrics"] + frontier.data["health"]]
    for text in [*told, *said.getvalue().splitlines(), *declared]:
        assert not OF_TEXT.search(text), text
    assert re.search(r"[0-9,]+ held-out rows in [0-9]+ groups of rows", said.getvalue())
    page = (run / "report.html").read_text()
    shown = re.sub(r"<(script|style|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    words = re.sub(r"</?[a-z][^>]*?(title=\"[^\"]*\"|aria-label=\"[^\"]*\")?[^>]*>", r" \1 ", shown)
    assert not OF_TEXT.search(words), [words[m.start() - 60 : m.end() + 40] for m in OF_TEXT.finditer(words)]
    assert "features per row" in words
