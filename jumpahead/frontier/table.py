"""The SAEs of a frontier as a table: a row per SAE, a column per number; CSV and pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jumpahead.errors import JumpaheadError
from jumpahead.formatting import format_number, format_setting, series_width
from jumpahead.metrics import METRICS

if TYPE_CHECKING:
    import pandas

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that spreadsheets take for a formula."""


class FrontierPoint(dict):
    """One SAE of a frontier: an element of `points` in frontier.json, whose repr is one line."""

    def __repr__(self) -> str:
        """Return series, setting, main metrics and path; the bootstrap replicates are left out."""
        metrics = self.get("metrics", {})
        values = [
            f"{METRICS[key].name} {format_number(metrics[key])}"
            for key in ("l0", "delta_lm_loss", "fvu")
            if metrics.get(key) is not None
        ]
        setting = format_setting(self["setting"]) if "setting" in self else "?"
        return f"FrontierPoint({self.get('series')}, {setting}: {', '.join(values)}; {self.get('path')})"


def table_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per SAE of a frontier.json, panel by panel; every row has every column, None where it has no value.

    Columns: site, width, series, setting, value, seeds; the metrics; their intervals, KEY_low and KEY_high; their
    standard errors, KEY_se; whether the SAE is Pareto-optimal in L0 and fidelity; its path in the run.
    """
    points = [(panel, point) for panel in data["panels"] for point in panel["points"]]
    metrics = [metric["key"] for metric in data["metrics"]]
    with_interval = [key for key in metrics if any(key in point["intervals"] for _, point in points)]
    with_error = [key for key in metrics if any(key in point["standard_errors"] for _, point in points)]
    return [_row(panel, point, metrics, with_interval, with_error) for panel, point in points]


def _row(
    panel: Mapping[str, Any],
    point: Mapping[str, Any],
    metrics: Sequence[str],
    with_interval: Sequence[str],
    with_error: Sequence[str],
) -> dict[str, Any]:
    """Return the row of one SAE."""
    row: dict[str, Any] = {
        "site": panel["site"],
        "width": series_width(panel, point["series"]),
        "series": point["series"],
    }
    row |= {"setting": point["setting"]["kind"], "value": point["setting"]["value"]}
    row |= {"sae_seed": point["sae_seed"], "stream_seed": point["stream_seed"]}
    row |= {key: point["metrics"].get(key) for key in metrics}
    for key in with_interval:
        row[f"{key}_low"], row[f"{key}_high"] = point["intervals"].get(key) or (None, None)
    row |= {f"{key}_se": point["standard_errors"].get(key) for key in with_error}
    return row | {"pareto": point["pareto"], "path": point["path"]}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV (RFC 4180). A text that a spreadsheet would take for a formula begins with an apostrophe."""
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def _as_text(value: Any) -> Any:
    """Return a value for a cell: text that is no formula, `true` and `false`, numbers as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def to_pandas(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return rows as a DataFrame. Raises JumpaheadError if pandas is not installed."""
    try:
        import pandas
    except ImportError as exc:
        raise JumpaheadError("A DataFrame needs pandas: `pip install pandas`; or use table() or to_csv().") from exc
    return pandas.DataFrame(list(rows))
