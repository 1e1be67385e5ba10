"""Build frontier.json from the evaluations of a run: points of curves, intervals, Pareto set and matched tables.

A panel contains the SAEs of one site and width, or of one site (formatting.py); a point is one SAE.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jumpahead.diagnostics import DIAGNOSTICS, requested_l0
from jumpahead.errors import ArtefactError
from jumpahead.formatting import SampleUnit, format_setting, sample_unit
from jumpahead.frontier.curve import CONFIDENCE_LEVEL, centre_replicates, estimate_with_interval
from jumpahead.frontier.frontier import SCHEMA, Frontier
from jumpahead.frontier.matched import matched_tables
from jumpahead.frontier.pareto import pareto_flags
from jumpahead.frontier.seeds import seed_weights, seeds_of
from jumpahead.frontier.series import choose_fidelity, count_replicates, is_finite_number, point_sort_key
from jumpahead.metrics import METRICS, count_key_by_share, curve_metrics, fidelity_metrics
from jumpahead.storage.packed_numbers import pack_numbers, unpack_numbers

FEW_DOCUMENTS = 20
"""Number of documents below which intervals may be too narrow (measured: docs/LOG.md)."""
SEED_COVERAGE = {2: 61, 3: 80, 4: 85, 5: 87}
"""Measured coverage in per cent of intervals that cover the variation between that many seeds (docs/LOG.md)."""
FIGURE_COUNTS = ("above_10pct", "above_1pct")
"""Counts of features that figures show against the fidelity metric."""
Evaluation = Mapping[str, Any]
"""The content of an evaluation.json, plus "path": the folder of the SAE relative to the run."""


def build_frontier(
    evaluations: Sequence[Evaluation],
    *,
    name: str,
    study_text: str,
    manifest: Mapping[str, Any],
    series: Sequence[Mapping[str, Any]],
    lm: Mapping[str, Any],
    text: Mapping[str, Any],
    training: Sequence[Mapping[str, Any]] = (),
    progress: Mapping[str, int] | None = None,
    targets: Sequence[Mapping[str, Any]] = (),
    by_width: bool = True,
) -> dict[str, Any]:
    """Return the content of frontier.json. The run may be unfinished.

    name: name of the study.
    study_text: the study with all defaults, as TOML.
    manifest: versions, hardware, seeds and digests of the run.
    series: list of {name, title, architecture}, in the order of legends.
    lm: {name}; the name is null if the run has no language model.
    text: {source, train_tokens, held_out_tokens}.
    training: the training curves of all SAEs, also of those that are not evaluated (pipeline/training_log.py).
    progress: {saes, trained, evaluated}, numbers of SAEs, if the run is not finished; else None.
    targets: the SAEs that were trained for a requested delta LM loss (pipeline/targets.py).
    by_width: one panel per site and width; False for one per site, in which every series has a width of its own.
    Raises ArtefactError if the evaluations are of different text, series or duplicate SAEs.
    """
    panels = _panels_json(evaluations, [each["name"] for each in series], by_width)
    for panel in panels:
        panel["targets"] = _targets_json(targets, panel)
    points = [point for panel in panels for point in panel["points"]]
    unit, rows = sample_unit({"lm": lm}), max((panel["rows"] for panel in panels), default=0)
    interval = {
        "level": CONFIDENCE_LEVEL,
        "covers": "text",
        "replicates": min(map(count_replicates, points), default=0),
        "narrow": [],
    }
    data = {
        "schema": SCHEMA,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "lm": dict(lm),
        "text": dict(text),
        "metrics": [metric.declaration(unit, rows) for metric in METRICS.values() if _is_defined(metric.key, points)],
        "health": [item.declaration(unit) for item in DIAGNOSTICS if any(item.key in p["health"] for p in points)],
        "series": [dict(each) for each in series],
        "interval": interval,
        "panels": panels,
        "study": study_text,
        "manifest": dict(manifest),
        "training": [dict(each) for each in training],
        "progress": progress and dict(progress),
    }
    covers = []
    for panel in panels:
        curves = Frontier(data).curves(panel)
        covers += [curve.covers for curve in curves]
        panel["matched"] = matched_tables(curves, panel["fidelity"])
    if covers and set(covers) == {"text and seeds"}:
        interval["covers"] = "text and seeds"
    interval["narrow"] = _narrow_intervals(panels, interval["covers"], unit)
    return data


def _narrow_intervals(panels: Sequence[Mapping[str, Any]], covers: str, unit: SampleUnit) -> list[str]:
    """Return a sentence per reason why intervals cover less often than they say: few documents, few seeds."""
    sentences = []
    documents = min((panel["documents"] for panel in panels), default=FEW_DOCUMENTS)
    if documents < FEW_DOCUMENTS:
        sentences.append(
            f"With fewer than {FEW_DOCUMENTS} {unit.groups} they may be too narrow: raise evaluate.tokens, or hold out "
            f"more {unit.text}."
        )
    if covers != "text":
        settings = Counter(
            (i, point["series"], point["setting"]["kind"], point["setting"]["value"])
            for i, panel in enumerate(panels)
            for point in panel["points"]
        )
        seeds = min(settings.values())
        if seeds in SEED_COVERAGE:
            sentences.append(
                f"With {seeds} seeds they are too narrow: where seeds alone differ, they cover the truth in "
                f"{SEED_COVERAGE[seeds]} % of cases. Train more seeds."
            )
    return sentences


def _targets_json(targets: Sequence[Mapping[str, Any]], panel: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the requested delta LM losses of a panel, each with the loss of its SAEs on held-out text.

    `held_out` is the mean over seeds; it has an interval if there is one seed, and is None before the evaluation.
    """
    found = []
    for target in targets:
        if (target["site"], target["width"]) != (panel["site"], panel["width"]):
            continue
        points = [point for point in panel["points"] if point["path"] in target["saes"]]
        losses = [point["metrics"]["delta_lm_loss"] for point in points]
        low, high = (points[0]["intervals"].get("delta_lm_loss") if len(points) == 1 else None) or (None, None)
        held_out = {"value": sum(losses) / len(losses), "low": low, "high": high} if losses else None
        found.append({**target, "held_out": held_out})
    return found


