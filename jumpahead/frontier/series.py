"""The SAEs of one series in one panel as a curve: a setting is a point, the mean of its seeds.

    R  bootstrap replicates, row 0 being the estimate
    n  settings of a series     m  metrics on curves (`metrics.curve_metrics`)

Replicate r draws documents (the same for all SAEs, see `metrics.replicate_weights`) and, if a series was trained with
several seeds, seeds (see `seeds.py`), so it is a whole frontier of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from jumpahead.frontier.curve import Curve, CurvePosition, Estimate, estimate
from jumpahead.frontier.seeds import Seeds, seed_weights, seeds_of
from jumpahead.metrics import METRICS, CurveRole, curve_metrics, fidelity_metrics, shares

Point = Mapping[str, Any]
"""One SAE as it stands in frontier.json."""
SIGNIFICANT = 2
"""Standard errors above zero that a metric needs on every SAE to be interpolated in the logarithm."""


def is_number(value: float | None) -> TypeGuard[float]:
    """Return False for None, nan and infinities: for what was not measured or is 0 / 0."""
    return value is not None and math.isfinite(value)


def fidelity_of(points: Iterable[Point]) -> str:
    """Return the metric that these SAEs are compared by: the first fidelity metric that any of them has."""
    points = list(points)
    first, *others = fidelity_metrics()
    measured = [key for key in (first, *others) if any(is_number(point["metrics"].get(key)) for point in points)]
    return measured[0] if measured else others[-1]


def point_order(point: Point) -> tuple:
    """Return the key that sorts SAEs by setting, then by seeds."""
    return (point["setting"]["kind"], point["setting"]["value"], *seeds_of(point))


def replicates_of(point: Point) -> int:
    """Return the number of replicates that an SAE has of every metric on curves that has a value."""
    saved = point.get("bootstrap") or {}
    return min(
        (len(saved.get(key) or []) for key in curve_metrics() if is_number(point["metrics"].get(key))), default=0
    )


@dataclass(frozen=True)
class SeriesCurve:
    """The curve of one series in one panel, and the SAEs behind its points."""

    name: str
    title: str
    width: int
    settings: list[list[Point]]
    """The SAEs of each setting, in the order of `curve`'s points."""
    curve: Curve
    fidelity: str
    """The metric that series are compared by."""

    @classmethod
    def of(
        cls,
        series: Mapping[str, Any],
        width: int,
        points: Iterable[Point],
        panel_seeds: Sequence[Seeds],
        fidelity: str,
    ) -> SeriesCurve:
        """Group SAEs by setting and average their seeds. panel_seeds: those of all SAEs of the panel.

        SAEs without L0 or without `fidelity` are left out.
        """
        groups: dict[tuple[str, float], list[Point]] = defaultdict(list)
        for point in sorted(points, key=point_order):
            if all(is_number(point["metrics"].get(key)) for key in ("l0", fidelity)):
                groups[point["setting"]["kind"], point["setting"]["value"]].append(point)
        settings = list(groups.values())
        replicates = min((replicates_of(point) for group in settings for point in group), default=0)
        stacked = [_setting_values(group, panel_seeds, replicates, width) for group in settings]
        values = np.stack(stacked, axis=1) if stacked else np.empty((1, 0, len(curve_metrics())))
        curve = Curve(values, _log_scales(settings, values))
        return cls(series["name"], series["title"], width, settings, curve, fidelity)

    @property
    def covers(self) -> str:
        """Return what the intervals cover: `text and seeds` if every setting has several seeds, else `text`."""
        return "text and seeds" if self.settings and all(len(group) > 1 for group in self.settings) else "text"

    def metrics(self, position: CurvePosition) -> dict[str, Estimate]:
        """Return every metric at a position of the curve, counts also as shares of the width."""
        keys = curve_metrics()
        found = {key: estimate(position.values[:, i]) for i, key in enumerate(keys)}
        for share, count in shares().items():
            found[share] = estimate(position.values[:, keys.index(count)] / self.width)
        return found

    def setting_at(self, position: CurvePosition) -> dict[str, Any]:
        """Return the setting to train with to reach a position: geometric between neighbours, k whole.

        Between settings of different kinds, the setting of the nearest SAE.
        """
        left, right = (self.settings[i][0]["setting"] for i in (position.left, position.right))
        if position.t == 0:
            return dict(left)
        if left["kind"] != right["kind"]:
            return dict(self.nearest(position)["setting"])
        value = _geometric(left["value"], right["value"], position.t)
        return {"kind": left["kind"], "value": max(1, round(value)) if left["kind"] == "k" else float(f"{value:.3g}")}

    def sparsity_coefficient_at(self, position: CurvePosition) -> dict[str, float]:
        """Return {"lambda": the λ that the controllers ended with, interpolated}; {} unless L0 was requested."""
        left, right = self.settings[position.left], self.settings[position.right]
        if left[0]["setting"]["kind"] != "l0" or right[0]["setting"]["kind"] != "l0":
            return {}
        a, b = _mean_lambda(left), _mean_lambda(right)
        return {} if a is None or b is None else {"lambda": _geometric(a, b, position.t)}

    def nearest(self, position: CurvePosition) -> Point:
        """Return the SAE nearest in log L0."""

        def distance(point: Point) -> float:
            """Return |log L0 − log L0 of the position|."""
            return abs(math.log(max(point["metrics"]["l0"], 1e-9)) - here)

        here = math.log(max(float(position.values[0, 0]), 1e-9))
        return min((point for group in self.settings for point in group), key=distance)


