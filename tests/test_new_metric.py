"""A metric that is added to `metrics.METRICS` appears everywhere: in the JSON, answers, options, terminal and page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jumpahead import cli
from jumpahead.frontier import Frontier, build_frontier
from jumpahead.metrics import METRICS, CurveInterpolation, Metric, QueryOption, bootstrap_replicates
from jumpahead.report import terminal
from jumpahead.report.page import render_html
from jumpahead.resampling import replicate_weights
from jumpahead.storage.packed_numbers import pack_numbers
from tests.frontiers import documents, example, sums

KEY = "mean_square"


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """A metric that is declared for this test alone."""
    made = Metric(
        KEY, "mean square", "Mean square of x, per {unit.singular}", "E|x|2", "squares per {unit.singular}", "lower",
        "Σ‖x‖² / positions", lambda s: s.x_sq / s.rows, None,
        curve=CurveInterpolation("linear", "non-negative"),
        query=QueryOption("mean-square", "Mean square of activations.", is_limit=True),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, KEY, made)
    return made


@pytest.fixture
def run(metric: Metric, tmp_path: Path) -> Path:
    """A run's folder whose evaluations have the metric: 1, 1.1 and 1.2 along each curve."""
    made = example(l0s=(4, 12, 37), replicates=40, clusters=12, width=512, d=8)
    for i, one in enumerate(made.evaluations):
        one["metrics"][KEY] = 1 + 0.1 * (i % 3)
        one["bootstrap"][KEY] = pack_numbers(one["metrics"][KEY] + 0.001 * (np.arange(40) % 5))
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": "jumpahead.run/1"}))
    (tmp_path / "frontier.json").write_text(json.dumps(build_frontier(made.evaluations, **made.keywords)))
    return tmp_path


def test_it_is_evaluated_with_replicates(metric: Metric):
    rng = np.random.default_rng(0)
    found = bootstrap_replicates(sums(documents(6, rng), 8.0, 0.2, 1.0, 32, 4, rng), replicate_weights(6, 10))
    assert found[KEY].shape == (10,)


def test_it_is_a_target_and_a_limit(run: Path):
    frontier = Frontier.load(run)
    series = frontier.ask(mean_square=1.05).panels[0].series
    assert all(4 < one.crossings[0].metrics["l0"].value < 12 for one in series)  # type: ignore[operator]
    answer = frontier.ask(l0=8, limits={"mean_square": 0.5})
    assert answer.panels[0].recommendation.series is None
    assert "mean square" in answer.panels[0].recommendation.reason


def test_it_is_an_option_of_the_command_line(run: Path):
    result = CliRunner().invoke(cli.app, ["ask", str(run), "--mean-square", "1.05", "--max-mean-square", "2", "--json"])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["target"], answer["limits"]) == (KEY, {KEY: 2.0})
    assert "--max-mean-square" in CliRunner().invoke(cli.app, ["ask", "--help"]).stdout


def test_it_is_in_the_terminal(run: Path):
    frontier, file = Frontier.load(run), io.StringIO()
    terminal.print_frontier(frontier, Console(file=file, width=100))
    terminal.print_answer(frontier.ask(l0=8), Console(file=file, width=100))
    terminal.print_answer(frontier.ask(mean_square=1.05), Console(file=file, width=100))
    assert file.getvalue().count("E|x|2") == 2
    assert "What does each series cost at mean square 1.05?" in file.getvalue()


def test_it_is_on_the_page_and_in_its_script(run: Path):
    html = render_html(json.loads((run / "frontier.json").read_text()))
    assert "Mean square of x, per token [squares per token] = Σ‖x‖² / positions; lower is better" in html
    assert re.search(rf'<option value="{KEY}">mean square</option>', html)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data
    declared = next(one for one in json.loads(data[1])["metrics"] if one["key"] == KEY)
    assert declared["curve"] == {"scale": "linear", "domain": "non-negative", "is_fidelity": False}
    assert KEY in json.loads(data[1])["panels"][0]["points"][0]["bootstrap"]
