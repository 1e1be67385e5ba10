"""One panel of the page: what the template shows of it, and what the script gets."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from jumpahead.formatting import typeset_exact
from jumpahead.report.findings import findings, typical_entry
from jumpahead.report.panel import Panel
from jumpahead.report.tables import cells, columns, diagnostics_table, matched_tables

DIGITS = 8
"""Of a bootstrap replicate on the page: far more than an interval needs, half the bytes of all digits."""


def panel_view(panel: Panel) -> dict[str, Any]:
    """Return what the template shows of a panel."""
    context, width, d = panel.context, panel.width, panel.json["d"]
    return {
        "fidelity": panel.fidelity_name,
        "has_loss": panel.fidelity == "delta_lm_loss",
        "marks": _marks(panel),
        "targets": _targets(panel),
        "id": f"panel-{panel.number}",
        "title": f"{panel.json['site']}, {width:,} features",
        "subtitle": f"{typeset_exact(round(width / d, 2))} × the activation’s width of {d:,}",
        "width_text": f"{width:,}",
        "findings": findings(panel),
        "series": sorted({panel.series_of(point) for point in panel.points}),
        "alt": {
            kind: f"{text}; the numbers are in the table of all SAEs below." for kind, text in _alt_texts(panel).items()
        },
        "matched": matched_tables(panel),
        "columns": columns(context),
        "points": [
            {"series": panel.series_of(point), "label": label, "rank": i, "cells": cells(point, context)}
            for i, (point, label) in enumerate(zip(panel.points, panel.labels, strict=True))
        ],
        "diagnostics": diagnostics_table(panel),
        "histograms": _histograms(panel),
        "notes": _notes(panel),
    }


def _targets(panel: Panel) -> list[dict[str, str]]:
    """Return the metrics that one can ask by, the panel's fidelity first."""
    declared = panel.context.metrics
    keys = [key for key, one in declared.items() if one["is_target"] and _is_measured(panel, key)]
    keys.sort(key=lambda key: key != panel.fidelity)
    return [{"key": key, "name": declared[key]["name"]} for key in keys]


def _is_measured(panel: Panel, key: str) -> bool:
    """Return True if any SAE of the panel has a value of a metric."""
    return any(point["metrics"].get(key) is not None for point in panel.points)


def _alt_texts(panel: Panel) -> dict[str, str]:
    """Return what each figure shows, for readers who do not see it."""
    fires = (
        f"Share of features active on more than {{}} % of {panel.context.unit.plural}, against {panel.fidelity_name}"
    )
    return {
        "delta_lm_loss": "Delta LM loss against L0, one curve per series",
        "fvu": "Fraction of variance unexplained against L0, one curve per series",
        "above_10pct": f"{fires.format(10)}, one curve per series",
        "above_1pct": f"{fires.format(1)}, one curve per series",
        "histogram": "Histogram of feature frequencies",
    }


def _marks(panel: Panel) -> str:
    """Return the explanation of the marks in the figures."""
    return (
        f"Bars are {panel.context.level} intervals. Filled marks are Pareto-optimal: no other SAE of the panel is "
        f"at least as good in both L0 and {panel.fidelity_name}. Point at a mark for its setting, seed, path and "
        "numbers; choose it to mark that SAE everywhere. The dotted line is the target of the question above."
    )


def _notes(panel: Panel) -> list[dict[str, str]]:
    """Return each note once, with the labels of its SAEs."""
    labels: dict[str, list[str]] = defaultdict(list)
    for point, label in zip(panel.points, panel.labels, strict=True):
        for note in point["notes"]:
            labels[str(note)].append(label)
    count = len(panel.points)
    return [
        {"text": text, "who": "every SAE of this panel" if len(who) == count > 1 else "; ".join(who)}
        for text, who in labels.items()
    ]


def _histograms(panel: Panel) -> list[dict[str, Any]]:
    """Return the choices of the frequency figure: each series' SAE nearest to a matched L0, or one SAE."""
    series = list(dict.fromkeys(point["series"] for point in panel.points))
    entries = panel.json["matched"]["l0"]
    first = typical_entry(entries)  # the L0 that the findings are about comes first
    matched = sorted((entry["value"] for entry in entries), key=lambda l0: first is None or l0 != first["value"])
    choices = [
        {
            "label": f"each series, the SAE nearest to L0 = {typeset_exact(l0)}",
            "points": [_nearest(panel, name, l0) for name in series],
        }
        for l0 in matched
        if len(series) > 1
    ]
    return choices + [{"label": label, "points": [i]} for i, label in enumerate(panel.labels)]


def _nearest(panel: Panel, series: str, l0: float) -> int:
    """Return the index of the SAE of a series whose L0 is nearest."""

    def gap(i: int) -> float:
        """Return the relative difference in L0."""
        found = panel.points[i]["metrics"].get("l0")
        return abs(found / l0 - 1) if found else float("inf")

    return min((i for i, point in enumerate(panel.points) if point["series"] == series), key=gap)


def panel_data(panel: Panel) -> dict[str, Any]:
    """Return what figures and answers need, SAEs in the order of the table's rows."""
    entry = typical_entry(panel.json["matched"][panel.fidelity])
    return {
        "fidelity": panel.fidelity,
        "width": panel.width,
        "suggestion": entry["value"] if entry else None,
        "points": [
            {
                "series": panel.series_of(point),
                "label": panel.labels[i],
                "setting": point["setting"],
                "sparsity_coefficient": point["sparsity_coefficient"],
                "seeds": [point["sae_seed"], point["stream_seed"]],
                "is_only_seed": panel.is_only_seed[i],
                "weights": point.get("seed_weights") or [],  # per replicate, among the seeds of its setting
                "path": str(point["path"]),
                "pareto": point["pareto"],
                "metrics": point["metrics"],
                "errors": point["standard_errors"],
                "intervals": point["intervals"],
                "bootstrap": {key: _rounded(replicates) for key, replicates in point["bootstrap"].items()},
                "histogram": point["histogram"],
            }
            for i, point in enumerate(panel.points)
        ],
    }


def _rounded(replicates: list[float | None]) -> list[float | None]:
    """Return replicates with DIGITS significant digits."""
    return [None if value is None else float(f"{value:.{DIGITS}g}") for value in replicates]
