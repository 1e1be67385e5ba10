"""A question to the frontier: a target and limits, parsed from numbers or text such as `0.06%`."""

from __future__ import annotations

import math
from typing import NamedTuple

from jumpahead.errors import StudyError, nearest
from jumpahead.metrics import METRICS, curve_metrics, fidelity_metrics, format_with_name, query_options, shares


class Query(NamedTuple):
    """A target and limits; shares become counts in a panel."""

    metric: str
    value: float
    limits: dict[str, float]
    """Largest values accepted, by metric."""

    def column(self) -> int:
        """Return the index of the target metric on a curve."""
        return curve_metrics().index(shares().get(self.metric, self.metric))

    def target(self, width: int) -> float:
        """Return the value in the unit of the curve."""
        return self.value * width if self.metric in shares() else self.value

    def objective(self, fidelity: str) -> str:
        """Return the metric to minimise at the target: L0, or asked by another metric than a fidelity, the fidelity."""
        return "l0" if self.metric in fidelity_metrics() else fidelity

    def __str__(self) -> str:
        """Return the target for a sentence: `delta LM loss 0.2`."""
        return format_with_name(self.metric, self.value)


def target_names() -> dict[str, str]:
    """Return what `Frontier.ask` takes as targets: argument → metric."""
    return {option.argument: key for key, option in query_options().items() if option.is_target}


def parse_value(metric: str, given: float | str) -> tuple[str, float]:
    """Return the metric and value that are meant by a number, or for counts of features by a share such as `0.06%`.

    `parse_value("above_10", "0.06%")` → `("share_above_10pct", 0.0006)`. metric: an argument of `Frontier.ask` or the
    key of a metric. Raises StudyError for metrics that are not on curves and for text that is not a number.
    """
    arguments = {option.argument: key for key, option in query_options().items()}
    key = arguments.get(metric, metric)
    if key not in curve_metrics() and key not in shares():
        names = [*arguments, *curve_metrics(), *shares()]
        raise StudyError(f"The frontier cannot be asked about '{metric}'.{nearest(metric, names)}")
    share = {count: share for share, count in shares().items()}.get(key)
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
