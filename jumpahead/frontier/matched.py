"""Matched tables of frontier.json: metrics of every series, interpolated at equal L0 and at equal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jumpahead.frontier.answer import to_plain
from jumpahead.frontier.curve import CurvePosition, estimate_with_interval
from jumpahead.frontier.series import SeriesCurve
from jumpahead.metrics import curve_metrics

L0_VALUES = [2.0**power for power in range(15)]
"""Values of L0 at which series are compared."""
FIDELITY_VALUES = [float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5)]
"""Values of the fidelity metric at which series are compared."""


def matched_tables(curves: Sequence[SeriesCurve], fidelity: str) -> dict[str, list[dict[str, Any]]]:
    """Return two tables by key of the matched metric: L0 and the fidelity metric of the panel.

    A table is a list of {"value", "rows"}: the matched value, and one row of interpolated metrics per series.
    """
    return {
        key: _matched_table(curves, key, values) for key, values in (("l0", L0_VALUES), (fidelity, FIDELITY_VALUES))
    }


def _matched_table(curves: Sequence[SeriesCurve], metric: str, values: Sequence[float]) -> list[dict[str, Any]]:
    """Return a list of {"value", "rows"} for each of `values` that at least one series reaches."""
    column = curve_metrics().index(metric)
    entries = [{"value": value, "rows": _matched_rows(curves, column, value)} for value in values]
    return [entry for entry in entries if any(row["limit"] is None for row in entry["rows"])]


def _matched_rows(curves: Sequence[SeriesCurve], column: int, value: float) -> list[dict[str, Any]]:
    """Return the metrics of every series at a value of one metric, with paired differences to the lowest.

    `more` has, by metric, how much more a series has than the one with the least, with the interval of the difference
    taken per bootstrap replicate; the series with the least is not in it.
    """
    positions = [curve.curve.positions(column, value) for curve in curves]
    rows = [_matched_row(curve, at, column, value) for curve, at in zip(curves, positions, strict=True)]
    for i, key in enumerate(curve_metrics()):
        columns = {j: at[0].values[:, i] for j, at in enumerate(positions) if at and np.isfinite(at[0].values[0, i])}
        if len(columns) < 2:
            continue
        least = min(columns, key=lambda j: columns[j][0])
        for j, values in columns.items():
            if j != least:
                count = min(len(values), len(columns[least]))
                difference = estimate_with_interval(values[:count] - columns[least][:count])
                rows[j]["more"][key] = to_plain(difference)
    return rows


def _matched_row(curve: SeriesCurve, positions: list[CurvePosition], column: int, value: float) -> dict[str, Any]:
    """Return the metrics of one series at a value of the metric with index `column`, as a JSON-compatible dict.

    If the value lies outside the measured range, `limit` is `below` or `above`, `metrics` is empty, and `nearest`
    has the metrics at the end of the curve nearest to the value. Otherwise `limit` is None.
    positions: where the curve has the value.
    """
    if not positions:
        low, _ = curve.curve.measured_range(column)
        end = to_plain(curve.metrics(curve.curve.nearest_end(column, value)))
        return {"series": curve.name, "limit": "below" if value < low else "above", "metrics": {}, "nearest": end,
                "more": {}}  # fmt: skip
    metrics = to_plain(curve.metrics(positions[0]))
    return {"series": curve.name, "limit": None, "metrics": metrics, "setting": curve.setting_at(positions[0]),
            "more": {}}  # fmt: skip
