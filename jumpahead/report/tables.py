"""The tables of a panel: column heads with units and meanings, cells with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jumpahead.formatting import (
    MISSING,
    typeset_count,
    typeset_exact,
    typeset_number,
    typeset_percent,
    typeset_setting,
)
from jumpahead.report.panel import SEEDS, Json, PageContext, Panel

DIRECTIONS = {"lower": "lower", "higher": "higher", "one": "nearer to 1"}
NEVER = 2
"""What SAEs that did not converge are sorted by, after all shares of training."""

Cell = dict[str, Any]
Column = tuple[Cell, Callable[[Json], Cell]]
"""The head, and the function that makes the cell of an SAE."""


def column_head(short: str, unit: str = "", tip: str = "", *, is_word: bool = False) -> Cell:
    """Return the head of a column."""
    return {"short": short, "unit": unit, "tip": tip, "word": is_word}


def cell(value: Any, text: str | None = None, tip: str = "", *, is_word: bool = False, is_code: bool = False) -> Cell:
    """Return one cell: what is shown, and `value`, what it is sorted by (None comes last)."""
    shown = text if text is not None else MISSING if value is None else str(value)
    return {"text": shown, "value": value, "tip": tip, "word": is_word, "code": is_code}


def metric_head(declared: Json, context: PageContext) -> Cell:
    """Return the head of a metric. The end of the title tells apart metrics with the same short name and unit."""
    unit = declared["unit"]
    same = [one for one in context.metrics.values() if all(one[key] == declared[key] for key in ("short", "unit"))]
    if len(same) > 1:
        unit = declared["title"].partition(", ")[2] or unit
    return column_head(declared["short"], unit, _meaning(declared))


def _meaning(declared: Json) -> str:
    """Return `Delta LM loss [nats per token] = Σ …; lower is better`."""
    unit = f" [{declared['unit']}]" if declared["unit"] else ""
    better = DIRECTIONS.get(declared["better"])
    return f"{declared['title']}{unit} = {declared['formula']}" + (f"; {better} is better" if better else "")


# ---------------------------------------------------------------------------------------------- all SAEs


def columns(context: PageContext) -> list[Cell]:
    """Return the heads of the table of all SAEs; the first column is the SAE's label."""
    found = [column_head("SAE", "series, setting", "Series, and the setting that it was trained with", is_word=True)]
    for key, declared in context.metrics.items():
        if key == "l0":
            reached = column_head("L0", "reached, held out", _meaning(declared))
            found += [REQUESTED[0], reached, CONVERGED[0]]
        else:
            found.append(metric_head(declared, context))
    return found + [head for head, _ in _other_columns(context)]


def cells(point: Json, context: PageContext) -> list[Cell]:
    """Return one SAE's row, without its label."""
    row = []
    for key in context.metrics:
        value, error = point["metrics"].get(key), point["standard_errors"].get(key)
        interval = context.typeset_interval(key, *(point["intervals"].get(key) or (None, None)))
        tip = f"standard error: {typeset_number(error)}" if error else ""
        one = cell(value, context.typeset(key, value), f"{context.level} interval: {interval}" if interval else tip)
        row += [REQUESTED[1](point), one, CONVERGED[1](point)] if key == "l0" else [one]
    return row + [make(point) for _, make in _other_columns(context)]


def _coefficient_cell(point: Json) -> Cell:
    """Return the sparsity coefficient: λ, or k."""
    coefficients = {key: value for key, value in point["sparsity_coefficient"].items() if value is not None}
    text = ", ".join(f"{'λ' if key == 'lambda' else key} = {typeset_number(v)}" for key, v in coefficients.items())
    return cell(next(iter(coefficients.values()), None), text or MISSING)


def _training_cell(key: str) -> Callable[[Json], Cell]:
    """Return the function that makes the cell of a field of `training`."""

    def make(point: Json) -> Cell:
        """Return the cell of an SAE."""
        value = point["training"].get(key)
        return cell(value, typeset_count(value))

    return make


def _requested_cell(point: Json) -> Cell:
    """Return the requested L0."""
    return cell(point["requested"], None if point["requested"] is None else typeset_exact(point["requested"]))


def _converged_cell(point: Json) -> Cell:
    """Return the share of training after which L0 stayed at the requested one."""
    found = point["converged_after"]
    if found.get("requested") is None:
        return cell(None)
    if found.get("share") is None:
        return cell(NEVER, "never", "At the end L0 was not within 3 % of the requested one")
    tip = f"From step {found['step']:,} on" if found["step"] else "From the start"
    return cell(found["share"], typeset_percent(found["share"]), tip)


def _pareto_cell(point: Json) -> Cell:
    """Return whether the SAE is Pareto-optimal."""
    return cell(int(bool(point["pareto"])), "yes" if point["pareto"] else "no")


def _path_cell(point: Json) -> Cell:
    """Return the folder of the SAE."""
    return cell(point["path"], is_word=True, is_code=True)


REQUESTED: Column = (column_head("L0", "requested", "The mean number of active features requested"), _requested_cell)
CONVERGED: Column = (
    column_head(
        "converged", "share of training",
        "The share of training after which L0, averaged over 5 % of the run, stayed within 3 % of the requested one",
    ),
    _converged_cell,
)  # fmt: skip


