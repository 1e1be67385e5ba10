"""What `Frontier.ask` returns, and how it is found.

A target (a delta LM loss, an L0, …) is met where a series' curve crosses it. The recommended series has the fewest
active features there (or, asked by L0 or by frequent features, the smallest loss) among the crossings within the
limits; series whose difference to it, taken replicate by replicate, may be zero are named as not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jumpahead.errors import StudyError, nearest
from jumpahead.frontier.curve import LEVEL, Estimate, Place, estimate
from jumpahead.frontier.series import SeriesCurve, is_number
from jumpahead.frontier.words import FIDELITY, a_fidelity, amount, bare, number, percent, setting_label
from jumpahead.metrics import BOOTSTRAPPED, METRICS, SHARES
from jumpahead.nouns import TEXT, Nouns

TARGETS = {
    "delta_loss": "delta_lm_loss",
    "l0": "l0",
    "fvu": "fvu",
    "above_10": "above_10pct",
    "above_1": "above_1pct",
}
"""What one can ask by: the argument of `Frontier.ask`, and its metric."""
LARGE_ERROR = 0.05
"""A standard error above this share of the delta LM loss is pointed out."""


# ---------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True)
class Crossing:
    """Where a curve meets what was asked for, or its end nearest to that."""

    metrics: dict[str, Estimate]
    """Every bootstrapped metric, counts also as shares of the width, interpolated, with intervals."""
    setting: dict[str, Any]
    """{"kind", "value"}: what to train with; three digits where it lies between trained settings."""
    knob: dict[str, float]
    """Where the setting is a requested L0: the λ that the controller is expected to end with; else empty."""
    nearest: dict[str, Any]
    """The trained SAE nearest in L0: path, label, l0, and its delta_lm_loss or, without an LM, its fvu."""
    notes: list[str]

    @property
    def label(self) -> str:
        """`l0 = 21.3`, as it can stand in a study."""
        return setting_label(self.setting)


@dataclass(frozen=True)
class SeriesAnswer:
    """What one series has to say."""

    series: str
    title: str
    reach: str
    """`inside` the measured range, or the target lies `below` or `above` it."""
    measured: tuple[float, float]
    """The measured range of what was asked for, in its unit."""
    crossings: list[Crossing]
    """By increasing L0; empty where the target lies outside the range."""
    end: Crossing | None
    """The nearest end of the curve where the target lies outside."""
    exceeds: list[str]
    """The limits that its best crossing breaks, in words; empty if one crossing keeps them all."""
    covers: str
    """What its intervals cover: `text` or `text and seeds`."""
    notes: list[str]


@dataclass(frozen=True)
class Recommendation:
    """Which series to train, and why."""

    series: str | None
    """None: no series gives what was asked for within the limits."""
    setting: dict[str, Any] | None
    reason: str
    """Plain sentences."""
    tied: list[str] = field(default_factory=list)
    """Series that cannot be told apart from the recommended one."""


@dataclass(frozen=True)
class PanelAnswer:
    """The answer at one site and width."""

    site: str
    width: int
    series: list[SeriesAnswer]
    recommendation: Recommendation
    fidelity: str = "delta_lm_loss"
    """What its series are compared by: delta_lm_loss, or without a language model fvu."""


@dataclass(frozen=True)
class Answer:
    """What a loss (an L0, an FVU, a number of frequent features) costs: per panel, per series."""

    run: str
    lm: str
    """Its name; empty where there was none."""
    target: str
    """The metric that was asked by."""
    value: float
    limits: dict[str, float]
    """Largest values accepted, by metric."""
    level: float
    covers: str
    """What the intervals cover, as a sentence."""
    panels: list[PanelAnswer]
    nouns: Nouns = TEXT
    """What the activations are called."""

    @property
    def question(self) -> str:
        """`What does each series cost at delta LM loss 0.2?`"""
        limits = " and ".join(f"at most {amount(metric, most)}" for metric, most in self.limits.items())
        where = f"{amount(self.target, self.value)}{', with ' if limits else ''}{limits}"
        return f"What does each series cost at {where}?"

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; an estimate as {"value", "low", "high"}."""
        return {key: value for key, value in plain(asdict(self)).items() if key != "nouns"}


