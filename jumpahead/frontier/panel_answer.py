"""How a query is answered in one panel: the crossings of every series, and the recommended series.

The recommended series has the smallest objective (L0, or asked by L0 or by counts, the fidelity) among the crossings
within the limits. Series whose difference to it, taken replicate by replicate, may be zero are named as tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jumpahead.formatting import TOKENS, SampleUnit, format_number, format_percent
from jumpahead.frontier.answer import Crossing, PanelAnswer, Recommendation, SeriesAnswer
from jumpahead.frontier.curve import LEVEL, CurvePosition, Estimate, estimate
from jumpahead.frontier.query import Query
from jumpahead.frontier.series import SeriesCurve, is_number
from jumpahead.metrics import METRICS, curve_metrics, format_value, format_with_name, shares

LARGE_ERROR = 0.05
"""A standard error above this share of the delta LM loss gets a note."""


class Candidate(NamedTuple):
    """The best crossing of a series that keeps the limits."""

    curve: SeriesCurve
    crossing: Crossing
    objective: np.ndarray
    """[1 + R] the metric to minimise."""


def answer_panel(
    site: str,
    width: int,
    curves: Sequence[SeriesCurve],
    names: Sequence[str],
    query: Query,
    fidelity: str,
    unit: SampleUnit = TOKENS,
) -> PanelAnswer:
    """Return the answer at one site and width. names: the series that were asked for."""
    answers, candidates, left_out = [], [], []
    for curve in curves:
        answer, candidate = _answer_series(curve, query)
        answers.append(answer)
        if candidate is None:
            left_out.append(_exclusion_reason(answer, query))
        else:
            candidates.append(candidate)
    measured = {curve.name for curve in curves}
    left_out += [f"{name} has no measured SAE" for name in names if name not in measured]
    return PanelAnswer(site, width, answers, _recommend(candidates, left_out, query, fidelity, unit), fidelity)


# ---------------------------------------------------------------------------------------------- one series


def _answer_series(curve: SeriesCurve, query: Query) -> tuple[SeriesAnswer, Candidate | None]:
    """Return a series' answer, and its best crossing within the limits."""
    column, target = query.column(), query.target(curve.width)
    low, high = curve.curve.range(column)
    positions = curve.curve.positions(column, target)
    crossings = [_crossing(curve, position, query) for position in positions]
    objective = curve_metrics().index(query.objective(curve.fidelity))
    by_objective = sorted(
        (
            Candidate(curve, crossing, position.values[:, objective])
            for crossing, position in zip(crossings, positions, strict=True)
        ),
        key=lambda each: each.objective[0],
    )
    best = next((each for each in by_objective if not _exceeded(each.crossing, query.limits)), None)
    notes = []
    if len(crossings) > 1:
        notes.append(f"its curve is there {len(crossings)} times; the smallest L0 comes first")
    counts = sorted({len(group) for group in curve.settings})
    if len(counts) > 1:
        notes.append(f"its settings have between {counts[0]} and {counts[-1]} seeds")
    if best:
        notes += _limit_notes(best.crossing, query.limits)
    scale = curve.width if query.metric in shares() else 1
    answer = SeriesAnswer(
        series=curve.name,
        title=curve.title,
        reach="inside" if crossings else "below" if target < low else "above",
        measured=(low / scale, high / scale),
        crossings=crossings,
        end=None if crossings else _crossing(curve, curve.curve.nearest_end(column, target), query),
        exceeds=_exceeded(by_objective[0].crossing, query.limits) if by_objective and not best else [],
        covers=curve.covers,
        notes=notes,
    )
    return answer, best


def _crossing(curve: SeriesCurve, position: CurvePosition, query: Query) -> Crossing:
    """Return what a series has at a position of its curve."""
    near = curve.nearest(position)
    summary = {key: near["metrics"][key] for key in ("l0", curve.fidelity)}
    found, target = position.values[0, query.column()], query.target(curve.width)
    low, high = curve.curve.range(query.column())
    notes = []
    if not low <= target <= high and curve.curve.positions(query.column(), target):
        end = format_number(found)
        notes.append(f"the curve ends at {end}, within 1 % of the target: these are the values of its end")
    if position.beyond > (1 - LEVEL) / 2:
        beyond = format_percent(position.beyond)
        notes.append(f"{beyond} of the resamples do not reach the target: intervals stop at the measured range")
    worst = _relative_error([*curve.settings[position.left], *curve.settings[position.right]])
    if worst > LARGE_ERROR:
        notes.append(f"the standard error of the loss is {format_percent(worst)} of it here: evaluate on more text")
    return Crossing(
        metrics=curve.metrics(position),
        setting=curve.setting_at(position),
        sparsity_coefficient=curve.sparsity_coefficient_at(position),
        nearest={"path": near["path"], "label": near["label"], **summary},
        notes=notes,
    )


