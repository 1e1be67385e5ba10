"""Answer a query in one panel (one site and width): crossings of every series with the target, recommended series.

The objective is L0 if the target is a fidelity metric, else the fidelity metric of the panel. The recommended series
has the smallest objective among all crossings that satisfy the limits. A series is tied with the recommended series if
the interval of the difference of their objectives, taken per bootstrap replicate, contains zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jumpahead.formatting import TOKENS, SampleUnit, format_number, format_percent
from jumpahead.frontier.answer import Crossing, PanelAnswer, Recommendation, SeriesAnswer
from jumpahead.frontier.curve import CONFIDENCE_LEVEL, CurvePosition, Estimate, estimate_with_interval
from jumpahead.frontier.query import Query
from jumpahead.frontier.series import SeriesCurve, is_finite_number
from jumpahead.metrics import METRICS, count_key_by_share, curve_metrics, format_value, format_with_name

MEAN_FVU = 1.0
"""The FVU of the mean activation as reconstruction."""
LARGE_RELATIVE_ERROR = 0.05
"""Relative standard error of the delta LM loss above which an answer has a warning."""


class BestCrossing(NamedTuple):
    """The crossing of a series that satisfies all limits and has the smallest objective."""

    curve: SeriesCurve
    crossing: Crossing
    objective: np.ndarray
    """[1 + R] objective at the crossing; element 0 is the estimate, the others are bootstrap replicates."""


def answer_panel(
    site: str,
    width: int | None,
    curves: Sequence[SeriesCurve],
    names: Sequence[str],
    query: Query,
    fidelity: str,
    unit: SampleUnit = TOKENS,
) -> PanelAnswer:
    """Return the answer to `query` at one site and width.

    width: None if the series differ in it.
    curves: the curves of the series that have measured SAEs.
    names: the names of all series in the query.
    fidelity: key of the metric that compares the series of the panel.
    unit: nouns for activations in sentences.
    """
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


def _answer_series(curve: SeriesCurve, query: Query) -> tuple[SeriesAnswer, BestCrossing | None]:
    """Return one series' answer to the question, and its best crossing within the question's limits, or None.

    The best crossing is the one with the best value of the metric that the question optimises.
    """
    column, target = query.metric_index(), query.curve_target(curve.width)
    low, high = curve.curve.measured_range(column)
    positions = curve.curve.positions(column, target)
    crossings = [_crossing(curve, position, query) for position in positions]
    objective = curve_metrics().index(query.objective_metric(curve.fidelity))
    by_objective = sorted(
        (
            BestCrossing(curve, crossing, position.values[:, objective])
            for crossing, position in zip(crossings, positions, strict=True)
        ),
        key=lambda each: each.objective[0],
    )
    best = next((each for each in by_objective if not _reasons_against(curve, each.crossing, query)), None)
    notes = []
    if len(crossings) > 1:
        notes.append(f"its curve is there {len(crossings)} times; the smallest L0 comes first")
    counts = sorted({len(group) for group in curve.settings})
    if len(counts) > 1:
        notes.append(f"its settings have between {counts[0]} and {counts[-1]} seeds")
    if best:
        notes += _limit_notes(best.crossing, query)
    scale = curve.width if query.metric in count_key_by_share() else 1
    answer = SeriesAnswer(
        series=curve.name,
        title=curve.title,
        reach="inside" if crossings else "below" if target < low else "above",
        measured=(low / scale, high / scale),
        crossings=crossings,
        end=None if crossings else _crossing(curve, curve.curve.nearest_end(column, target), query),
        exceeds=_reasons_against(curve, by_objective[0].crossing, query) if by_objective and not best else [],
        covers=curve.covers,
        notes=notes,
    )
    return answer, best


def _crossing(curve: SeriesCurve, position: CurvePosition, query: Query) -> Crossing:
    """Return the crossing at a position of a curve: metrics, sparsity setting, nearest SAE and caveats."""
    near = curve.nearest_sae(position)
    summary = {key: near["metrics"][key] for key in ("l0", curve.fidelity)}
    value, target = position.values[0, query.metric_index()], query.curve_target(curve.width)
    low, high = curve.curve.measured_range(query.metric_index())
    notes = []
    if not low <= target <= high and curve.curve.positions(query.metric_index(), target):
        end = format_number(value)
        notes.append(f"the curve ends at {end}, within 1 % of the target: these are the values of its end")
    if position.unreached_share > (1 - CONFIDENCE_LEVEL) / 2:
        unreached = format_percent(position.unreached_share)
        notes.append(f"{unreached} of the resamples do not reach the target: intervals stop at the measured range")
    worst = _max_relative_standard_error([*curve.settings[position.left], *curve.settings[position.right]])
    if worst > LARGE_RELATIVE_ERROR:
        notes.append(f"the standard error of the loss is {format_percent(worst)} of it here: evaluate on more text")
    return Crossing(
        metrics=curve.metrics(position),
        setting=curve.setting_at(position),
        sparsity_coefficient=curve.sparsity_coefficient_at(position),
        nearest={"path": near["path"], "label": near["label"], **summary},
        notes=notes,
    )


def _max_relative_standard_error(points: Sequence[Mapping[str, Any]]) -> float:
    """Return the maximum of standard error / |delta LM loss| over SAEs; 0 if no SAE has both values."""
    errors = [
        (point["standard_errors"].get("delta_lm_loss"), point["metrics"].get("delta_lm_loss")) for point in points
    ]
    return max(
        (error / abs(loss) for error, loss in errors if is_finite_number(error) and is_finite_number(loss) and loss),
        default=0.0,
    )


def _reasons_against(curve: SeriesCurve, crossing: Crossing, query: Query) -> list[str]:
    """Return one text per reason not to recommend a crossing: the limits that it exceeds, and an FVU of 1 or more.

    The mean activation has the FVU 1. An SAE with more may still be right where SAEs are compared by delta LM loss.
    """
    fvu = crossing.metrics["fvu"].value
    is_useless = curve.fidelity == "fvu" and fvu is not None and fvu >= MEAN_FVU
    worse = [f"{format_with_name('fvu', fvu)}, no better than the mean activation"] if is_useless else []
    return [*_exceeded_limits(crossing, query), *worse]


def _exceeded_limits(crossing: Crossing, query: Query) -> list[str]:
    """Return one text per limit that a crossing exceeds: `12 features above 10 % (at most 10)`."""
    values = {metric: crossing.metrics[metric].value for metric in query.limits}
    return [
        f"{format_with_name(metric, value, query.sample)} (at most {format_value(metric, query.limits[metric])})"
        for metric, value in values.items()
        if value is None or value > query.limits[metric]
    ]


def _limit_notes(crossing: Crossing, query: Query) -> list[str]:
    """Return one note per limit that is smaller than the upper bound of the metric at a crossing."""
    highs = {metric: crossing.metrics[metric].high for metric in query.limits}
    return [
        f"its interval extends beyond the limit, up to {format_with_name(metric, high, query.sample)}"
        for metric, high in highs.items()
        if high is not None and high > query.limits[metric]
    ]


def _exclusion_reason(answer: SeriesAnswer, query: Query) -> str:
    """Return a clause on why a series has no crossing that satisfies the limits."""
    if answer.crossings:
        return f"{answer.title} has {' and '.join(answer.exceeds)}"
    low, high = (format_value(query.metric, bound) for bound in answer.measured)
    return f"{answer.title} was measured only {f'at {low}' if low == high else f'from {low} to {high}'}"


# ---------------------------------------------------------------------------------------------- between series


def _recommend(
    candidates: list[BestCrossing], left_out: list[str], query: Query, fidelity: str, unit: SampleUnit
) -> Recommendation:
    """Return the recommendation: the candidate with the smallest objective, tied series, and an explanation.

    candidates: the best crossing of each series that has one. left_out: clauses on why other series have none.
    fidelity: key of the metric that compares the series. unit: nouns for activations.
    """
    if not candidates:
        why = "; ".join(left_out) or "nothing was measured"
        return Recommendation(None, None, f"No series qualifies at {query}: {why}.")
    best, *others = sorted(candidates, key=lambda each: each.objective[0])
    differences = [(other, estimate_with_interval(other.objective - best.objective)) for other in others]
    clear = [pair for pair in differences if pair[1].low is not None and pair[1].low > 0]
    tied = [pair for pair in differences if pair not in clear]
    value = float(best.objective[0])
    active = f"active features per {unit.singular}"
    if query.objective_metric(fidelity) == "l0":
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
        more = ", ".join(
            f"{other.curve.title} has {_format_difference(difference, ' more')}" for other, difference in clear
        )
        sentences = [f"{condition}, {best.curve.title} has {has_least}; {more}."]
    if tied:
        names = ", ".join(f"{other.curve.title} ({_format_difference(difference)})" for other, difference in tied)
        sentences.append(f"Difference to it may be zero: {names}.")
    if left_out:
        sentences.append(f"Left out: {'; '.join(left_out)}.")
    if query.metric == "delta_lm_loss" != fidelity:
        name = METRICS[fidelity].name
        sentences.append(f"Setting the site to zero hardly changes the loss: compare by {name}.")
    return Recommendation(
        best.curve.name, best.crossing.setting, " ".join(sentences), [other.curve.name for other, _ in tied]
    )


def _format_difference(difference: Estimate, more: str = "") -> str:
    """Return a difference and its interval: `1.06 more [0.48, 1.57]`. more: text after the value."""
    if difference.low is None:
        return f"{format_number(difference.value)}{more}, no interval"
    return (
        f"{format_number(difference.value)}{more} [{format_number(difference.low)}, {format_number(difference.high)}]"
    )
