"""The tables of a panel: headings with units and meanings, cells with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jumpahead.report.numbers import COUNTS, MISSING, count, exact, interval, metric, percent, short
from jumpahead.report.panel import SEEDS, Json, Names, Panel, setting_text

FIRST = ("l0", "delta_lm_loss", "fvu", "above_10pct", "share_above_10pct", "above_1pct", "share_above_1pct", "dead")
MATCHED = {  # a matched table of frontier.json → what is matched, and the heading
    "matched_l0": ("l0", "At matched L0"),
    "matched_loss": ("delta_lm_loss", "At matched delta LM loss"),
    "matched_fvu": ("fvu", "At matched FVU"),
}
DIRECTIONS = {"lower": "lower", "higher": "higher", "one": "nearer to 1"}

Cell = dict[str, Any]


def head(short: str, unit: str = "", tip: str = "", *, is_word: bool = False) -> Cell:
    """A column's heading."""
    return {"short": short, "unit": unit, "tip": tip, "word": is_word}


def cell(value: Any, text: str | None = None, tip: str = "", *, is_word: bool = False, is_code: bool = False) -> Cell:
    """One cell: what is shown, and `value`, what it is sorted by (None comes last)."""
    shown = text if text is not None else MISSING if value is None else str(value)
    return {"text": shown, "value": value, "tip": tip, "word": is_word, "code": is_code}


def metric_head(declared: Json, names: Names) -> Cell:
    """The heading of a metric. Where two share their short name and unit, the end of their titles tells them apart."""
    unit = declared.get("unit") or ""
    if declared["key"].startswith("share_"):
        unit = "of features"
    elif declared["key"] == "l0":
        unit = names.nouns("features per token")
    same = [one for one in names.metrics.values() if all(one.get(k) == declared.get(k) for k in ("short", "unit"))]
    if len(same) > 1:
        unit = declared["title"].partition(", ")[2] or unit
    return head(declared.get("short") or declared["title"], unit, _meaning(declared))


def _meaning(declared: Json) -> str:
    """`Delta LM loss [nats per token] = Σ …; lower is better`."""
    unit = f" [{declared['unit']}]" if declared.get("unit") else ""
    better = DIRECTIONS.get(declared["better"])
    return f"{declared['title']}{unit} = {declared['formula']}" + (f"; {better} is better" if better else "")


# ---------------------------------------------------------------------------------------------- all SAEs


def columns(names: Names) -> list[Cell]:
    """Headings of the table of all SAEs; the first column is the SAE's name."""
    found = [head("SAE", "series, setting", "Series, and the setting that it was trained with", is_word=True)]
    for key in _shown(names):
        if key == "l0":
            reached = head("L0", "reached, held out", _meaning(names.metrics[key]))
            found += [ASKED[0], reached, SETTLED[0]]
        else:
            found.append(metric_head(names.metrics[key], names))
    return found + [{**top, **{part: names.nouns(top[part]) for part in ("unit", "tip")}} for top, _ in OTHERS]


def cells(point: Json, names: Names) -> list[Cell]:
    """One SAE's row, without its name."""
    row = []
    for key in _shown(names):
        value, error = point["metrics"].get(key), (point.get("standard_errors") or {}).get(key)
        range_ = interval(key, *((point.get("intervals") or {}).get(key) or (None, None)))
        tip = f"{names.level} interval: {range_}" if range_ else f"standard error: {short(error)}" if error else ""
        one = cell(value, metric(key, value), tip)
        row += [ASKED[1](point), one, SETTLED[1](point)] if key == "l0" else [one]
    return row + [make(point) for _, make in OTHERS]


def _shown(names: Names) -> list[str]:
    """What the page is about first; what describes the LM and the text, the same for every SAE, last."""

    def place(key: str) -> tuple[bool, int]:
        return names.metrics[key]["better"] == "none", FIRST.index(key) if key in FIRST else len(FIRST)

    return sorted(names.metrics, key=place)


def _knob(point: Json) -> Cell:
    knobs = {key: value for key, value in (point.get("knob") or {}).items() if value is not None}
    text = ", ".join(f"{'λ' if key == 'lambda' else key} = {short(value)}" for key, value in knobs.items())
    return cell(next(iter(knobs.values()), None), text or MISSING)


def _training(key: str) -> Callable[[Json], Cell]:
    def make(point: Json) -> Cell:
        value = (point.get("training") or {}).get(key)
        return cell(value, count(value))

    return make


def _asked(point: Json) -> Cell:
    return cell(point.get("asked"), None if point.get("asked") is None else exact(point["asked"]))


def _settled(point: Json) -> Cell:
    """A share of training; whoever never settled comes after all others."""
    found = point.get("settled") or {}
    if found.get("asked") is None:
        return cell(None)
    if found.get("share") is None:
        return cell(2, "never", "At the end L0 was not within 3 % of the one asked for")
    tip = f"From step {found['step']:,} on" if found["step"] else "From the start"
    return cell(found["share"], percent(found["share"]), tip)


def _pareto(point: Json) -> Cell:
    return cell(int(bool(point.get("pareto"))), "yes" if point.get("pareto") else "no")


