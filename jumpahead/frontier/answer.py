"""Result of `Frontier.ask`: per panel, the crossings of every series with the target, and a recommendation.

A panel contains the SAEs of one site and width; a series is an architecture with its options. Names of fields
are the JSON keys of `jumpahead ask --json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jumpahead.formatting import TOKENS, SampleUnit, format_setting
from jumpahead.frontier.curve import Estimate
from jumpahead.metrics import format_with_name


@dataclass(frozen=True)
class Crossing:
    """A position on the curve of a series: an intersection with the target, or the end nearest to the target."""

    metrics: dict[str, Estimate]
    """Interpolated metrics with intervals, by key; counts of features also as shares of all features."""
    setting: dict[str, Any]
    """Sparsity setting to train with, {"kind", "value"}; rounded to 3 digits if interpolated."""
    sparsity_coefficient: dict[str, float]
    """Expected final sparsity coefficient, {"lambda": …}, for settings of kind `l0`; else empty."""
    nearest: dict[str, Any]
    """The trained SAE nearest in L0: `path`, `label`, `l0`, and the fidelity metric of the panel."""
    notes: list[str]
    """Caveats for the user."""

    @property
    def label(self) -> str:
        """Return the sparsity setting in the syntax of study files: `l0 = 21.3`."""
        return format_setting(self.setting)


@dataclass(frozen=True)
class SeriesAnswer:
    """The answer for one series: crossings with the target, or the measured range if there are none."""

    series: str
    """Name of the series in the study."""
    title: str
    """Name of the series for readers."""
    reach: str
    """Position of the target relative to the measured range: `inside`, `below` or `above`."""
    measured: tuple[float, float]
    """Smallest and largest measured value of the target metric."""
    crossings: list[Crossing]
    """Crossings by increasing L0; empty if the target lies outside the measured range."""
    end: Crossing | None
    """The end of the curve nearest to the target if the target lies outside the measured range; else None."""
    exceeds: list[str]
    """Text of each limit that the best crossing exceeds, also of an FVU of 1 or more; empty if a crossing qualifies."""
    covers: str
    """Sources of variation covered by the intervals: `text` or `text and seeds`."""
    notes: list[str]
    """Caveats for the user."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended series and sparsity setting, with the reason."""

    series: str | None
    """Name of the recommended series; None if no series reaches the target within the limits."""
    setting: dict[str, Any] | None
    """Sparsity setting to train with, {"kind", "value"}; None if `series` is None."""
    reason: str
    """Explanation for the user, one or more sentences."""
    tied: list[str] = field(default_factory=list)
    """Names of series whose difference to the recommended series has an interval that contains zero."""


@dataclass(frozen=True)
class PanelAnswer:
    """The answer for one panel: one site and width."""

    site: str
    width: int | None
    """Number of features of each SAE; None if series differ in it."""
    series: list[SeriesAnswer]
    recommendation: Recommendation
    fidelity: str
    """Key of the metric that compares the series of this panel."""


@dataclass(frozen=True)
class Answer:
    """The answer to a query: per panel, the metrics that each series reaches at a target value of one metric."""

    run: str
    """Name of the study."""
    lm: str
    """Name of the language model; empty if the run has none."""
    target: str
    """Key of the target metric."""
    value: float
    """Target value."""
    limits: dict[str, float]
    """Largest accepted values by key of metric."""
    level: float
    """Confidence level of the intervals, such as 0.95."""
    covers: str
    """A sentence on the sources of variation covered by the intervals."""
    panels: list[PanelAnswer]
    unit: SampleUnit = TOKENS
    """Nouns for activations in sentences."""
    rows: int = 0
    """Number of held-out activations that the SAEs were measured on."""

    @property
    def sample(self) -> str:
        """Return the activations that the SAEs were measured on as text: `50,000 tokens`."""
        return f"{self.rows:,} {self.unit.plural}"

    @property
    def question(self) -> str:
        """Return the query as a question: `What does each series cost at delta LM loss 0.2?`"""
        limits = " and ".join(
            f"at most {format_with_name(metric, most, self.sample)}" for metric, most in self.limits.items()
        )
        target = f"{format_with_name(self.target, self.value, self.sample)}{', with ' if limits else ''}{limits}"
        return f"What does each series cost at {target}?"

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON-compatible dicts and lists; estimates as {"value", "low", "high"}."""
        return {key: value for key, value in to_plain(asdict(self)).items() if key != "unit"}


def to_plain(value: Any) -> Any:
    """Return `value` with nested `Estimate` objects replaced by dicts and tuples by lists."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
