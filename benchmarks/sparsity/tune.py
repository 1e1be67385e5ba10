"""The tuning runs of protocol.toml, and the scores of its configurations."""

from __future__ import annotations

import json
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sparsity.runs import RequestedRun
from benchmarks.sparsity.setups import SETUPS
from benchmarks.table import render_table
from jumpahead.sae.recipe import Setting, Shape, short_recipe_lr

PROTOCOL = Path(__file__).with_name("protocol.toml")
LOSS_SLOPE = 0.65
"""Decrease of log delta LM loss per unit of log L0."""


def load_protocol() -> dict[str, Any]:
    return tomllib.loads(PROTOCOL.read_text(encoding="utf-8"))


def configurations(rules: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str, dict[str, Any]]]:
    """Yield every (round, architecture, name, configuration), in the order of the protocol."""
    for one in rules["round"]:
        for architecture in rules["architectures"]:
            for number, config in enumerate(one.get("all", []) + one.get(architecture, []), start=1):
                yield one, architecture, f"{one['name']}{number}", config


def protocol_runs(rules: dict[str, Any]) -> list[RequestedRun]:
    """Return every run of every round."""
    found = []
    for one, architecture, series, config in configurations(rules):
        tokens, options = one.get("tokens", rules["tokens"]), json.dumps(config.get("options", {}))
        for place in one.get("places", rules["places"]):
            for l0 in map(float, one.get("l0", rules["l0"])):
                base = rules["base"] | rules["base_of"].get(architecture, {})
                changes = json.dumps(base | recipe_changes(config, place, l0, tokens))
                found.append(RequestedRun(place, "development", tokens, rules["held_out"], series, architecture,
                                    ("l0", l0), 0, options, changes))  # fmt: skip
    return found


def recipe_changes(config: dict[str, Any], place: str, l0: float, tokens: int) -> dict[str, Any]:
    """Return a configuration's changes of the recipe; `rate` is converted to a learning rate for this setup."""
    changes = dict(config.get("recipe", {}))
    if "rate" in config:
        where = SETUPS[place]
        changes["lr"] = float(
            f"{short_recipe_lr(config['rate'], Shape(where.d, where.width, Setting('l0', l0)), tokens):.3g}"
        )
    return changes


def score_line(line: dict[str, Any]) -> float:
    """Return the score of one SAE; lower is better."""
    return math.log(max(line["delta_lm_loss"], 1e-6)) + LOSS_SLOPE * math.log(line["l0"] / line["setting"][1])


def configuration_labels(rules: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Return a description of each configuration's changes, by architecture and name."""
    found = {}
    for _, architecture, series, config in configurations(rules):
        rate = {"rate": config["rate"]} if "rate" in config else {}
        changes = rate | config.get("options", {}) | config.get("recipe", {})
        found[architecture, series] = ", ".join(f"{key} {value}" for key, value in changes.items())
    return found


def render_scores(rules: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """Return the table of scores and results, one row per architecture and configuration."""
    runs = protocol_runs(rules)
    cells = sorted({(one.place, one.setting[1], one.tokens) for one in runs}, key=lambda cell: (cell[2], *cell[:2]))
    rows: dict[tuple[str, str], dict[tuple[str, float, int], RequestedRun]] = defaultdict(dict)
    for one in runs:
        rows[one.architecture, one.series][one.place, one.setting[1], one.tokens] = one
    headings = ["configuration", *(f"{place} {l0:g}, {tokens / 1e6:g}e6" for place, l0, tokens in cells)]
    headings[1:1] = [f"score, {place}" for place in rules["places"]]
    words, lines = configuration_labels(rules), []
    for (architecture, series), members in rows.items():
        found = {cell: results[one.key] for cell, one in members.items() if one.key in results}
        scores = [
            format_mean([score_line(found[cell]) for cell in found if cell[0] == place]) for place in rules["places"]
        ]
        shown_cells = [format_result(found.get(cell)) for cell in cells]
        lines.append([f"{architecture} {series}: {words[architecture, series]}", *scores, *shown_cells])
    return render_table(headings, lines)


def format_mean(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.3f}" if scores else "–"


def render_page(rules: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """Return the table as Markdown, with a legend."""
    return f"# Tuning\n\n{LEGEND.strip()}\n\n{render_scores(rules, results)}\n"


LEGEND = """
Made by `make bench-sparsity ARGS=tune` from `tuning.jsonl`, by `benchmarks/sparsity/protocol.toml`: lower
scores are better. Cells: delta LM loss (L0 reached; FVU) on held-out documents of the development text.
"""


def format_result(line: dict[str, Any] | None) -> str:
    """Format a result: `0.231 (8.03; 0.12)`, delta LM loss with its L0 and FVU."""
    return "–" if line is None else f"{line['delta_lm_loss']:.3f} ({line['l0']:.3g}; {line['fvu']:.3f})"
