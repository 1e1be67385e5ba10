"""Tables of frontier.json: what every series has at the same L0, and at the same loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumpahead.frontier.answer import to_plain
from jumpahead.frontier.series import SeriesCurve
from jumpahead.metrics import curve_metrics

L0_VALUES = [2.0**power for power in range(15)]
FIDELITY_VALUES = [float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5)]


def matched_tables(curves: Sequence[SeriesCurve], fidelity: str) -> dict[str, list[dict[str, Any]]]:
    """Return, by metric, what every series has at fixed values of L0 and of the panel's fidelity."""
    return {key: _table(curves, key, values) for key, values in (("l0", L0_VALUES), (fidelity, FIDELITY_VALUES))}


def _table(curves: Sequence[SeriesCurve], metric: str, values: Sequence[float]) -> list[dict[str, Any]]:
    """Return {"value", "rows"}, a row per series, for each value that at least one series reaches.

    A row outside its series' range has `limit`, no `metrics`, and the values of its nearest end as `nearest`.
    """
    column = curve_metrics().index(metric)
    entries = [{"value": value, "rows": [_row(curve, column, value) for curve in curves]} for value in values]
    return [entry for entry in entries if any(row["limit"] is None for row in entry["rows"])]


def _row(curve: SeriesCurve, column: int, value: float) -> dict[str, Any]:
    """Return what one series has at a value of a metric."""
    positions = curve.curve.positions(column, value)
    if not positions:
        low, _ = curve.curve.range(column)
        end = to_plain(curve.metrics(curve.curve.nearest_end(column, value)))
        return {"series": curve.name, "limit": "below" if value < low else "above", "metrics": {}, "nearest": end}
    metrics = to_plain(curve.metrics(positions[0]))
    return {"series": curve.name, "limit": None, "metrics": metrics, "setting": curve.setting_at(positions[0])}