# ---------------------------------------------------------------------------------------------- panels and points


def _is_defined(key: str, points: Sequence[Mapping[str, Any]]) -> bool:
    """Return False if every SAE records the metric `key` but none has a finite value; else True."""
    return not points or not all(
        key in point["metrics"] and not is_finite_number(point["metrics"][key]) for point in points
    )


def _panels_json(evaluations: Sequence[Evaluation], names: list[str], by_width: bool) -> list[dict[str, Any]]:
    """Return the JSON of all panels, one per site and width, or per site.

    names: names of the series. Raises ArtefactError if an evaluation belongs to a series that is not in `names`.
    """
    grouped: dict[tuple[str, int], list[Evaluation]] = defaultdict(list)
    _check_same_text(evaluations)
    for evaluation in evaluations:
        sae = evaluation["sae"]
        if sae["series"] not in names:
            raise ArtefactError(f"{evaluation['path']} belongs to series '{sae['series']}', which the study lacks.")
        grouped[sae["site"], sae["width"] if by_width else 0].append(evaluation)
    return [_panel_json(group, names) for _, group in sorted(grouped.items())]


def _panel_json(evaluations: list[Evaluation], names: list[str]) -> dict[str, Any]:
    """Return the JSON of one panel; its points are sorted by series, sparsity setting and seeds."""
    _check_distinct(evaluations)
    points = [_point_json(evaluation) for evaluation in evaluations]
    points.sort(key=lambda point: (names.index(point["series"]), *point_sort_key(point)))
    fidelity = choose_fidelity(points)
    _add_pareto_flags(points, fidelity)
    _add_seed_weights(points)
    sae, metrics, text = (evaluations[0][key] for key in ("sae", "metrics", "text"))
    return {
        "site": sae["site"],
        **_widths_json(evaluations),
        "d": sae["d"],
        "fidelity": fidelity,
        **{key: metrics.get(key) for key in ("ce_clean", "ce_zero", "ce_mean")},
        "tokens": text["tokens"],
        "rows": text["rows"],
        "documents": text["documents"],
        "effective_documents": text["effective_clusters"],
        "points": points,
    }


def figure_metrics() -> tuple[str, ...]:
    """Return the keys of the metrics on the vertical axes of figures: fidelity against L0, counts against fidelity."""
    return (*fidelity_metrics(), *FIGURE_COUNTS)


