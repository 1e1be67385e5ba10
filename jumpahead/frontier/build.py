"""frontier.json from the evaluations of a run: curves' points, intervals, Pareto set, tables at matched values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jumpahead.diagnostics import DIAGNOSTICS, requested_l0
from jumpahead.errors import ArtefactError
from jumpahead.formatting import format_setting, sample_unit
from jumpahead.frontier.curve import LEVEL, centred, estimate
from jumpahead.frontier.frontier import SCHEMA, Frontier
from jumpahead.frontier.matched import matched_tables
from jumpahead.frontier.seeds import seed_weights, seeds_of
from jumpahead.frontier.series import fidelity_of, is_number, point_order, replicates_of
from jumpahead.metrics import METRICS, curve_metrics, shares

Evaluation = Mapping[str, Any]
"""The content of an evaluation.json, plus "path": the SAE's folder relative to the run."""


def build(
    evaluations: Sequence[Evaluation],
    *,
    name: str,
    study_text: str,
    manifest: Mapping[str, Any],
    series: Sequence[Mapping[str, Any]],
    lm: Mapping[str, Any],
    text: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of frontier.json. The run need not be finished.

    series: {name, title, architecture} each, in the order of legends; lm: {name}, null without a language model;
    text: {source, train_tokens, held_out_tokens}. Raises ArtefactError if evaluations do not belong together.
    """
    panels = _panels(evaluations, [each["name"] for each in series])
    points = [point for panel in panels for point in panel["points"]]
    unit = sample_unit({"lm": lm})
    interval = {"level": LEVEL, "covers": "text", "replicates": min(map(replicates_of, points), default=0)}
    data = {
        "schema": SCHEMA,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "lm": dict(lm),
        "text": dict(text),
        "metrics": [one.declaration(unit) for one in METRICS.values() if _is_measured(one.key, points)],
        "health": [one.declaration(unit) for one in DIAGNOSTICS if any(one.key in p["health"] for p in points)],
        "series": [dict(each) for each in series],
        "interval": interval,
        "panels": panels,
        "study": study_text,
        "manifest": dict(manifest),
    }
    covers = []
    for panel in panels:
        curves = Frontier(data).curves(panel)
        covers += [curve.covers for curve in curves]
        panel["matched"] = matched_tables(curves, panel["fidelity"])
    if covers and set(covers) == {"text and seeds"}:
        interval["covers"] = "text and seeds"
    return data


# ---------------------------------------------------------------------------------------------- panels and points


def _is_measured(key: str, points: Sequence[Mapping[str, Any]]) -> bool:
    """Return False for a metric that is undefined in every evaluation."""
    return not points or not all(key in one["metrics"] and not is_number(one["metrics"][key]) for one in points)


def _panels(evaluations: Sequence[Evaluation], names: list[str]) -> list[dict[str, Any]]:
    """Return a panel per site and width. Raises ArtefactError for a series that is not in `names`."""
    grouped: dict[tuple[str, int], list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        sae = evaluation["sae"]
        if sae["series"] not in names:
            raise ArtefactError(f"{evaluation['path']} belongs to series '{sae['series']}', which the study lacks.")
        grouped[sae["site"], sae["width"]].append(evaluation)
    return [_panel(group, names) for _, group in sorted(grouped.items())]


def _panel(evaluations: list[Evaluation], names: list[str]) -> dict[str, Any]:
    """Return the panel of one site and width, its points in the order of series, setting and seeds."""
    _check_comparable(evaluations)
    points = [_point(evaluation) for evaluation in evaluations]
    points.sort(key=lambda point: (names.index(point["series"]), *point_order(point)))
    for point, is_best in zip(points, pareto(points, fidelity_of(points)), strict=True):
        point["pareto"] = is_best
    _add_seed_weights(points)
    sae, metrics, text = (evaluations[0][key] for key in ("sae", "metrics", "text"))
    return {
        "site": sae["site"],
        "width": sae["width"],
        "d": sae["d"],
        "fidelity": fidelity_of(points),
        **{key: metrics.get(key) for key in ("ce_clean", "ce_zero", "ce_mean")},
        "tokens": text["tokens"],
        "documents": text["documents"],
        "points": points,
    }


def _add_seed_weights(points: list[dict[str, Any]]) -> None:
    """Add `seed_weights` to settings with several SAEs: how much each counts in each replicate, for the page."""
    panel_seeds = sorted({seeds_of(point) for point in points})
    settings: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        settings[point["series"], point["setting"]["kind"], point["setting"]["value"]].append(point)
    for group in settings.values():
        if len(group) > 1:
            weights = seed_weights([seeds_of(point) for point in group], panel_seeds, min(map(replicates_of, group)))
            for point, column in zip(group, weights[1:].T, strict=True):
                point["seed_weights"] = column.tolist()


def _check_comparable(evaluations: list[Evaluation]) -> None:
    """Raise ArtefactError unless all are on the same text, so that replicates are paired, and no SAE is there twice."""
    first, seen = evaluations[0], {}
    for evaluation in evaluations:
        if any(evaluation["text"].get(key) != first["text"].get(key) for key in ("digest", "tokens", "clusters")):
            raise ArtefactError(
                f"{evaluation['path']} was evaluated on other text than {first['path']}: remove its evaluation.json, "
                "and `jumpahead run` makes it again."
            )
        key = (evaluation["sae"]["series"], *point_order(evaluation["sae"]))
        if key in seen:
            raise ArtefactError(f"{evaluation['path']} and {seen[key]} are the same SAE: remove one of them.")
        seen[key] = evaluation["path"]


def _point(evaluation: Evaluation) -> dict[str, Any]:
    """Return one SAE with its replicates centred (`curve.centred`) and the intervals that follow from them."""
    sae, metrics, clusters = evaluation["sae"], evaluation["metrics"], evaluation["text"].get("clusters") or 0
    replicates: dict[str, list[float]] = {}
    intervals: dict[str, list[float]] = {}
    for key in curve_metrics():
        raw = (evaluation.get("bootstrap") or {}).get(key) or []
        if not is_number(metrics.get(key)):
            continue
        shifted = centred(metrics[key], np.asarray(raw, np.float64), clusters)
        replicates[key] = shifted.tolist()
        found, role = estimate(np.concatenate([[metrics[key]], shifted])), METRICS[key].curve
        if found.low is not None and found.high is not None:
            low = found.low if role and role.domain == "real" else max(found.low, 0.0)
            intervals[key] = [low, max(found.high, low)]
    for share, count in shares().items():
        if count in intervals:
            intervals[share] = [bound / sae["width"] for bound in intervals[count]]
    return {
        "series": sae["series"],
        "setting": dict(sae["setting"]),
        "label": format_setting(sae["setting"]),
        "sae_seed": sae["sae_seed"],
        "stream_seed": sae["stream_seed"],
        "path": evaluation["path"],
        "metrics": dict(metrics),
        "standard_errors": dict(evaluation.get("standard_errors") or {}),
        "intervals": intervals,
        "bootstrap": replicates,
        "sparsity_coefficient": dict(evaluation.get("sparsity_coefficient") or {}),
        "pareto": False,
        "notes": list(evaluation.get("notes") or []),
        "training": dict(evaluation.get("training") or {}),
        "requested": requested_l0(sae["setting"]),
        "converged_after": dict(evaluation.get("converged_after") or {}),
        "health": dict(evaluation.get("health") or {}),
        "training_warnings": list(evaluation.get("training_warnings") or []),
        "histogram": dict(evaluation.get("histogram") or {}),
    }


def pareto(points: Sequence[Mapping[str, Any]], fidelity: str) -> list[bool]:
    """Return True for SAEs for which no other has L0 and `fidelity` at most as large and one of them smaller."""
    keys = ("l0", fidelity)
    values = [[point["metrics"].get(key) for key in keys] for point in points]
    pairs = np.asarray([[v if is_number(v) else math.inf for v in row] for row in values], np.float64).reshape(-1, 2)

    def is_best(pair: np.ndarray) -> bool:
        """Return True if no pair dominates this one, [2]."""
        dominates = (pairs <= pair).all(axis=1) & (pairs < pair).any(axis=1)
        return bool(np.isfinite(pair).all() and not dominates.any())

    return [is_best(pair) for pair in pairs]