def _relative_error(points: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest standard error / |delta LM loss| of these SAEs; 0 if none has both."""
    errors = [
        (point["standard_errors"].get("delta_lm_loss"), point["metrics"].get("delta_lm_loss")) for point in points
    ]
    return max(
        (error / abs(loss) for error, loss in errors if is_number(error) and is_number(loss) and loss), default=0.0
    )


def _exceeded(crossing: Crossing, limits: Mapping[str, float]) -> list[str]:
    """Return the limits that a crossing exceeds, in words."""
    values = {metric: crossing.metrics[metric].value for metric in limits}
    return [
        f"{format_with_name(metric, value)} (at most {format_value(metric, limits[metric])})"
        for metric, value in values.items()
        if value is None or value > limits[metric]
    ]


def _limit_notes(crossing: Crossing, limits: Mapping[str, float]) -> list[str]:
    """Return notes on the limits that lie inside the interval of a crossing."""
    highs = {metric: crossing.metrics[metric].high for metric in limits}
    return [
        f"its interval extends beyond the limit, up to {format_with_name(metric, high)}"
        for metric, high in highs.items()
        if high is not None and high > limits[metric]
    ]


def _exclusion_reason(answer: SeriesAnswer, query: Query) -> str:
    """Return why a series has no candidate, in words."""
    if answer.crossings:
        return f"{answer.title} has {' and '.join(answer.exceeds)}"
    low, high = (format_value(query.metric, bound) for bound in answer.measured)
    return f"{answer.title} was measured only {f'at {low}' if low == high else f'from {low} to {high}'}"


# ---------------------------------------------------------------------------------------------- between series


def _recommend(
    candidates: list[Candidate], left_out: list[str], query: Query, fidelity: str, unit: SampleUnit
) -> Recommendation:
    """Return the candidate with the smallest objective; tied are those whose paired difference to it may be zero."""
    if not candidates:
        why = "; ".join(left_out) or "nothing was measured"
        return Recommendation(None, None, f"No series qualifies at {query}: {why}.")
    best, *others = sorted(candidates, key=lambda each: each.objective[0])
    differences = [(other, estimate(other.objective - best.objective)) for other in others]
    clear = [pair for pair in differences if pair[1].low is not None and pair[1].low > 0]
    tied = [pair for pair in differences if pair not in clear]
    value = float(best.objective[0])
    active = f"active features per {unit.singular}"
    if query.objective(fidelity) == "l0":
        has, has_least = f"{format_number(value)} {active}", f"the fewest {active}, {format_number(value)}"
    else:
        has = format_with_name(fidelity, value)
        has_least = f"the lowest {METRICS[fidelity].name}, {format_value(fidelity, value)}"
    condition = f"At {query}{' and within the limits' if query.limits else ''}"
    if not others and left_out:
        sentences = [f"{condition}, only {best.curve.title} qualifies, with {has}."]
    elif not clear:
        sentences = [f"{condition}, {best.curve.title} has {has}."]
    else:
        more = ", ".join(f"{other.curve.title} has {_difference(found, ' more')}" for other, found in clear)
        sentences = [f"{condition}, {best.curve.title} has {has_least}; {more}."]
    if tied:
        names = ", ".join(f"{other.curve.title} ({_difference(found)})" for other, found in tied)
        sentences.append(f"Difference to it may be zero: {names}.")
    if left_out:
        sentences.append(f"Left out: {'; '.join(left_out)}.")
    return Recommendation(
        best.curve.name, best.crossing.setting, " ".join(sentences), [other.curve.name for other, _ in tied]
    )


def _difference(found: Estimate, more: str = "") -> str:
    """Return a difference with its interval: `1.06 more [0.48, 1.57]`."""
    if found.low is None:
        return f"{format_number(found.value)}{more}, no interval"
    return f"{format_number(found.value)}{more} [{format_number(found.low)}, {format_number(found.high)}]"
