"""Template values of the tables of a panel: heads with units and explanations, cells with intervals as tooltips."""

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
from jumpahead.report.panel import SEED_COLUMN_TITLES, Json, PageContext, Panel

DIRECTIONS = {"lower": "lower", "higher": "higher", "one": "nearer to 1"}
NEVER_CONVERGED_VALUE = 2
"""Sort value of SAEs whose L0 did not converge: larger than any share of training (≤ 1)."""

MAIN_METRICS = ("loss_recovered_zero", "fvu_ordinary")
"""Metrics, beside those on curves, that the table of all SAEs shows without being asked for all columns."""
Cell = dict[str, Any]
"""Template values of a head or of a body cell, see `column_head` and `make_cell`."""
Column = tuple[Cell, Callable[[Json], Cell]]
"""The head of a column, and a function from the JSON of an SAE to the cell of the SAE."""


def column_head(short: str, unit: str = "", tip: str = "", *, is_word: bool = False, is_extra: bool = False) -> Cell:
    """Return the head of a column: short title, unit, tooltip.

    is_word: cells contain words, not numbers. is_extra: the column is shown only with all columns.
    """
    return {"short": short, "unit": unit, "tip": tip, "word": is_word, "extra": is_extra}


def make_cell(
    value: Any, text: str | None = None, tip: str = "", *, is_word: bool = False, is_code: bool = False
) -> Cell:
    """Return one cell of a table body.

    value: the sort value (None sorts last). text: the shown text, by default `value` as text. tip: the tooltip.
    is_word: the cell contains words, not numbers. is_code: the text is shown in monospace.
    """
    shown = text if text is not None else MISSING if value is None else str(value)
    return {"text": shown, "value": value, "tip": tip, "word": is_word, "code": is_code}


def metric_head(declared: Json, context: PageContext) -> Cell:
    """Return the column head of a metric. declared: the metadata of the metric in frontier.json.

    If several metrics have the same short title and unit, the head shows the end of the title instead of the unit.
    """
    unit = declared["unit"]
    same = [each for each in context.metrics.values() if all(each[key] == declared[key] for key in ("short", "unit"))]
    if len(same) > 1:
        unit = declared["title"].partition(", ")[2] or unit
    is_extra = declared["curve"] is None and declared["key"] not in MAIN_METRICS
    return column_head(declared["short"], unit, _metric_tooltip(declared), is_extra=is_extra)


def _metric_tooltip(declared: Json) -> str:
    """Return title, unit, formula and direction: `Delta LM loss [nats per token] = Σ …; lower is better`."""
    unit = f" [{declared['unit']}]" if declared["unit"] else ""
    better = DIRECTIONS.get(declared["better"])
    return f"{declared['title']}{unit} = {declared['formula']}" + (f"; {better} is better" if better else "")


# ---------------------------------------------------------------------------------------------- all SAEs


def sae_table_heads(context: PageContext) -> list[Cell]:
    """Return the column heads of the table of all SAEs; the first column is the label of the SAE."""
    heads = [column_head("SAE", "series, setting", "Series, and the setting that it was trained with", is_word=True)]
    for key, declared in context.metrics.items():
        if key == "l0":
            reached = column_head("L0", "reached, held out", _metric_tooltip(declared))
            heads += [REQUESTED[0], reached, CONVERGED[0]]
        else:
            heads.append(metric_head(declared, context))
    return heads + [head for head, _ in _columns_after_metrics(context)]


def sae_row_cells(point: Json, context: PageContext) -> list[Cell]:
    """Return the cells of one SAE in the table of all SAEs, without the label."""
    row = []
    for key in context.metrics:
        value, error = point["metrics"].get(key), point["standard_errors"].get(key)
        interval = context.typeset_interval(key, *(point["intervals"].get(key) or (None, None)))
        tip = f"standard error: {typeset_number(error)}" if error else ""
        one = make_cell(
            value, context.typeset(key, value), f"{context.level} interval: {interval}" if interval else tip
        )
        row += [REQUESTED[1](point), one, CONVERGED[1](point)] if key == "l0" else [one]
    return row + [make(point) for _, make in _columns_after_metrics(context)]


def _coefficient_cell(point: Json) -> Cell:
    """Return the cell with the final sparsity coefficient, λ or k."""
    coefficients = {key: value for key, value in point["sparsity_coefficient"].items() if value is not None}
    text = ", ".join(f"{'λ' if key == 'lambda' else key} = {typeset_number(v)}" for key, v in coefficients.items())
    return make_cell(next(iter(coefficients.values()), None), text or MISSING)


def _training_cell(key: str) -> Callable[[Json], Cell]:
    """Return a function from an SAE to the cell with the field `key` of `training`."""

    def make(point: Json) -> Cell:
        """Return the cell with the field `key` of `training` of an SAE."""
        value = point["training"].get(key)
        return make_cell(value, typeset_count(value))

    return make


def _requested_cell(point: Json) -> Cell:
    """Return the cell with the requested L0."""
    return make_cell(point["requested"], None if point["requested"] is None else typeset_exact(point["requested"]))


def _converged_cell(point: Json) -> Cell:
    """Return the cell with the share of training after which L0 stayed near the requested L0."""
    convergence = point["converged_after"]
    if convergence.get("requested") is None:
        return make_cell(None)
    if convergence.get("share") is None:
        return make_cell(NEVER_CONVERGED_VALUE, "never", "At the end L0 was not within 3 % of the requested one")
    tip = f"From step {convergence['step']:,} on" if convergence["step"] else "From the start"
    return make_cell(convergence["share"], typeset_percent(convergence["share"]), tip)


