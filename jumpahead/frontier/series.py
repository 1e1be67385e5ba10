"""The curve through the SAEs of one series in one panel: one point per sparsity setting, the mean over its seeds.

    R  bootstrap replicates; row 0 is the estimate
    n  sparsity settings of a series     m  metrics on curves (`metrics.curve_metrics`)

Replicate r resamples documents, identically for all SAEs (see `resampling.replicate_weights`). If a series was trained
with several seeds, replicate r also resamples seeds (see `seeds.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from jumpahead.formatting import MEASURED
from jumpahead.frontier.curve import Curve, CurvePosition, Estimate, estimate_with_interval
from jumpahead.frontier.seeds import Seeds, seed_weights, seeds_of
from jumpahead.metrics import METRICS, CurveInterpolation, count_key_by_share, curve_metrics, fidelity_metrics
from jumpahead.storage.packed_numbers import packed_length, unpack_numbers

Point = Mapping[str, Any]
"""One SAE in frontier.json: an element of `points` of a panel."""
MIN_STANDARD_ERRORS = 2
"""A metric is interpolated in the logarithm if all SAEs are at least this many standard errors above zero."""


def is_finite_number(value: float | None) -> TypeGuard[float]:
    """Return True if a metric has a finite value; False for None (not measured), nan (0 / 0) and ±inf."""
    return value is not None and math.isfinite(value)


def choose_fidelity(points: Iterable[Point]) -> str:
    """Return the key of the metric to compare these SAEs by: the first fidelity metric that any SAE has.

    Delta LM loss is passed over where it says nothing (`is_loss_flat`).
    """
    points = list(points)
    first, *others = fidelity_metrics()
    measured = [key for key in (first, *others) if any(is_finite_number(point["metrics"].get(key)) for point in points)]
    if len(measured) > 1 and measured[0] == "delta_lm_loss" and is_loss_flat(points):
        return measured[1]
    return measured[0] if measured else others[-1]


def is_loss_flat(points: Sequence[Point]) -> bool:
    """Return True if the loss hardly rises with the site set to zero: within two standard errors of delta LM loss."""
    errors = [point["standard_errors"].get("delta_lm_loss") for point in points]
    known = sorted(error for error in errors if is_finite_number(error))
    rises = [
        point["metrics"]["ce_zero"] - point["metrics"]["ce_clean"]
        for point in points
        if all(is_finite_number(point["metrics"].get(key)) for key in ("ce_zero", "ce_clean"))
    ]
    return bool(rises and known) and max(rises) <= MIN_STANDARD_ERRORS * known[len(known) // 2]


def point_sort_key(point: Point) -> tuple:
    """Return the sort key of an SAE: sparsity setting, then seeds."""
    return (point["setting"]["kind"], point["setting"]["value"], *seeds_of(point))


def count_replicates(point: Point) -> int:
    """Return the number of bootstrap replicates of an SAE: the minimum over curve metrics that have a value."""
    saved = point.get("bootstrap") or {}
    measured = [key for key in curve_metrics() if is_finite_number(point["metrics"].get(key))]
    return min((packed_length(saved.get(key)) for key in measured), default=0)


@dataclass(frozen=True)
class SeriesCurve:
    """The curve of one series in one panel, with the SAEs of each point."""

    name: str
    """Name of the series in the study."""
    title: str
    """Name of the series for readers."""
    width: int
    """Number of features of each SAE."""
    settings: list[list[Point]]
    """SAEs grouped by sparsity setting, in the order of the points of `curve`."""
    curve: Curve
    """One point per sparsity setting."""
    fidelity: str
    """Key of the metric that compares the series of the panel."""
    is_whole: bool = False
    """Whether its sparsity settings are whole numbers."""

    @classmethod
    def from_points(
        cls,
        series: Mapping[str, Any],
        width: int,
        points: Iterable[Point],
        panel_seeds: Sequence[Seeds],
        fidelity: str,
    ) -> SeriesCurve:
        """Return the curve of a series: SAEs grouped by sparsity setting and averaged over seeds.

        points: the SAEs of the series in the panel; those without L0 or `fidelity` are ignored. panel_seeds: the
        seeds of all SAEs of the panel. fidelity: key of the metric that compares the series of the panel.
        """
        groups: dict[tuple[str, float], list[Point]] = defaultdict(list)
        for point in sorted(points, key=point_sort_key):
            if all(is_finite_number(point["metrics"].get(key)) for key in ("l0", fidelity)):
                groups[point["setting"]["kind"], point["setting"]["value"]].append(point)
        settings = list(groups.values())
        replicates = min((count_replicates(point) for group in settings for point in group), default=0)
        stacked = [_setting_values(group, panel_seeds, replicates, width) for group in settings]
        values = np.stack(stacked, axis=1) if stacked else np.empty((1, 0, len(curve_metrics())))
        curve = Curve(values, _log_scales(settings, values))
        return cls(series["name"], series["title"], width, settings, curve, fidelity, bool(series.get("whole")))

    @property
    def covers(self) -> str:
        """Return the variation that intervals cover: `text and seeds` if all settings have several seeds, or `text`."""
        return "text and seeds" if self.settings and all(len(group) > 1 for group in self.settings) else "text"

    def metrics(self, position: CurvePosition) -> dict[str, Estimate]:
        """Return estimates of all curve metrics at a position, by key; counts also as shares of all features."""
        keys = curve_metrics()
        estimates = {key: estimate_with_interval(position.values[:, i]) for i, key in enumerate(keys)}
        for share, count in count_key_by_share().items():
            estimates[share] = estimate_with_interval(position.values[:, keys.index(count)] / self.width)
        return estimates

    def setting_at(self, position: CurvePosition) -> dict[str, Any]:
        """Return the sparsity setting {"kind", "value"} that is expected to reach a position.

        Geometric interpolation between the two neighbouring settings; whole numbers stay whole. If their kinds
        differ, or if they are not known, return the setting of the nearest SAE.
        """
        left, right = (self.settings[i][0]["setting"] for i in (position.left, position.right))
        if position.t == 0:
            return dict(left)
        if left["kind"] != right["kind"] or left["kind"] == MEASURED:
            return dict(self.nearest_sae(position)["setting"])
        value = _interpolate_geometric(left["value"], right["value"], position.t)
        is_whole = self.is_whole or left["kind"] == "k"
        return {"kind": left["kind"], "value": max(1, round(value)) if is_whole else float(f"{value:.3g}")}

    def sparsity_coefficient_at(self, position: CurvePosition) -> dict[str, float]:
        """Return {"lambda": …}: the final sparsity coefficient, interpolated between neighbouring settings.

        Empty unless both settings have kind `l0`.
        """
        left, right = self.settings[position.left], self.settings[position.right]
        if left[0]["setting"]["kind"] != "l0" or right[0]["setting"]["kind"] != "l0":
            return {}
        a, b = _geometric_mean_lambda(left), _geometric_mean_lambda(right)
        return {} if a is None or b is None else {"lambda": _interpolate_geometric(a, b, position.t)}

    def nearest_sae(self, position: CurvePosition) -> Point:
        """Return the SAE of the series whose log L0 is nearest to the log L0 of the position."""

        def distance(point: Point) -> float:
            """Return |log L0 of the SAE − log L0 of the position|."""
            return abs(math.log(max(point["metrics"]["l0"], 1e-9)) - here)

        here = math.log(max(float(position.values[0, 0]), 1e-9))
        return min((point for group in self.settings for point in group), key=distance)


def _setting_values(group: list[Point], panel_seeds: Sequence[Seeds], replicates: int, width: int) -> np.ndarray:
    """Return the metrics of one sparsity setting averaged over its SAEs, [1 + R, m].

    Values are clipped to the domain of each metric (`metrics.CurveInterpolation.domain`).
    """
    keys = curve_metrics()
    values = np.full((len(group), 1 + replicates, len(keys)), np.nan)
    for i, point in enumerate(group):
        for j, key in enumerate(keys):
            if is_finite_number(point["metrics"].get(key)):
                values[i, 0, j] = point["metrics"][key]
                values[i, 1:, j] = unpack_numbers(point["bootstrap"][key])[:replicates] if replicates else []
    weights = seed_weights([seeds_of(point) for point in group], panel_seeds, replicates)
    mean = np.einsum("rs,srm->rm", weights, values)
    low = [-np.inf if _curve_role(key).domain == "real" else 0 for key in keys]
    high = [width if _curve_role(key).domain == "features" else np.inf for key in keys]
    return np.clip(mean, low, high)


def _log_scales(settings: list[list[Point]], values: np.ndarray) -> tuple[bool, ...]:
    """Return, per curve metric, True if it is interpolated in the logarithm, [m].

    settings: SAEs grouped by sparsity setting. values: metrics of the settings, [1 + R, n, m].
    """

    def is_significant(point: Point, key: str) -> bool:
        """Return True if the metric is at least `MIN_STANDARD_ERRORS` standard errors above zero."""
        error, value = point["standard_errors"].get(key), point["metrics"].get(key)
        return (
            is_finite_number(error) and is_finite_number(value) and value > 0 and value >= MIN_STANDARD_ERRORS * error
        )

    def wants_log(key: str) -> bool:
        """Return True if the scale declared for the metric is logarithmic for these SAEs."""
        scale = _curve_role(key).scale
        if scale == "log_if_significant":
            return all(is_significant(point, key) for group in settings for point in group)
        return scale == "log"

    is_positive = (values[0] > 0).all(axis=0)
    return tuple(wants_log(key) and bool(is_positive[j]) for j, key in enumerate(curve_metrics()))


def _curve_role(key: str) -> CurveInterpolation:
    """Return the curve role of the curve metric `key`."""
    role = METRICS[key].curve
    assert role is not None
    return role


def _interpolate_geometric(a: float, b: float, t: float) -> float:
    """Return the interpolation from a (t = 0) to b (t = 1): geometric if both are positive, else linear."""
    if t == 0 or a == b:
        return a
    if a > 0 and b > 0:
        return math.exp((1 - t) * math.log(a) + t * math.log(b))
    return (1 - t) * a + t * b


def _geometric_mean_lambda(group: list[Point]) -> float | None:
    """Return the geometric mean of the final λ of SAEs; None if any SAE has no positive λ."""
    values = [point["sparsity_coefficient"].get("lambda") for point in group]
    known = [value for value in values if is_finite_number(value) and value > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if len(known) == len(group) else None
