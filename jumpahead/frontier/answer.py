"""What `Frontier.ask` returns: per panel and series the crossings with the target, and a recommendation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jumpahead.formatting import TOKENS, SampleUnit, format_setting
from jumpahead.frontier.curve import Estimate
from jumpahead.metrics import format_with_name


@dataclass(frozen=True)
class Crossing:
    """The position where a curve meets the target, or the end of the curve nearest to it."""

    metrics: dict[str, Estimate]
    """Every metric on curves, counts also as shares of the width, interpolated, with intervals."""
    setting: dict[str, Any]
    """{"kind", "value"}: what to train with; three digits between trained settings."""
    sparsity_coefficient: dict[str, float]
    """For a requested L0, {"lambda": the λ that the controller is expected to end with}; else empty."""
    nearest: dict[str, Any]
    """The trained SAE nearest in L0: path, label, l0, and the metric that series are compared by."""
    notes: list[str]

    @property
    def label(self) -> str:
        """Return the setting as it can stand in a study: `l0 = 21.3`."""
        return format_setting(self.setting)


@dataclass(frozen=True)
class SeriesAnswer:
    """The answer for one series."""

    series: str
    title: str
    reach: str
    """`inside` the measured range, or the target lies `below` or `above` it."""
    measured: tuple[float, float]
    """The measured range of the target metric, in its unit."""
    crossings: list[Crossing]
    """By increasing L0; empty if the target lies outside the range."""
    end: Crossing | None
    """The nearest end of the curve if the target lies outside the range."""
    exceeds: list[str]
    """The limits that its best crossing exceeds, in words; empty if one crossing keeps all limits."""
    covers: str
    """What its intervals cover: `text` or `text and seeds`."""
    notes: list[str]


@dataclass(frozen=True)
class Recommendation:
    """Which series to train, and why."""

    series: str | None
    """None: no series reaches the target within the limits."""
    setting: dict[str, Any] | None
    reason: str
    """Sentences for the user."""
    tied: list[str] = field(default_factory=list)
    """Series whose difference to the recommended one may be zero."""


@dataclass(frozen=True)
class PanelAnswer:
    """The answer at one site and width."""

    site: str
    width: int
    series: list[SeriesAnswer]
    recommendation: Recommendation
    fidelity: str
    """The metric that its series are compared by."""


@dataclass(frozen=True)
class Answer:
    """What a target (a delta LM loss, an L0, a number of features) costs, per panel and series."""

    run: str
    lm: str
    """Its name; empty without a language model."""
    target: str
    """The metric that was asked by."""
    value: float
    limits: dict[str, float]
    """Largest values accepted, by metric."""
    level: float
    covers: str
    """What the intervals cover, as a sentence."""
    panels: list[PanelAnswer]
    unit: SampleUnit = TOKENS
    """What an activation is called."""

    @property
    def question(self) -> str:
        """Return the question as a sentence: `What does each series cost at delta LM loss 0.2?`"""
        limits = " and ".join(f"at most {format_with_name(metric, most)}" for metric, most in self.limits.items())
        target = f"{format_with_name(self.target, self.value)}{', with ' if limits else ''}{limits}"
        return f"What does each series cost at {target}?"

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists; an estimate as {"value", "low", "high"}."""
        return {key: value for key, value in to_plain(asdict(self)).items() if key != "unit"}


def to_plain(value: Any) -> Any:
    """Return dicts and lists with the estimates inside as dicts."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
