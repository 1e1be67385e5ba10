"""Template values and script data of one panel of the report page (the SAEs of one site and width)."""

from __future__ import annotations

from typing import Any

from jumpahead.formatting import format_list, format_widths, typeset_exact
from jumpahead.report.findings import findings, typical_entry
from jumpahead.report.notes import group_notes, join_labels
from jumpahead.report.panel import Json, Panel
from jumpahead.report.tables import Cell, diagnostics_table, matched_tables, sae_row_cells, sae_table_heads

SECOND_METRICS = (
    "fvu", "fvu_ordinary", "loss_recovered_zero", "loss_recovered_mean", "kl", "cosine", "shrinkage", "f1",
)  # fmt: skip
"""Metrics that the second figure of a panel can show against L0."""


def panel_view(panel: Panel) -> dict[str, Any]:
    """Return the template values of a panel."""
    context, d = panel.context, panel.json["d"]
    widths = format_widths(panel.json)
    multiples = [typeset_exact(round(width / d, 2)) for width in sorted(set(panel.widths.values()))]
    heads = sae_table_heads(context)
    return {
        "fidelity": panel.fidelity_name,
        "has_loss": panel.fidelity == "delta_lm_loss",
        "why_no_loss": _why_no_loss(panel),
        "marks": _marks_explanation(panel),
        "targets": _queryable_metrics(panel),
        "id": f"panel-{panel.number}",
        "title": f"{panel.json['site']}, {widths} features",
        "subtitle": f"{format_list(multiples)} × the activation’s width of {d:,}" if multiples else "",
        "features": f"the {widths} features" if panel.json["width"] is not None else "the features of an SAE",
        "findings": findings(panel),
        "series": sorted({panel.series_index(point) for point in panel.points}),
        "alt": {
            kind: f"{text}; the numbers are in the table of all SAEs below." for kind, text in _alt_texts(panel).items()
        },
        "matched": matched_tables(panel),
        "columns": heads,
        "seconds": _second_metrics(panel),
        "points": [
            {"series": panel.series_index(point), "label": label, "rank": i, "cells": _row_cells(point, heads, panel)}
            for i, (point, label) in enumerate(zip(panel.points, panel.labels, strict=True))
        ],
        "diagnostics": diagnostics_table(panel),
        "histograms": histogram_choices(panel),
        "notes": _notes(panel),
    }


def _row_cells(point: Json, heads: list[Cell], panel: Panel) -> list[Cell]:
    """Return the cells of one SAE, each marked `extra` like the head of its column; heads include the label's."""
    cells = sae_row_cells(point, panel.context)
    return [{**cell, "extra": head["extra"]} for cell, head in zip(cells, heads[1:], strict=True)]


def _why_no_loss(panel: Panel) -> str:
    """Return why SAEs are not compared by delta LM loss; empty if they are."""
    if panel.fidelity == "delta_lm_loss":
        return ""
    if panel.json["ce_clean"] is None:
        return "Without a language model no loss was measured."
    return "The loss hardly changes with this site set to zero, so that it compares nothing."


def _second_metrics(panel: Panel) -> list[dict[str, str]]:
    """Return {"key", "name"} of the metrics that the second figure can show against L0, FVU first."""
    declared = panel.context.metrics
    keys = [key for key in SECOND_METRICS if key in declared and _is_measured(panel, key)]
    return [{"key": key, "name": declared[key]["title"]} for key in keys]


def _queryable_metrics(panel: Panel) -> list[dict[str, str]]:
    """Return {"key", "name"} of each metric that a query can have as target, the fidelity metric of the panel first."""
    declared = panel.context.metrics
    keys = [key for key, metric in declared.items() if metric["is_target"] and _is_measured(panel, key)]
    keys.sort(key=lambda key: key != panel.fidelity)
    return [{"key": key, "name": declared[key]["name"]} for key in keys]


