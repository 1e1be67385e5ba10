"""The measured curve of one series: interpolation between its points, bootstrap replicates and intervals.

    R  bootstrap replicates, row 0 being the estimate     n  points of the curve     m  metrics, the first L0

The curve of a series runs through its points in the order of L0, straight in (log L0, log or plain metric, …) between
neighbours. For a target y* between points i and i+1 and a metric v,

    t = (y* − y_i) / (y_{i+1} − y_i)        v = (1−t)·v_i + t·v_{i+1}        y, v scaled: log where `is_log`, else plain

Every replicate is the same curve through the same SAEs' resampled values, interpolated again. Nothing is ever
extrapolated: a replicate that does not reach the target stops at its nearest point, and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
"""Of intervals."""
SNAP = 0.01
"""A target outside the measured range by at most this share of its end is answered with the values of that end."""


class Estimate(NamedTuple):
    """A number with its interval. The value is None for 0 / 0, the bounds are None without replicates."""

    value: float | None
    low: float | None = None
    high: float | None = None


def estimate(values: np.ndarray) -> Estimate:
    """Return the estimate values[0] and the central 95 % of the replicates values[1:], extended to the estimate.

    values: [1 + R]. The extension matters for counts: 39 in 40 replicates can be equal and lie on one side of them.
    """
    if not np.isfinite(values[0]):
        return Estimate(None)
    replicates = values[1:][np.isfinite(values[1:])]
    if len(replicates) < 2:
        return Estimate(float(values[0]))
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))


def centred(value: float, replicates: np.ndarray, clusters: int) -> np.ndarray:
    """Return value + √(G/(G−1)) · (replicates − their mean), [R], for G clusters; empty for one cluster.

    Corrects two biases of the bootstrap. Resampling makes some counts larger on average: a feature that fires in one
    document only is dead in every replicate without it. And the variance of a bootstrap mean is (G−1)/G of the
    unbiased one.
    """
    replicates = np.asarray(replicates, np.float64)
    if len(replicates) < 2 or clusters < 2:
        return np.empty(0)
    deviations = replicates - replicates.mean() if np.ptp(replicates) else np.zeros(len(replicates))
    return value + np.sqrt(clusters / (clusters - 1)) * deviations


class CurvePosition(NamedTuple):
    """A position on a curve: on a point, or between two neighbours."""

    values: np.ndarray
    """[1 + R, m] every metric there."""
    left: int
    """The point before, in the order in which the points were given."""
    right: int
    """The point after; the same as `left` on a point."""
    t: float
    """Fraction of the way from `left` to `right`, 0 to 1."""
    beyond: float
    """Share of replicates whose curve does not reach the target."""


@dataclass(frozen=True)
class Curve:
    """A curve through n points, with its replicates."""

    values: np.ndarray
    """[1 + R, n, m]; row 0 is the estimate, column 0 of the metrics is L0."""
    is_log: tuple[bool, ...]
    """[m] True for metrics that are interpolated in the logarithm. Replicates with a value ≤ 0 use plain values."""

    @cached_property
    def order(self) -> np.ndarray:
        """Return the points of each row in the order of L0, [1 + R, n]; equal L0: the larger second metric first."""
        second = -self.values[:, :, 1] if self.values.shape[2] > 1 else self.values[:, :, 0]
        return np.lexsort((second, self.values[:, :, 0]), axis=-1)

    @cached_property
    def sorted(self) -> np.ndarray:
        """Return the values in the order of L0, [1 + R, n, m]."""
        return np.take_along_axis(self.values, self.order[:, :, None], axis=1)

    @cached_property
    def uses_log(self) -> np.ndarray:
        """Return which metrics of each row are interpolated in the logarithm, [1 + R, m] bool."""
        return np.asarray(self.is_log) & (self.sorted > 0).all(axis=1)

    @cached_property
    def scaled(self) -> np.ndarray:
        """Return the sorted values, as logarithms where `uses_log`, [1 + R, n, m]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.uses_log[:, None, :], np.log(self.sorted), self.sorted)

    def range(self, metric: int) -> tuple[float, float]:
        """Return the smallest and the largest measured value of a metric."""
        measured = self.values[0, :, metric]
        return float(measured.min()), float(measured.max())

    def at_point(self, index: int) -> CurvePosition:
        """Return the position on a point, by its index in `values`."""
        return CurvePosition(self.values[:, index, :], index, index, 0.0, 0.0)

    def nearest_end(self, metric: int, target: float) -> CurvePosition:
        """Return the position on the point whose metric is nearest to the target; of several, the smallest L0."""
        by_l0 = self.order[0]
        return self.at_point(int(by_l0[np.argmin(np.abs(self.values[0, by_l0, metric] - target))]))

    def positions(self, metric: int, target: float) -> list[CurvePosition]:
        """Return all positions where the curve meets the target, by increasing L0; [] outside the measured range."""
        low, high = self.range(metric)
        if not low <= target <= high:
            bound = low if target < low else high
            is_near = abs(target - bound) <= SNAP * abs(bound)
            return [self.nearest_end(metric, bound)] if is_near else []
        if len(self.order[0]) == 1:
            return [self.at_point(0)]
        return [self._position(metric, target, segment, t) for segment, t in self._crossings(metric, target)]

    def _crossings(self, metric: int, target: float) -> list[tuple[int, float]]:
        """Return (segment, t) of every crossing of the estimate; a point exactly on the target is one crossing."""
        raw, y = self.sorted[0, :, metric], self.scaled[0, :, metric]
        scaled_target = self._scaled_target(metric, target)[0]
        found: list[tuple[int, float]] = []
        for i in range(len(raw)):
            if raw[i] == target:
                found.append((i, 0.0) if i < len(raw) - 1 else (i - 1, 1.0))
            elif i < len(raw) - 1 and raw[i + 1] != target and (raw[i] < target) != (raw[i + 1] < target):
                found.append((i, float(np.clip((scaled_target - y[i]) / (y[i + 1] - y[i]), 0.0, 1.0))))
        return found

    def _scaled_target(self, metric: int, target: float) -> np.ndarray:
        """Return the target on the scale of each row, [1 + R]; −inf for the logarithm of a target ≤ 0."""
        return np.where(self.uses_log[:, metric], np.log(target) if target > 0 else -np.inf, target)

    def _position(self, metric: int, target: float, segment: int, t: float) -> CurvePosition:
        """Return the position at (segment, t) of the estimate, each replicate interpolated at its own crossing."""
        segments, ts, is_reached = self._nearest_crossings(metric, target, segment, t)
        segments[0], ts[0], is_reached[0] = segment, t, True
        values = self._interpolate(segments, ts)
        values[is_reached, metric] = target
        left, right = int(self.order[0, segment]), int(self.order[0, segment + 1])
        if t in (0.0, 1.0):
            left = right = left if t == 0.0 else right
            t = 0.0
        beyond = float(1 - is_reached[1:].mean()) if len(is_reached) > 1 else 0.0
        return CurvePosition(values, left, right, t, beyond)

    def _nearest_crossings(
        self, metric: int, target: float, segment: int, t: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, per row, the crossing nearest in L0 to that of the estimate: segment, t, and whether it exists.

        [1 + R] each. A row that never meets the target gets its point with the nearest value.
        """
        y, x = self.scaled[:, :, metric], self.scaled[:, :, 0]
        scaled_target = self._scaled_target(metric, target)[:, None]
        here = self._interpolate(np.full(len(y), segment), np.full(len(y), t))[0, 0]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            near = np.where(self.uses_log[:, 0], np.log(here), here)[:, None]
            rise, run = np.diff(y, axis=1), np.diff(x, axis=1)
            flat = np.where(run == 0, 0.0, np.clip((near - x[:, :-1]) / run, 0, 1))
            ts = np.where(rise == 0, flat, np.clip((scaled_target - y[:, :-1]) / rise, 0, 1))
            crosses = (y[:, :-1] - scaled_target) * (y[:, 1:] - scaled_target) <= 0
        distance = np.where(crosses, np.abs(x[:, :-1] + ts * run - near), np.inf)
        segments = np.argmin(distance, axis=1)
        ts = np.take_along_axis(ts, segments[:, None], axis=1)[:, 0]
        is_reached = np.asarray(crosses.any(axis=1))
        stop = np.argmin(np.abs(self.sorted[:, :, metric] - target), axis=1)
        last = y.shape[1] - 1
        segments = np.where(is_reached, segments, np.minimum(stop, last - 1))
        return segments, np.where(is_reached, ts, (stop == last).astype(np.float64)), is_reached

    def _interpolate(self, segments: np.ndarray, ts: np.ndarray) -> np.ndarray:
        """Return every metric at (segment, t) of each row, [1 + R, m], within the range of the segment's two ends."""
        rows = np.arange(len(segments))
        a, b = self.sorted[rows, segments], self.sorted[rows, segments + 1]
        t = ts[:, None]
        between = (1 - t) * self.scaled[rows, segments] + t * self.scaled[rows, segments + 1]
        with np.errstate(over="ignore"):
            between = np.where(self.uses_log, np.exp(np.where(self.uses_log, between, 0.0)), between)
        between = np.clip(between, np.minimum(a, b), np.maximum(a, b))
        return np.where(t == 0, a, np.where(t == 1, b, between))
