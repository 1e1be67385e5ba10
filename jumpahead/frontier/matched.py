"""Matched tables of frontier.json: metrics of every series, interpolated at equal L0 and at equal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumpahead.frontier.answer import to_plain
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
    entries = [{"value": value, "rows": [_matched_row(curve, column, value) for curve in curves]} for value in values]
    return [entry for entry in entries if any(row["limit"] is None for row in entry["rows"])]


def _matched_row(curve: SeriesCurve, column: int, value: float) -> dict[str, Any]:
    """Return the metrics of one series at a value of the metric with index `column`, as a JSON-compatible dict.

    If the value lies outside the measured range, `limit` is `below` or `above`, `metrics` is empty, and `nearest`
    has the metrics at the end of the curve nearest to the value. Otherwise `limit` is None.
    """
    positions = curve.curve.positions(column, value)
    if not positions:
        low, _ = curve.curve.measured_range(column)
        end = to_plain(curve.metrics(curve.curve.nearest_end(column, value)))
        return {"series": curve.name, "limit": "below" if value < low else "above", "metrics": {}, "nearest": end}
    metrics = to_plain(curve.metrics(positions[0]))
    return {"series": curve.name, "limit": None, "metrics": metrics, "setting": curve.setting_at(positions[0])}