def _setting_values(group: list[Point], panel_seeds: Sequence[Seeds], replicates: int, width: int) -> np.ndarray:
    """Return a setting's metrics averaged over its SAEs, [1 + R, m], clipped to the domain of each metric."""
    keys = curve_metrics()
    values = np.full((len(group), 1 + replicates, len(keys)), np.nan)
    for i, point in enumerate(group):
        for j, key in enumerate(keys):
            if is_number(point["metrics"].get(key)):
                values[i, 0, j] = point["metrics"][key]
                values[i, 1:, j] = point["bootstrap"][key][:replicates] if replicates else []
    weights = seed_weights([seeds_of(point) for point in group], panel_seeds, replicates)
    mean = np.einsum("rs,srm->rm", weights, values)
    low = [-np.inf if _role(key).domain == "real" else 0 for key in keys]
    high = [width if _role(key).domain == "features" else np.inf for key in keys]
    return np.clip(mean, low, high)


def _log_scales(settings: list[list[Point]], values: np.ndarray) -> tuple[bool, ...]:
    """Return which metrics are interpolated in the logarithm, [m]. values: [1 + R, n, m]."""

    def is_significant(point: Point, key: str) -> bool:
        """Return True if the metric is at least `SIGNIFICANT` standard errors above zero."""
        error, value = point["standard_errors"].get(key), point["metrics"].get(key)
        return is_number(error) and is_number(value) and value > 0 and value >= SIGNIFICANT * error

    def wants_log(key: str) -> bool:
        """Return True if the declared scale is logarithmic for these SAEs."""
        scale = _role(key).scale
        if scale == "log_if_significant":
            return all(is_significant(point, key) for group in settings for point in group)
        return scale == "log"

    is_positive = (values[0] > 0).all(axis=0)
    return tuple(wants_log(key) and bool(is_positive[j]) for j, key in enumerate(curve_metrics()))


def _role(key: str) -> CurveRole:
    """Return the role of a metric on curves."""
    role = METRICS[key].curve
    assert role is not None
    return role


def _geometric(a: float, b: float, t: float) -> float:
    """Return a at t = 0 and b at t = 1, linear in the logarithm if both are positive."""
    if t == 0 or a == b:
        return a
    if a > 0 and b > 0:
        return math.exp((1 - t) * math.log(a) + t * math.log(b))
    return (1 - t) * a + t * b


def _mean_lambda(group: list[Point]) -> float | None:
    """Return the geometric mean of the λ that a setting's SAEs ended with; None if one of them has none."""
    values = [point["sparsity_coefficient"].get("lambda") for point in group]
    known = [value for value in values if is_number(value) and value > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if len(known) == len(group) else None