def plain(value: Any) -> Any:
    """Estimates inside dicts and lists as dicts."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# ---------------------------------------------------------------------------------------------- the question


def parse_amount(metric: str, given: float | str) -> tuple[str, float]:
    """The metric and value meant by a number, or for numbers of features by `12` (a count) or `0.06%` (a share).

    `parse_amount("above_10", "0.06%")` → `("share_above_10pct", 0.0006)`; `metric` is a name of `TARGETS` or of a
    metric. StudyError for what cannot be asked about, and for what is no amount.
    """
    key = TARGETS.get(metric, metric)
    if key not in BOOTSTRAPPED and key not in SHARES:
        names = [*TARGETS, *BOOTSTRAPPED, *SHARES]
        raise StudyError(f"The frontier cannot be asked about '{metric}'.{nearest(metric, names)}")
    share = {count: share for share, count in SHARES.items()}.get(key)
    text = str(given).strip()
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (is_share and share is None) or (value < 0 and key != "delta_lm_loss"):
        ways = "a number such as 0.2" if share is None else "a count such as 12 or a share such as 0.06%"
        raise StudyError(f"'{METRICS[key].title}' takes {ways}, not '{given}'.")
    return (share, value / 100) if is_share and share else (key, value)


class Question(NamedTuple):
    """A target and limits; in a panel, shares become counts."""

    metric: str
    value: float
    limits: dict[str, float]

    def column(self) -> int:
        """Where a curve keeps the metric."""
        return BOOTSTRAPPED.index(SHARES.get(self.metric, self.metric))

    def target(self, width: int) -> float:
        """The value in the unit of the curve."""
        return self.value * width if self.metric in SHARES else self.value

    def objective(self, fidelity: str) -> str:
        """What is to be small where the target is met."""
        return "l0" if self.metric in FIDELITY else fidelity

    def __str__(self) -> str:
        return amount(self.metric, self.value)


# ---------------------------------------------------------------------------------------------- one series


class Candidate(NamedTuple):
    """The best crossing of a series that keeps the limits."""

    curve: SeriesCurve
    crossing: Crossing
    objective: np.ndarray
    """[1 + R]."""


def answer_panel(
    site: str,
    width: int,
    curves: Sequence[SeriesCurve],
    names: Sequence[str],
    question: Question,
    fidelity: str = "delta_lm_loss",
    nouns: Nouns = TEXT,
) -> PanelAnswer:
    """The answer at one site and width; `names` are the series that were asked for."""
    answers, candidates, left_out = [], [], []
    for curve in curves:
        answer, candidate = _answer_series(curve, question)
        answers.append(answer)
        if candidate is None:
            left_out.append(_why_left_out(answer, question))
        else:
            candidates.append(candidate)
    measured = {curve.name for curve in curves}
    left_out += [f"{name} has no measured SAE" for name in names if name not in measured]
    return PanelAnswer(site, width, answers, _recommend(candidates, left_out, question, fidelity, nouns), fidelity)


def _answer_series(curve: SeriesCurve, question: Question) -> tuple[SeriesAnswer, Candidate | None]:
    column, target = question.column(), question.target(curve.width)
    low, high = curve.curve.range(column)
    places = curve.curve.find(column, target)
    crossings = [_crossing(curve, place, question) for place in places]
    objective = BOOTSTRAPPED.index(question.objective(curve.fidelity))
    by_merit = sorted(
        (
            Candidate(curve, crossing, place.values[:, objective])
            for crossing, place in zip(crossings, places, strict=True)
        ),
        key=lambda each: each.objective[0],
    )
    best = next((each for each in by_merit if not _broken(each.crossing, question.limits)), None)
    notes = []
    if len(crossings) > 1:
        notes.append(f"its curve is there {len(crossings)} times; the smallest L0 comes first")
    counts = sorted({len(group) for group in curve.settings})
    if len(counts) > 1:
        notes.append(f"its settings have between {counts[0]} and {counts[-1]} seeds")
    if best:
        notes += _near_limit(best.crossing, question.limits)
    scale = curve.width if question.metric in SHARES else 1
    answer = SeriesAnswer(
        series=curve.name,
        title=curve.title,
        reach="inside" if crossings else "below" if target < low else "above",
        measured=(low / scale, high / scale),
        crossings=crossings,
        end=None if crossings else _crossing(curve, curve.curve.end(column, target), question),
        exceeds=_broken(by_merit[0].crossing, question.limits) if by_merit and not best else [],
        covers=curve.covers,
        notes=notes,
    )
    return answer, best


def _crossing(curve: SeriesCurve, place: Place, question: Question) -> Crossing:
    near = curve.nearest(place)
    summary = {key: near["metrics"][key] for key in ("l0", curve.fidelity)}
    found, target = place.values[0, question.column()], question.target(curve.width)
    low, high = curve.curve.range(question.column())
    notes = []
    if not low <= target <= high and curve.curve.find(question.column(), target):
        notes.append(
            f"the curve ends at {number(found)}, within 1 % of what was asked: these are the values of its end"
        )
    if place.beyond > (1 - LEVEL) / 2:
        notes.append(f"{percent(place.beyond)} of the resamples do not get there: intervals stop at the measured range")
    worst = _relative_error([*curve.settings[place.left], *curve.settings[place.right]])
    if worst > LARGE_ERROR:
        notes.append(f"the standard error of the loss is {percent(worst)} of it here: evaluate on more text")
    return Crossing(
        metrics=curve.metrics(place),
        setting=curve.setting_at(place),
        knob=curve.knob_at(place),
        nearest={"path": near["path"], "label": near["label"], **summary},
        notes=notes,
    )


def _relative_error(points: Sequence[Mapping[str, Any]]) -> float:
    """The largest SE / |delta LM loss|."""
    errors = [
        (point["standard_errors"].get("delta_lm_loss"), point["metrics"].get("delta_lm_loss")) for point in points
    ]
    return max(
        (error / abs(loss) for error, loss in errors if is_number(error) and is_number(loss) and loss), default=0.0
    )


def _broken(crossing: Crossing, limits: Mapping[str, float]) -> list[str]:
    """The limits that a crossing breaks, in words."""
    values = {metric: crossing.metrics[metric].value for metric in limits}
    return [
        f"{amount(metric, value)} (at most {bare(metric, limits[metric])})"
        for metric, value in values.items()
        if value is None or value > limits[metric]
    ]


def _near_limit(crossing: Crossing, limits: Mapping[str, float]) -> list[str]:
    highs = {metric: crossing.metrics[metric].high for metric in limits}
    return [
        f"its interval reaches past the limit, up to {amount(metric, high)}"
        for metric, high in highs.items()
        if high is not None and high > limits[metric]
    ]


def _why_left_out(answer: SeriesAnswer, question: Question) -> str:
    if answer.crossings:
        return f"{answer.title} has {' and '.join(answer.exceeds)}"
    low, high = (bare(question.metric, bound) for bound in answer.measured)
    return f"{answer.title} was measured only {f'at {low}' if low == high else f'from {low} to {high}'}"


# ---------------------------------------------------------------------------------------------- between series


def _recommend(
    candidates: list[Candidate], left_out: list[str], question: Question, fidelity: str, nouns: Nouns
) -> Recommendation:
    """The smallest objective wins; ties are those whose paired difference to it may be zero."""
    if not candidates:
        why = "; ".join(left_out) or "nothing was measured"
        return Recommendation(None, None, f"No series qualifies at {question}: {why}.")
    best, *others = sorted(candidates, key=lambda each: each.objective[0])
    differences = [(other, estimate(other.objective - best.objective)) for other in others]
    clear = [pair for pair in differences if pair[1].low is not None and pair[1].low > 0]
    tied = [pair for pair in differences if pair not in clear]
    value = number(float(best.objective[0]))
    is_l0 = question.objective(fidelity) == "l0"
    active = nouns("active features per token")
    what = f"{value} {active}" if is_l0 else f"{a_fidelity(fidelity)} of {value}"
    where = f"At {question}{' and within the limits' if question.limits else ''}"
    least = f"the fewest {active}, {value}"
    if not is_l0:
        least = f"the lowest {FIDELITY[fidelity]}, {value}"
    if not others and left_out:
        sentences = [f"{where}, only {best.curve.title} qualifies, with {what}."]
    elif not clear:
        sentences = [f"{where}, {best.curve.title} has {what}."]
    else:
        more = ", ".join(f"{other.curve.title} has {_difference(found, ' more')}" for other, found in clear)
        sentences = [f"{where}, {best.curve.title} has {least}; {more}."]
    if tied:
        names = ", ".join(f"{other.curve.title} ({_difference(found)})" for other, found in tied)
        sentences.append(f"Not told apart from it: {names}.")
    if left_out:
        sentences.append(f"Left out: {'; '.join(left_out)}.")
    return Recommendation(
        best.curve.name, best.crossing.setting, " ".join(sentences), [other.curve.name for other, _ in tied]
    )


def _difference(found: Estimate, more: str = "") -> str:
    if found.low is None:
        return f"{number(found.value)}{more}, no interval"
    return f"{number(found.value)}{more} [{number(found.low)}, {number(found.high)}]"