def _add_pareto_flags(points: list[dict[str, Any]], fidelity: str) -> None:
    """Add to every SAE whether it is Pareto-optimal: `pareto` in L0 and fidelity, `pareto_in` on each figure's axes."""
    for key in figure_metrics():
        axis = "l0" if METRICS[key].format == "number" else fidelity
        for point, is_best in zip(points, pareto_flags(points, (axis, key)), strict=True):
            point["pareto_in"][key] = is_best
    for point in points:
        point["pareto"] = point["pareto_in"][fidelity]


def _widths_json(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the field `width` of a panel; if series differ in width, it is None and `widths` has that of each."""
    widths = {evaluation["sae"]["series"]: evaluation["sae"]["width"] for evaluation in evaluations}
    assert all(each["sae"]["width"] == widths[each["sae"]["series"]] for each in evaluations), "one width per series"
    distinct = set(widths.values())
    return {"width": distinct.pop()} if len(distinct) == 1 else {"width": None, "widths": widths}


def _add_seed_weights(points: list[dict[str, Any]]) -> None:
    """Add `seed_weights`, the weight of the SAE in each bootstrap replicate, to SAEs of settings with several seeds.

    The report page uses these weights.
    """
    panel_seeds = sorted({seeds_of(point) for point in points})
    settings: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        settings[point["series"], point["setting"]["kind"], point["setting"]["value"]].append(point)
    for group in settings.values():
        if len(group) > 1:
            weights = seed_weights([seeds_of(point) for point in group], panel_seeds, min(map(count_replicates, group)))
            for point, column in zip(group, weights[1:].T, strict=True):
                point["seed_weights"] = pack_numbers(column)


def _check_same_text(evaluations: Sequence[Evaluation]) -> None:
    """Raise ArtefactError if two evaluations of a run used different text, or different amounts of it.

    Differences per replicate require the same text for all SAEs, and so does a number of features that never fired.
    """
    for evaluation in evaluations:
        first = evaluations[0]
        if any(
            evaluation["text"].get(key) != first["text"].get(key) for key in ("digest", "tokens", "rows", "clusters")
        ):
            raise ArtefactError(
                f"{evaluation['path']} was evaluated on other text than {first['path']}: remove its evaluation.json, "
                "and `jumpahead run` makes it again."
            )


def _check_distinct(evaluations: list[Evaluation]) -> None:
    """Raise ArtefactError if an SAE occurs twice."""
    seen: dict[tuple, str] = {}
    for evaluation in evaluations:
        key = (evaluation["sae"]["series"], *point_sort_key(evaluation["sae"]))
        if key in seen:
            raise ArtefactError(f"{evaluation['path']} and {seen[key]} are the same SAE: remove one of them.")
        seen[key] = evaluation["path"]


def _point_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the JSON of one SAE: metrics, centred bootstrap replicates (`curve.centre_replicates`) and intervals."""
    sae, metrics, text = evaluation["sae"], evaluation["metrics"], evaluation["text"]
    expansion = math.inf if text["interval_expansion"] is None else text["interval_expansion"]  # null: one document
    replicates: dict[str, dict[str, Any]] = {}
    intervals: dict[str, list[float]] = {}
    for key in curve_metrics():
        packed = (evaluation.get("bootstrap") or {}).get(key)
        if not packed or not is_finite_number(metrics.get(key)):
            continue
        shifted = centre_replicates(metrics[key], unpack_numbers(packed), expansion)
        replicates[key] = pack_numbers(shifted)
        interval, role = estimate_with_interval(np.concatenate([[metrics[key]], shifted])), METRICS[key].curve
        if interval.low is not None and interval.high is not None:
            low = interval.low if role and role.domain == "real" else max(interval.low, 0.0)
            intervals[key] = [low, max(interval.high, low)]
    for share, count in count_key_by_share().items():
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
        "pareto_in": {},
        "notes": list(evaluation.get("notes") or []),
        "training": dict(evaluation.get("training") or {}),
        "requested": requested_l0(sae["setting"]),
        "converged_after": dict(evaluation.get("converged_after") or {}),
        "health": dict(evaluation.get("health") or {}),
        "training_warnings": list(evaluation.get("training_warnings") or []),
        "histogram": dict(evaluation.get("histogram") or {}),
    }
