"""The tuning runs of protocol.toml, and how its configurations score."""

from __future__ import annotations

import json
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sparsity.places import PLACES
from benchmarks.sparsity.runs import Wanted
from benchmarks.table import render_table
from jumpahead.sae.recipe import Setting, Shape, short_recipe_lr

PROTOCOL = Path(__file__).with_name("protocol.toml")
SLOPE = 0.65
"""By how much log delta LM loss falls per unit of log L0."""


def protocol() -> dict[str, Any]:
    return tomllib.loads(PROTOCOL.read_text(encoding="utf-8"))


def configurations(rules: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str, dict[str, Any]]]:
    """Every round, architecture, name and configuration, in the order of the protocol."""
    for one in rules["round"]:
        for architecture in rules["architectures"]:
            for number, config in enumerate(one.get("all", []) + one.get(architecture, []), start=1):
                yield one, architecture, f"{one['name']}{number}", config


def wanted(rules: dict[str, Any]) -> list[Wanted]:
    """Every run of every round."""
    found = []
    for one, architecture, series, config in configurations(rules):
        tokens, options = one.get("tokens", rules["tokens"]), json.dumps(config.get("options", {}))
        for place in one.get("places", rules["places"]):
            for l0 in map(float, one.get("l0", rules["l0"])):
                base = rules["base"] | rules["base_of"].get(architecture, {})
                changes = json.dumps(base | with_rate(config, place, l0, tokens))
                found.append(Wanted(place, "development", tokens, rules["held_out"], series, architecture,
                                    ("l0", l0), 0, options, changes))  # fmt: skip
    return found


def with_rate(config: dict[str, Any], place: str, l0: float, tokens: int) -> dict[str, Any]:
    """A configuration's changes of the recipe; `rate` becomes the learning rate that it stands for there."""
    changes = dict(config.get("recipe", {}))
    if "rate" in config:
        where = PLACES[place]
        changes["lr"] = float(
            f"{short_recipe_lr(config['rate'], Shape(where.d, where.width, Setting('l0', l0)), tokens):.3g}"
        )
    return changes


def score(line: dict[str, Any]) -> float:
    """Of one SAE: lower is better."""
    return math.log(max(line["delta_lm_loss"], 1e-6)) + SLOPE * math.log(line["l0"] / line["setting"][1])


def labels(rules: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What a configuration changes, in words, by architecture and name."""
    found = {}
    for _, architecture, series, config in configurations(rules):
        rate = {"rate": config["rate"]} if "rate" in config else {}
        changes = rate | config.get("options", {}) | config.get("recipe", {})
        found[architecture, series] = ", ".join(f"{key} {value}" for key, value in changes.items())
    return found


def table(rules: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """A row per architecture and configuration, in the order of the protocol: its scores, and the result per cell."""
    runs = wanted(rules)
    cells = sorted({(one.place, one.setting[1], one.tokens) for one in runs}, key=lambda cell: (cell[2], *cell[:2]))
    rows: dict[tuple[str, str], dict[tuple[str, float, int], Wanted]] = defaultdict(dict)
    for one in runs:
        rows[one.architecture, one.series][one.place, one.setting[1], one.tokens] = one
    headings = ["configuration", *(f"{place} {l0:g}, {tokens / 1e6:g}e6" for place, l0, tokens in cells)]
    headings[1:1] = [f"score, {place}" for place in rules["places"]]
    words, lines = labels(rules), []
    for (architecture, series), members in rows.items():
        found = {cell: results[one.key] for cell, one in members.items() if one.key in results}
        scores = [mean([score(found[cell]) for cell in found if cell[0] == place]) for place in rules["places"]]
        shown_cells = [shown(found.get(cell)) for cell in cells]
        lines.append([f"{architecture} {series}: {words[architecture, series]}", *scores, *shown_cells])
    return render_table(headings, lines)


def mean(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.3f}" if scores else "–"


def page(rules: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown, with what it means."""
    return f"# Tuning\n\n{LEGEND.strip()}\n\n{table(rules, results)}\n"


LEGEND = """
Made by `make bench-sparsity ARGS=tune` from `tuning.jsonl`, by `benchmarks/sparsity/protocol.toml`: lower
scores are better. Cells: delta LM loss (L0 reached; FVU) on held-out documents of the development text.
"""


def shown(line: dict[str, Any] | None) -> str:
    """`0.231 (8.03)`: delta LM loss, and the L0 where it was measured."""
    return "–" if line is None else f"{line['delta_lm_loss']:.3f} ({line['l0']:.3g}; {line['fvu']:.3f})"