def _other_columns(context: PageContext) -> list[Column]:
    """Return the columns after the metrics."""
    plural = context.unit.plural
    seen = f"{plural[0].upper()}{plural[1:]} seen in training"
    return [
        (column_head("trained with", "", "The penalty’s weight λ, or the number of features k"), _coefficient_cell),
        *((column_head(words), lambda point, key=key: cell(point[key])) for key, words in SEEDS.items()),
        (column_head("trained on", plural, f"{seen}, repeats counted"), _training_cell("tokens")),
        (column_head("distinct", plural, f"{seen}, each counted once"), _training_cell("distinct_tokens")),
        (
            column_head("training", "seconds", "Time of training; SAEs trained side by side share it"),
            _training_cell("seconds"),
        ),
        (
            column_head("pareto", "", "No other SAE of the panel is at least as good in both L0 and fidelity"),
            _pareto_cell,
        ),
        (column_head("path", "in the run’s folder", "The SAE’s folder", is_word=True), _path_cell),
    ]


# ---------------------------------------------------------------------------------------------- training diagnostics


def diagnostics_table(panel: Panel) -> dict[str, Any] | None:
    """Return how the training of each SAE went; None if no evaluation has diagnostics."""
    points = panel.points
    if not any(point["health"] or point["converged_after"] for point in points):
        return None
    shown = [one for one in panel.context.diagnostics if any(one["key"] in point["health"] for point in points)]
    heads = [column_head(one["short"], "" if one["unit"] == "share" else one["unit"], one["meaning"]) for one in shown]
    first = (REQUESTED, REACHED, CONVERGED)
    return {
        "columns": [*(head for head, _ in first), *heads],
        "rows": [
            [*(make(point) for _, make in first), *(_diagnostic_cell(point, one) for one in shown)] for point in points
        ],
    }


def _reached_cell(point: Json) -> Cell:
    """Return the L0 that was reached in training."""
    value = point["converged_after"].get("reached")
    return cell(value, typeset_number(value))


def _diagnostic_cell(point: Json, declared: Json) -> Cell:
    """Return one diagnostic of an SAE's training."""
    value = point["health"].get(declared["key"])
    return cell(value, typeset_percent(value) if declared["unit"] == "share" else typeset_number(value))


REACHED: Column = (column_head("L0", "reached in training", "Mean L0 over the last 5 % of training"), _reached_cell)


# ---------------------------------------------------------------------------------------------- matched tables


def matched_tables(panel: Panel) -> list[dict[str, Any]]:
    """Return what each series has at the same L0 and at the same fidelity; tables without entries are left out."""
    return [_matched_table(panel, key, entries) for key, entries in panel.json["matched"].items() if entries]


def _matched_table(panel: Panel, by: str, entries: list[Json]) -> dict[str, Any]:
    """Return what the template shows of one matched table. by: the metric that is matched."""
    context = panel.context
    present = {key for entry in entries for row in entry["rows"] for key in row["metrics"]} - {by}
    keys = [key for key, one in context.metrics.items() if key in present and one["format"] != "share"]
    return {
        "title": f"At matched {context.metrics[by]['name']}",
        "lead": f"Interpolated on each measured curve, with {context.level} intervals; nothing is extrapolated.",
        "by": metric_head(context.metrics[by], context),
        "columns": [
            *(metric_head(context.metrics[key], context) for key in keys),
            column_head("train with", tip="The setting that reaches the value, interpolated"),
        ],
        "entries": [
            {
                "value": typeset_exact(entry["value"]),
                "rows": [_matched_row(row, keys, by, panel) for row in entry["rows"]],
            }
            for entry in entries
        ],
    }


def _matched_row(row: Json, keys: list[str], by: str, panel: Panel) -> dict[str, Any]:
    """Return the cells of a series at a matched value, or why it has none."""
    context, series = panel.context, panel.context.series[row["series"]]
    if row["limit"] is not None:
        return {"series": series, "outside": _outside(row, by, panel), "cells": []}
    row_cells = []
    for key in keys:
        found, share = row["metrics"].get(key) or {}, row["metrics"].get(context.share_of(key)) or {}
        interval = context.typeset_interval(key, found.get("low"), found.get("high"))
        portion = typeset_percent(share["value"]) if share else ""
        lines = [line for line in (interval, portion) if line]
        row_cells.append({"text": context.typeset(key, found.get("value")), "lines": lines})
    row_cells.append({"text": typeset_setting(row["setting"]), "lines": []})
    return {"series": series, "outside": "", "cells": row_cells}


def _outside(row: Json, by: str, panel: Panel) -> str:
    """Return `above the measured range; nearest end: L0 58.3, delta loss 0.0974`."""
    context, nearest = panel.context, row["nearest"]
    keys = dict.fromkeys((by, "l0", panel.fidelity))
    ends = [f"{context.metrics[key]['short']} {context.typeset(key, nearest[key]['value'])}" for key in keys]
    return f"{row['limit']} the measured range; nearest end: {', '.join(ends)}"