def _pareto_cell(point: Json) -> Cell:
    """Return the cell `yes` if the SAE is Pareto-optimal, else `no`."""
    return make_cell(int(bool(point["pareto"])), "yes" if point["pareto"] else "no")


def _path_cell(point: Json) -> Cell:
    """Return the cell with the folder of the SAE, relative to the run."""
    return make_cell(point["path"], is_word=True, is_code=True)


REQUESTED: Column = (column_head("L0", "requested", "The mean number of active features requested"), _requested_cell)
CONVERGED: Column = (
    column_head(
        "converged", "share of training",
        "The share of training after which L0, averaged over 5 % of the run, stayed within 3 % of the requested one",
        is_extra=True,
    ),
    _converged_cell,
)  # fmt: skip


def _columns_after_metrics(context: PageContext) -> list[Column]:
    """Return the columns of the table of all SAEs that follow the metrics."""
    plural = context.unit.plural
    seen = f"{plural[0].upper()}{plural[1:]} seen in training"
    return [
        (
            column_head("trained with", "", "The penalty’s weight λ, or the number of features k", is_extra=True),
            _coefficient_cell,
        ),
        *(
            (column_head(words, is_extra=True), lambda point, key=key: make_cell(point[key]))
            for key, words in SEED_COLUMN_TITLES.items()
        ),
        (column_head("trained on", plural, f"{seen}, repeats counted", is_extra=True), _training_cell("tokens")),
        (
            column_head("distinct", plural, f"{seen}, each counted once", is_extra=True),
            _training_cell("distinct_tokens"),
        ),
        (
            column_head("training", "seconds", "Time of training; SAEs trained side by side share it", is_extra=True),
            _training_cell("seconds"),
        ),
        (
            column_head("Pareto", "", "No other SAE is clearly better in L0 or fidelity and as good in both"),
            _pareto_cell,
        ),
        (column_head("path", "in the run’s folder", "The SAE’s folder", is_word=True, is_extra=True), _path_cell),
    ]


# ---------------------------------------------------------------------------------------------- training diagnostics


def diagnostics_table(panel: Panel) -> dict[str, Any] | None:
    """Return heads and rows of the table of training diagnostics; None if no SAE has diagnostics."""
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
    """Return the cell with the L0 at the end of training."""
    value = point["converged_after"].get("reached")
    return make_cell(value, typeset_number(value))


def _diagnostic_cell(point: Json, declared: Json) -> Cell:
    """Return the cell with one training diagnostic of an SAE. declared: the metadata of the diagnostic."""
    value = point["health"].get(declared["key"])
    return make_cell(value, typeset_percent(value) if declared["unit"] == "share" else typeset_number(value))


REACHED: Column = (column_head("L0", "reached in training", "Mean L0 over the last 5 % of training"), _reached_cell)


# ---------------------------------------------------------------------------------------------- matched tables


def matched_tables(panel: Panel) -> list[dict[str, Any]]:
    """Return the tables of metrics at equal L0 and at equal fidelity; omit empty tables."""
    return [_matched_table(panel, key, entries) for key, entries in panel.json["matched"].items() if entries]


def _matched_table(panel: Panel, by: str, entries: list[Json]) -> dict[str, Any]:
    """Return the template values of one matched table.

    by: key of the matched metric. entries: the matched values, with one row of metrics per series.
    """
    context = panel.context
    present = {key for entry in entries for row in entry["rows"] for key in row["metrics"]} - {by}
    keys = [key for key, one in context.metrics.items() if key in present and one["format"] != "share"]
    return {
        "title": f"At matched {context.metrics[by]['name']}",
        "lead": (
            f"Interpolated on each measured curve, with {context.level} intervals; nothing is extrapolated. Beneath L0 "
            f"and {panel.fidelity_name}, +: how much more than the series with the least, with the interval of the "
            "paired difference."
        ),
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
    """Return the cells of a series at a matched value; if out of range, `outside` explains it and `cells` is empty."""
    context, series = panel.context, panel.context.series[row["series"]]
    if row["limit"] is not None:
        return {"series": series, "outside": _out_of_range_text(row, by, panel), "cells": []}
    row_cells = []
    for key in keys:
        estimate, share = row["metrics"].get(key) or {}, row["metrics"].get(context.share_of(key)) or {}
        interval = context.typeset_interval(key, estimate.get("low"), estimate.get("high"))
        portion = typeset_percent(share["value"]) if share else ""
        lines = [line for line in (interval, portion, _difference_text(row, key, panel)) if line]
        row_cells.append({"text": context.typeset(key, estimate.get("value")), "lines": lines})
    row_cells.append({"text": typeset_setting(row["setting"]), "lines": []})
    return {"series": series, "outside": "", "cells": row_cells}


def _difference_text(row: Json, key: str, panel: Panel) -> str:
    """Return how much more a series has than the one with the least, as text; empty if it is that series.

    Only of the metrics that compare series: L0 and the fidelity metric.
    """
    more = row["more"].get(key)
    if more is None or key not in ("l0", panel.fidelity):
        return ""
    interval = panel.context.typeset_interval(key, more["low"], more["high"])
    return f"+{panel.context.typeset(key, more['value'])}" + (f" ({interval})" if interval else "")


def _out_of_range_text(row: Json, by: str, panel: Panel) -> str:
    """Return a note for a series out of range: `above the measured range; nearest end: L0 58.3, delta loss 0.0974`."""
    context, nearest = panel.context, row["nearest"]
    keys = dict.fromkeys((by, "l0", panel.fidelity))
    ends = [f"{context.metrics[key]['short']} {context.typeset(key, nearest[key]['value'])}" for key in keys]
    return f"{row['limit']} the measured range; nearest end: {', '.join(ends)}"
