"""Queries of the frontier: a target value of one metric and limits on others, parsed from numbers or `0.06%`."""

from __future__ import annotations

import math
from typing import NamedTuple

from jumpahead.errors import StudyError, did_you_mean
from jumpahead.metrics import (
    METRICS,
    count_key_by_share,
    curve_metrics,
    fidelity_metrics,
    format_with_name,
    query_options,
)


class Query(NamedTuple):
    """A target value of a metric, and limits on metrics."""

    metric: str
    """Key of the target metric; may be a share of all features, which `curve_target` converts to a count."""
    value: float
    """Target value."""
    limits: dict[str, float]
    """Largest accepted values by key of metric."""
    sample: str = ""
    """The activations that the metrics were measured on: `50,000 tokens`."""

    def metric_index(self) -> int:
        """Return the index of the target metric in `curve_metrics()`; for a share, the index of the matching count."""
        return curve_metrics().index(count_key_by_share().get(self.metric, self.metric))

    def curve_target(self, width: int) -> float:
        """Return the target value on curves of SAEs with `width` features; shares are converted to counts."""
        return self.value * width if self.metric in count_key_by_share() else self.value

    def objective_metric(self, fidelity: str) -> str:
        """Return the key of the metric to minimise at the target.

        L0 if the target metric is a fidelity metric, else `fidelity`, the fidelity metric of the panel.
        """
        return "l0" if self.metric in fidelity_metrics() else fidelity

    def __str__(self) -> str:
        """Return the target as text: `delta LM loss 0.2`."""
        return format_with_name(self.metric, self.value, self.sample)


def metric_by_target() -> dict[str, str]:
    """Return a dict from each target keyword of `Frontier.ask` to the key of the metric."""
    return {option.argument: key for key, option in query_options().items() if option.is_target}


def parse_value(metric: str, given: float | str) -> tuple[str, float]:
    """Parse a value of a metric; return the key of the metric and the value as float.

    metric: a keyword of `Frontier.ask` or the key of a metric. given: a number; for counts of features also a share
    such as `0.06%`, which selects the share metric: `parse_value("above_10", "0.06%")` returns
    `("share_above_10pct", 0.0006)`.
    Raises StudyError if the metric is not interpolated on curves, or if `given` is not a valid value.
    """
    arguments = {option.argument: key for key, option in query_options().items()}
    key = arguments.get(metric, metric)
    if key not in curve_metrics() and key not in count_key_by_share():
        names = [*arguments, *curve_metrics(), *count_key_by_share()]
        raise StudyError(f"The frontier cannot be asked about '{metric}'.{did_you_mean(metric, names)}")
    share = {count: share for share, count in count_key_by_share().items()}.get(key)
    text = str(given).strip()
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    role = METRICS[key].curve
    is_negative = value < 0 and not (role and role.domain == "real")
    if not math.isfinite(value) or (is_share and share is None) or is_negative:
        ways = "a number such as 0.2" if share is None else "a count such as 12 or a share such as 0.06%"
        raise StudyError(f"'{METRICS[key].name}' takes {ways}, not '{given}'.")
    return (share, value / 100) if is_share and share else (key, value)
