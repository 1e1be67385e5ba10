"""Evaluations of a run's SAEs → frontier.json: intervals, Pareto set, tables at matched L0 and matched loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jumpahead.diagnostics import MEASURES, asked_l0
from jumpahead.errors import ArtefactError
from jumpahead.frontier.answer import plain
from jumpahead.frontier.curve import LEVEL, centred, estimate
from jumpahead.frontier.frontier import SCHEMA, Frontier
from jumpahead.frontier.series import (
    SeriesCurve,
    fidelity_of,
    is_number,
    point_order,
    replicates_of,
    seed_weights,
    seeds_of,
)
from jumpahead.frontier.words import setting_label
from jumpahead.metrics import BOOTSTRAPPED, METRICS, SHARES
from jumpahead.nouns import Nouns

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
    """frontier.json from the evaluations that there are (the run need not be finished).

    `series`: {name, title, architecture, order, colour, dash, symbol} each; `lm`: {name}; `text`: {source,
    train_tokens, held_out_tokens}. ArtefactError where evaluations do not belong together.
    """
    series = sorted((dict(each) for each in series), key=lambda each: each.get("order", 0))
    panels = _panels(evaluations, [each["name"] for each in series])
    points = [point for panel in panels for point in panel["points"]]
    nouns = Nouns.of({"lm": lm})
    interval = {"level": LEVEL, "covers": "text", "replicates": min(map(replicates_of, points), default=0)}
    data = {
        "schema": SCHEMA,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "lm": dict(lm),
        "text": dict(text),
        "metrics": [_said(one.declaration(), nouns) for one in METRICS.values() if _is_measured(one.key, points)],
        "health": [_said(one._asdict(), nouns) for one in MEASURES if any(one.key in p["health"] for p in points)],
        "series": series,
        "interval": interval,
        "panels": panels,
        "study": study_text,
        "manifest": dict(manifest),
    }
    covers = []
    for panel in panels:
        curves = Frontier(data).curves(panel)
        covers += [curve.covers for curve in curves]
        panel["matched_l0"] = _matched(curves, "l0", [2.0**power for power in range(15)])
        values = [float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5)]
        for key, metric in (("matched_loss", "delta_lm_loss"), ("matched_fvu", "fvu")):
            panel[key] = _matched(curves, metric, values) if metric == panel["fidelity"] else []
    if covers and set(covers) == {"text and seeds"}:
        interval["covers"] = "text and seeds"
    return data


def _said(declared: Mapping[str, Any], nouns: Nouns) -> dict[str, Any]:
    """A declaration with the right nouns; its key stays."""
    return {k: nouns(v) if isinstance(v, str) and k != "key" else v for k, v in declared.items()}


# ---------------------------------------------------------------------------------------------- panels and points


def _is_measured(key: str, points: Sequence[Mapping[str, Any]]) -> bool:
    """False for a metric that every SAE was asked for and none has."""
    return not points or not all(key in one["metrics"] and not is_number(one["metrics"][key]) for one in points)


def _panels(evaluations: Sequence[Evaluation], names: list[str]) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, int], list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        sae = evaluation["sae"]
        if sae["series"] not in names:
            raise ArtefactError(f"{evaluation['path']} belongs to series '{sae['series']}', which the study lacks.")
        grouped[sae["site"], sae["width"]].append(evaluation)
    return [_panel(group, names) for _, group in sorted(grouped.items())]


def _panel(evaluations: list[Evaluation], names: list[str]) -> dict[str, Any]:
    """One site and width, its points in the order of series, setting and seeds."""
    _check(evaluations)
    points = [_point(evaluation) for evaluation in evaluations]
    points.sort(key=lambda point: (names.index(point["series"]), *point_order(point)))
    for point, is_best in zip(points, pareto(points, fidelity_of(points)), strict=True):
        point["pareto"] = is_best
    _weigh_seeds(points)
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


def _weigh_seeds(points: list[dict[str, Any]]) -> None:
    """Where a setting has several SAEs: how much each counts in each replicate, for the page to redraw intervals."""
    universe = sorted({seeds_of(point) for point in points})
    settings: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        settings[point["series"], point["setting"]["kind"], point["setting"]["value"]].append(point)
    for group in settings.values():
        if len(group) > 1:
            weights = seed_weights([seeds_of(point) for point in group], universe, min(map(replicates_of, group)))
            for point, column in zip(group, weights[1:].T, strict=True):
                point["seed_weights"] = column.tolist()


def _check(evaluations: list[Evaluation]) -> None:
    """All on the same tokens of the same text, so that replicates are paired; and no SAE twice."""
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
    """One SAE, its replicates centred (`curve.centred`), with the intervals that follow from them."""
    sae, metrics, clusters = evaluation["sae"], evaluation["metrics"], evaluation["text"].get("clusters") or 0
    replicates: dict[str, list[float]] = {}
    intervals: dict[str, list[float]] = {}
    for key in BOOTSTRAPPED:
        raw = (evaluation.get("bootstrap") or {}).get(key) or []
        if not is_number(metrics.get(key)):
            continue
        moved = centred(metrics[key], np.asarray(raw, np.float64), clusters)
        replicates[key] = moved.tolist()
        found = estimate(np.concatenate([[metrics[key]], moved]))
        if found.low is not None and found.high is not None:
            low = found.low if key == "delta_lm_loss" else max(found.low, 0.0)
            intervals[key] = [low, max(found.high, low)]
    for share, count in SHARES.items():
        if count in intervals:
            intervals[share] = [bound / sae["width"] for bound in intervals[count]]
    return {
        "series": sae["series"],
        "setting": dict(sae["setting"]),
        "label": setting_label(sae["setting"]),
        "sae_seed": sae["sae_seed"],
        "stream_seed": sae["stream_seed"],
        "path": evaluation["path"],
        "metrics": dict(metrics),
        "standard_errors": dict(evaluation.get("standard_errors") or {}),
        "intervals": intervals,
        "bootstrap": replicates,
        "knob": dict(evaluation.get("knob") or {}),
        "pareto": False,
        "notes": list(evaluation.get("notes") or []),
        "training": dict(evaluation.get("training") or {}),
        "asked": asked_l0(sae["setting"]),
        "settled": dict(evaluation.get("settled") or {}),
        "health": dict(evaluation.get("health") or {}),
        "verdicts": list(evaluation.get("verdicts") or []),
        "histogram": dict(evaluation.get("histogram") or {}),
    }


def pareto(points: Sequence[Mapping[str, Any]], fidelity: str = "delta_lm_loss") -> list[bool]:
    """True for SAEs that no other beats: none has L0 and `fidelity` at most as large, and one of them smaller."""
    keys = ("l0", fidelity)
    values = [[point["metrics"].get(key) for key in keys] for point in points]
    pairs = np.asarray([[v if is_number(v) else math.inf for v in row] for row in values], np.float64).reshape(-1, 2)

    def is_best(pair: np.ndarray) -> bool:
        beaten = (pairs <= pair).all(axis=1) & (pairs < pair).any(axis=1)
        return bool(np.isfinite(pair).all() and not beaten.any())

    return [is_best(pair) for pair in pairs]


# ---------------------------------------------------------------------------------------------- matched tables


def _matched(curves: Sequence[SeriesCurve], metric: str, values: Sequence[float]) -> list[dict[str, Any]]:
    """What every series has at each value that at least one of them reaches.

    A row outside its series' range has `limit`, no `metrics`, and the values of its nearest end as `nearest`.
    """
    tables = []
    for value in values:
        rows = [_matched_row(curve, BOOTSTRAPPED.index(metric), value) for curve in curves]
        if any(row["limit"] is None for row in rows):
            tables.append({metric: value, "rows": rows})
    return tables


def _matched_row(curve: SeriesCurve, column: int, value: float) -> dict[str, Any]:
    places = curve.curve.find(column, value)
    if not places:
        low, _ = curve.curve.range(column)
        end = plain(curve.metrics(curve.curve.end(column, value)))
        return {"series": curve.name, "limit": "below" if value < low else "above", "metrics": {}, "nearest": end}
    metrics = plain(curve.metrics(places[0]))
    return {"series": curve.name, "limit": None, "metrics": metrics, "setting": curve.setting_at(places[0])}