def _is_measured(panel: Panel, key: str) -> bool:
    """Return True if any SAE of the panel has a value of the metric `key`."""
    return any(point["metrics"].get(key) is not None for point in panel.points)


def _alt_texts(panel: Panel) -> dict[str, str]:
    """Return the alternative text of each figure, by kind of figure."""
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


def _marks_explanation(panel: Panel) -> str:
    """Return the explanation of bars, marks and lines in the figures."""
    return (
        f"Bars are {panel.context.level} intervals. Filled marks are Pareto-optimal on the axes of their figure: no "
        "other SAE is clearly better on one of them and not clearly worse on the other, by the interval of the paired "
        "difference and by more than 1 %. Point at a mark for its numbers; choose it for all of them, and to mark that "
        "SAE everywhere. Dotted lines follow the slider: they are its value, or where each series has it."
    )


def _notes(panel: Panel) -> list[dict[str, str]]:
    """Return the notes on SAEs as {"text", "who"}, grouped by their words; `who` lists the SAEs concerned."""
    labelled = zip(panel.points, panel.labels, strict=True)
    groups = group_notes((label, str(note)) for point, label in labelled for note in point["notes"])
    count = len(panel.points)
    return [
        {
            "text": group.text,
            "who": "every SAE of this panel" if len(group.labels) == count > 1 else join_labels(group.labels),
        }
        for group in groups
    ]


def histogram_choices(panel: Panel) -> list[dict[str, Any]]:
    """Return the menu of the firing-frequency histogram as {"label", "points"}; `points` are indices of SAEs.

    A choice shows either the SAE of each series nearest to one L0, or a single SAE.
    """
    series = list(dict.fromkeys(point["series"] for point in panel.points))
    entries = panel.json["matched"]["l0"]
    first = typical_entry(entries)  # the L0 used in the findings comes first
    matched = sorted((entry["value"] for entry in entries), key=lambda l0: first is None or l0 != first["value"])
    choices = [
        {
            "label": f"each series, the SAE nearest to L0 = {typeset_exact(l0)}",
            "points": [_nearest_sae_index(panel, name, l0) for name in series],
        }
        for l0 in matched
        if len(series) > 1
    ]
    return choices + [{"label": label, "points": [i]} for i, label in enumerate(panel.labels)]


def _nearest_sae_index(panel: Panel, series: str, l0: float) -> int:
    """Return the index in `panel.points` of the SAE of `series` whose L0 is nearest to `l0`."""

    def gap(i: int) -> float:
        """Return the relative difference in L0 of SAE i; inf if L0 was not measured."""
        measured = panel.points[i]["metrics"].get("l0")
        return abs(measured / l0 - 1) if measured else float("inf")

    return min((i for i, point in enumerate(panel.points) if point["series"] == series), key=gap)


def panel_data(panel: Panel) -> dict[str, Any]:
    """Return the data of a panel for the script of the page; SAEs are in the order of the rows of the table."""
    entry = typical_entry(panel.json["matched"][panel.fidelity])
    return {
        "fidelity": panel.fidelity,
        "site": str(panel.json["site"]),
        "width": panel.json["width"],
        "widths": {panel.context.series[name]: width for name, width in panel.widths.items()},
        "suggestion": entry["value"] if entry else None,
        "points": [
            {
                "series": panel.series_index(point),
                "label": panel.labels[i],
                "setting": point["setting"],
                "sparsity_coefficient": point["sparsity_coefficient"],
                "seeds": [point["sae_seed"], point["stream_seed"]],
                "is_only_seed": panel.is_only_seed[i],
                "weights": point.get("seed_weights"),  # per replicate, among the SAEs of the same sparsity setting
                "path": str(point["path"]),
                "pareto": point["pareto"],
                "pareto_in": point["pareto_in"],
                "metrics": point["metrics"],
                "errors": point["standard_errors"],
                "intervals": point["intervals"],
                "bootstrap": point["bootstrap"],
                "histogram": point["histogram"],
            }
            for i, point in enumerate(panel.points)
        ],
    }
