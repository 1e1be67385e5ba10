"""Invented evaluations with round numbers, built into a frontier; and a browser to look at the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jumpahead import frontier as frontier_
from jumpahead.evaluation.histogram import frequency_histogram
from jumpahead.metrics import METRICS
from jumpahead.storage.packed_numbers import pack_numbers

WIDTH, REPLICATES = 4096, 60
# name, title, kind of setting, delta LM loss at L0 = 4, features above 10 % at L0 = 16
SERIES = [
    ("jumprelu", "JumpReLU", "l0", 0.7, 9),
    ("gated", "Gated", "lambda", 0.9, 2),
    ("topk", "TopK", "k", 0.75, 7),
]


def declared() -> list[dict[str, Any]]:
    """The series as a study declares them."""
    return [{"name": name, "title": title, "architecture": name} for name, title, *_ in SERIES]


def evaluation(series: int, l0: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One SAE's evaluation.json plus its path; `changes` replace metrics, `error` the SE of its delta LM loss."""
    name, _, kind, scale, frequent = SERIES[series]
    rng = np.random.default_rng([series, int(10 * l0), seed])
    error = changes.pop("error", 0.02)
    delta = scale * (l0 / 4) ** -0.8 * (1 + 0.03 * seed)
    metrics: dict[str, Any] = dict.fromkeys(METRICS, 0.5) | {
        "delta_lm_loss": delta,
        "ce_clean": 1.9,
        "ce_zero": 8.1,
        "l0": l0 * (1.02 + 0.01 * seed),
        "fvu": 0.4 * (l0 / 4) ** -0.4,
        "above_10pct": float(round(frequent * l0 / 16)),
        "above_1pct": float(round(20 * frequent * l0 / 16)),
        "never_fired": 300.0 - l0,
        "f1": 0.3,
    }
    metrics |= changes
    for share, count in {
        "share_above_10pct": "above_10pct",
        "share_above_1pct": "above_1pct",
        "share_never_fired": "never_fired",
    }.items():
        metrics[share] = metrics[count] / WIDTH if metrics[count] is not None else None
    spread = {"delta_lm_loss": error, "l0": 0.05, "fvu": 0.004, "above_10pct": 1.3, "above_1pct": 5, "never_fired": 6,
              "f1": 0.02}  # fmt: skip
    value = {"l0": l0, "lambda": 0.004 / l0, "k": int(l0)}[kind]
    counts = np.round(60_000 * 10 ** rng.normal(-3, 0.7, WIDTH)).clip(0, 60_000)
    return {
        "schema": "jumpahead.evaluation/2",
        "path": f"saes/layers.1.residual/{WIDTH}/{name}/{kind}-{value:g}_seed-{seed}",
        "sae": {
            "site": "layers.1.residual",
            "width": WIDTH,
            "d": 128,
            "series": name,
            "architecture": name,
            "setting": {"kind": kind, "value": value},
            "sae_seed": seed,
            "stream_seed": seed,
        },
        "metrics": metrics,
        "standard_errors": {"delta_lm_loss": error, "kl": 0.003},
        "bootstrap": {
            key: pack_numbers(metrics[key] + sd * rng.normal(size=REPLICATES))
            for key, sd in spread.items()
            if metrics[key] is not None
        },
        "histogram": frequency_histogram(counts, 60_000),
        "text": {
            "tokens": 61_000,
            "rows": 61_143,
            "documents": 143,
            "clusters": 143,
            "effective_clusters": 88.0,
            "interval_expansion": 1.02,
            "digest": "same",
        },
        "notes": [],
        "training": {"tokens": 1_000_000, "distinct_tokens": 910_000, "epochs": 1.1, "seconds": 44.2, "steps": 488},
        "sparsity_coefficient": {"lambda": 0.003 / l0} if kind != "k" else {"k": value},
        "health": {},
    }


def build(evaluations: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """frontier.json of these evaluations."""
    given: dict[str, Any] = {
        "name": "invented",
        "study_text": 'name = "invented"\n',
        "manifest": {"schema": "jumpahead.run/1", "python": "3.11"},
        "series": declared(),
        "lm": {"name": "tiny"},
        "text": {"source": "stdlib", "train_tokens": 1_000_000, "held_out_tokens": 61_000},
    }
    return frontier_.build_frontier(evaluations, **(given | changes))


def sweep(**changes: Any) -> list[dict[str, Any]]:
    """Three series of four SAEs."""
    return [evaluation(series, l0, **changes) for series in range(3) for l0 in (4.0, 8.0, 16.0, 32.0)]


@pytest.fixture(scope="session")
def make() -> Any:
    """The makers above, for tests."""

    class Make:
        evaluation = staticmethod(evaluation)
        build = staticmethod(build)
        sweep = staticmethod(sweep)
        width = WIDTH
        replicates = REPLICATES

    return Make


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a run folder with this frontier.json, and an efficiency.json if there is one, and returns it."""

    def write(data: dict[str, Any], costs: dict[str, Any] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("run")
        (folder / "frontier.json").write_text(json.dumps(data))
        (folder / "manifest.json").write_text(json.dumps({"schema": "jumpahead.run/1"}))
        if costs is not None:
            (folder / "efficiency.json").write_text(json.dumps(costs))
        return folder

    return write


@pytest.fixture(scope="session")
def visit(browser: Any, save: Callable[..., Path]) -> Callable[..., Any]:
    """Opens the page of a frontier.json; `page.heard` lists requests and complaints of the console."""
    from jumpahead.report import write_report

    def open_page(data: dict[str, Any], costs: dict[str, Any] | None = None, **options: Any) -> Any:
        file = write_report(save(data, costs))
        page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        page.heard = {"requests": [], "console": []}
        page.on("request", lambda request: page.heard["requests"].append(request.url))
        page.on("console", lambda message: page.heard["console"].append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.heard["console"].append(f"error: {error}"))
        page.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return page

    return open_page
