"""The table of the comparison, from its result lines."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.runs import OURS
from benchmarks.result_lines import Lines
from benchmarks.table import render_table

Line = dict[str, Any]
Group = list[Line]
"""The SAEs of one row: the same but for the seed."""
SERIES = ("library", "architecture", "rate")

LEGEND = """
Made by `make bench-quality` from `final.jsonl`, one line per SAE. Every library trained on the same stored activations,
in the same order, for the same tokens, at the same width, by its own trainer and optimizer
(`benchmarks/quality/trainers.py`). One evaluator in plain torch judged all on held-out data
(`benchmarks/quality/evaluator.py`). Rates: `default` is the library's own; `tuned` is the best of six multiples
of it on development data; `recipe` is jumpahead's, as shipped. `± SE` is over documents; with several seeds, cells are
means and ranges. Dead: features that fire on no held-out row. s: seconds of training, without reading activations; they
compare only on a quiet machine.
"""


def render_page(lines: Lines) -> str:
    """Return all tables as Markdown."""
    parts = ["# SAEs of several libraries at the same data", LEGEND.strip()]
    for (place, tokens), members in sorted(by_place(lines).items(), key=lambda pair: (pair[0][1], pair[0][0])):
        measured = " to ".join(sorted({f"{one['measured_on']:,}" for one in members}))
        parts.append(
            f"## {place}, {tokens / 1e6:g}e6 tokens\n\nHeld out: {measured} rows. Width {members[0]['width']:,}."
        )
        parts += [render_rows(members), render_best(members)]
    return "\n\n".join(part for part in parts if part) + "\n"


def by_place(lines: Lines) -> dict[tuple[str, int], Group]:
    """Return the results by place and tokens."""
    found: dict[tuple[str, int], Group] = defaultdict(list)
    for line in lines.values():
        if line["part"] == "final":
            found[line["place"], line["tokens"]].append(line)
    return found


def by_row(members: Sequence[Line]) -> dict[tuple[Any, ...], Group]:
    """Return the results by requested L0, library, architecture and rate, in the order of the table."""
    found: dict[tuple[Any, ...], Group] = defaultdict(list)
    for line in members:
        found[(line["requested_l0"], *(line[name] for name in SERIES))].append(line)
    return dict(sorted(found.items(), key=lambda pair: (pair[0][0], pair[0][1] != OURS, *pair[0][1:])))


def render_rows(members: Sequence[Line]) -> str:
    """Return the table of all SAEs at one place."""
    has_loss, has_f1 = (any(line.get(key) is not None for line in members) for key in ("delta_lm_loss", "f1"))
    headings = ["library", "architecture", "rate", "lr", "L0 asked", "L0"]
    headings += [*(["delta LM loss"] if has_loss else []), "FVU", *(["F1"] if has_f1 else []), "dead", "s"]
    rows = []
    for (l0, library, architecture, rate), group in by_row(members).items():
        lr = group[0]["lr"]
        cells = [
            library,
            architecture,
            rate,
            "–" if lr is None else f"{lr:.3g}",
            f"{l0:g}",
            mean_cell(group, "l0", ".4g"),
        ]
        cells += [mean_cell(group, "delta_lm_loss", ".4f", "se")] if has_loss else []
        cells += [mean_cell(group, "fvu", ".4f")]
        cells += [mean_cell(group, "f1", ".3f")] if has_f1 else []
        rows.append([*cells, mean_cell(group, "dead", ",.0f"), mean_cell(group, "seconds", ",.0f")])
    return render_table(headings, rows)


def mean_cell(group: Group, key: str, spec: str, error: str = "") -> str:
    """Return a cell: the value with its standard error, or the mean and the range over seeds."""
    values = [line[key] for line in group if line.get(key) is not None]
    if not values:
        return "–"
    text = f"{sum(values) / len(values):{spec}}"
    if len(values) > 1:
        return f"{text} ({min(values):{spec}}–{max(values):{spec}})"
    return f"{text} ± {group[0][error]:{spec}}" if error and group[0].get(error) is not None else text


def render_best(members: Sequence[Line]) -> str:
    """Return the table of the best of jumpahead's and of the other libraries' SAEs at every requested L0.

    Best: the lowest mean delta LM loss, or FVU without a language model, of the SAEs whose L0 is at most 3 % above the
    requested one. Empty if there is no L0 with both.
    """
    key = "delta_lm_loss" if any(line.get("delta_lm_loss") is not None for line in members) else "fvu"
    rows = []
    for l0 in sorted({line["requested_l0"] for line in members}):
        means = {row[1:]: mean(group, key) for row, group in by_row(members).items()
                 if row[0] == l0 and mean(group, "l0") <= 1.03 * l0}  # fmt: skip
        ours, theirs = (
            {
                series: value
                for series, value in means.items()
                if (series[0] == OURS) == is_ours and math.isfinite(value)
            }
            for is_ours in (True, False)
        )
        if not ours or not theirs:
            continue
        best, rival, jumprelu = min(ours, key=ours.__getitem__), min(theirs, key=theirs.__getitem__), (OURS, "jumprelu")
        own = next((value for series, value in ours.items() if series[:2] == jumprelu), math.nan)
        loss = "–" if math.isnan(own) else f"{own / ours[best]:.3f}"
        rows.append([f"{l0:g}", f"{best[1]} {ours[best]:.4f}", f"{' '.join(rival)} {theirs[rival]:.4f}",
                     f"{ours[best] / theirs[rival]:.3f}", loss])  # fmt: skip
    headings = ["L0", "best of jumpahead", "best of the others", "ratio", "JumpReLU / best of jumpahead"]
    return render_table(headings, rows) if rows else ""


def mean(group: Group, key: str) -> float:
    """Return the mean of a metric over seeds; inf if a seed has no value."""
    values: list[float] = [math.inf if line.get(key) is None else line[key] for line in group]
    return sum(values) / len(values)