Column = tuple[Cell, Callable[[Json], Cell]]
ASKED: Column = (head("L0", "asked", "The mean number of active features that the setting asks for"), _asked)
SETTLED: Column = (
    head(
        "settled", "share of training",
        "The share of training after which L0, averaged over 5 % of the run, stayed within 3 % of the one asked for",
    ),
    _settled,
)  # fmt: skip
OTHERS: list[Column] = [
    (head("trained with", "", "The penalty’s weight λ, or the number of features kept, k"), _knob),
    *((head(words), lambda point, key=key: cell(point.get(key))) for key, words in SEEDS.items()),
    (head("trained on", "tokens", "Tokens seen in training, repeats counted"), _training("tokens")),
    (head("distinct", "tokens", "Tokens seen in training, each counted once"), _training("distinct_tokens")),
    (head("training", "seconds", "Time of training; SAEs trained side by side share it"), _training("seconds")),
    (
        head("pareto", "", "No other SAE of the panel has both a lower L0 and a lower loss (FVU, without an LM)"),
        _pareto,
    ),
    (
        head("path", "below the run", "Where the SAE lies", is_word=True),
        lambda point: cell(point.get("path"), is_word=True, is_code=True),
    ),
]


# ---------------------------------------------------------------------------------------------- training health


def health_table(panel: Panel) -> dict[str, Any] | None:
    """How the training of each SAE went; None where no evaluation says so."""
    points = [p for p in panel.points if p.get("health") or p.get("settled")]
    if not points:
        return None
    measures = [one for one in panel.names.health if any(one["key"] in (p.get("health") or {}) for p in points)]
    heads = [head(one["short"], "" if one["unit"] == "share" else one["unit"], one["meaning"]) for one in measures]
    return {
        "columns": [ASKED[0], REACHED[0], SETTLED[0], *heads],
        "rows": [
            [ASKED[1](p), REACHED[1](p), SETTLED[1](p), *(_health(p, one) for one in measures)] for p in panel.points
        ],
    }


def _reached(point: Json) -> Cell:
    value = (point.get("settled") or {}).get("reached")
    return cell(value, short(value))


def _health(point: Json, measure: Json) -> Cell:
    value = (point.get("health") or {}).get(measure["key"])
    return cell(value, percent(value) if measure["unit"] == "share" else short(value))


REACHED: Column = (head("L0", "reached in training", "Mean L0 over the last 5 % of training"), _reached)


# ---------------------------------------------------------------------------------------------- matched tables


def matched_tables(panel: Panel) -> list[dict[str, Any]]:
    """What each series has at the same L0 and at the same loss; tables without any entry are left out."""
    there = {source: how for source, how in MATCHED.items() if panel.json.get(source)}
    return [_matched_table(panel, source, by, title) for source, (by, title) in there.items()]


def _matched_table(panel: Panel, source: str, by: str, title: str) -> dict[str, Any]:
    names, entries = panel.names, panel.json[source]
    present = {key for entry in entries for row in entry["rows"] for key in row["metrics"]} - {by}
    keys = [key for key in names.metrics if key in present and not key.startswith("share_")]
    return {
        "title": title,
        "lead": f"Interpolated on each measured curve, with {names.level} intervals; nothing is extrapolated.",
        "by": metric_head(names.metrics[by], names),
        "columns": [
            *(metric_head(names.metrics[key], names) for key in keys),
            head("train with", tip="The setting that lands there, interpolated"),
        ],
        "entries": [
            {"value": exact(entry[by]), "rows": [_matched_row(row, keys, by, panel) for row in entry["rows"]]}
            for entry in entries
        ],
    }


def _matched_row(row: Json, keys: list[str], by: str, panel: Panel) -> dict[str, Any]:
    """The cells of a series at a matched value, or why there are none."""
    series = panel.names.series[row["series"]]
    if row.get("limit") is not None:
        return {"series": series, "outside": _outside(row, by, panel), "cells": []}
    row_cells = []
    for key in keys:
        found = row["metrics"].get(key) or {}
        value, range_ = found.get("value"), interval(key, found.get("low"), found.get("high"))
        share = percent(value / panel.width) if key in COUNTS and value is not None else ""
        row_cells.append({"text": metric(key, value), "lines": [line for line in (range_, share) if line]})
    row_cells.append({"text": setting_text(row.get("setting")), "lines": []})
    return {"series": series, "outside": "", "cells": row_cells}


def _outside(row: Json, by: str, panel: Panel) -> str:
    """`above the measured range; nearest end: L0 58.3, delta loss 0.0974`."""
    where = f"{row['limit']} the measured range" if row["limit"] in ("below", "above") else "outside the measured range"
    nearest = row.get("nearest") or {}
    keys = [key for key in dict.fromkeys((by, "l0", panel.fidelity)) if nearest.get(key)]
    ends = [f"{panel.names.metrics[key]['short']} {metric(key, nearest[key].get('value'))}" for key in keys]
    return f"{where}; nearest end: {', '.join(ends)}" if ends else where
