"""The measured curve of one series: interpolation between its points, bootstrap replicates and intervals.

    R  bootstrap replicates; row 0 is the estimate     n  points of the curve     m  metrics; metric 0 is L0

The curve of a series connects its points in the order of L0. Between neighbours it is linear in log L0 and in each
metric, or in the logarithm of the metric. For a target y* between points i and i+1 and a metric v,

    t = (y* − y_i) / (y_{i+1} − y_i)        v = (1−t)·v_i + t·v_{i+1}        y, v: logarithms if `is_log`, else values

Each bootstrap replicate is a curve through the resampled values of the same SAEs. Nothing is extrapolated: a replicate
that does not reach the target takes the values of its nearest point, and `unreached_share` counts such replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

CONFIDENCE_LEVEL = 0.95
"""Confidence level of intervals."""
SNAP_TOLERANCE = 0.01
"""Relative tolerance: a target this close outside the measured range takes the values at the end of the range."""


class Estimate(NamedTuple):
    """A value with its confidence interval. `value` is None for 0 / 0; the bounds are None without replicates."""

    value: float | None
    low: float | None = None
    high: float | None = None


def estimate_with_interval(values: np.ndarray) -> Estimate:
    """Return the estimate values[0] with the central 95 % interval of the replicates values[1:].

    values: [1 + R]. The interval is extended to include the estimate, because for counts nearly all replicates can
    be equal and lie on one side of the estimate.
    """
    if not np.isfinite(values[0]):
        return Estimate(None)
    replicates = values[1:][np.isfinite(values[1:])]
    if len(replicates) < 2:
        return Estimate(float(values[0]))
    low, high = np.quantile(replicates, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Estimate(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))


def centre_replicates(value: float, replicates: np.ndarray, expansion: float) -> np.ndarray:
    """Return value + expansion · (replicates − mean of replicates), [R]; empty if the expansion is infinite or R < 2.

    Corrects three biases of the bootstrap. Resampling shifts counts: a feature that fires in only one document never
    fires in a replicate without this document. The variance of a bootstrap mean is too small, and its percentiles are
    those of a normal distribution: `expansion` is `evaluation.coverage.interval_expansion` of the documents.
    """
    replicates = np.asarray(replicates, np.float64)
    if len(replicates) < 2 or not np.isfinite(expansion):
        return np.empty(0)
    deviations = replicates - replicates.mean() if np.ptp(replicates) else np.zeros(len(replicates))
    return value + expansion * deviations


class CurvePosition(NamedTuple):
    """A position on a curve: at a point, or between two neighbouring points."""

    values: np.ndarray
    """[1 + R, m] metrics at the position."""
    left: int
    """Index of the neighbouring point with smaller L0, in `Curve.values`."""
    right: int
    """Index of the neighbouring point with larger L0; equal to `left` at a point."""
    t: float
    """Fraction of the way from `left` to `right`, 0 to 1."""
    unreached_share: float
    """Share of replicates whose curve does not reach the target, 0 to 1."""


@dataclass(frozen=True)
class Curve:
    """A curve through n points, with bootstrap replicates."""

    values: np.ndarray
    """[1 + R, n, m] metrics of the points; row 0 is the estimate, metric 0 is L0."""
    is_log: tuple[bool, ...]
    """[m] True for metrics that are interpolated in the logarithm; replicates with any value ≤ 0 are not."""

    @cached_property
    def l0_order(self) -> np.ndarray:
        """Return the indices that sort the points of each row by L0, [1 + R, n].

        Points with equal L0 are sorted by decreasing metric 1.
        """
        second = -self.values[:, :, 1] if self.values.shape[2] > 1 else self.values[:, :, 0]
        return np.lexsort((second, self.values[:, :, 0]), axis=-1)

    @cached_property
    def sorted_values(self) -> np.ndarray:
        """Return `values` with the points of each row sorted by L0, [1 + R, n, m]."""
        return np.take_along_axis(self.values, self.l0_order[:, :, None], axis=1)

    @cached_property
    def uses_log(self) -> np.ndarray:
        """Return a mask of the metrics that each row interpolates in the logarithm, [1 + R, m] bool."""
        return np.asarray(self.is_log) & (self.sorted_values > 0).all(axis=1)

    @cached_property
    def scaled_values(self) -> np.ndarray:
        """Return the sorted values on the scale of interpolation, [1 + R, n, m]: the logarithm if `uses_log`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.uses_log[:, None, :], np.log(self.sorted_values), self.sorted_values)

    def measured_range(self, metric: int) -> tuple[float, float]:
        """Return the smallest and the largest estimate of the metric with index `metric` over all points."""
        measured = self.values[0, :, metric]
        return float(measured.min()), float(measured.max())

    def at_point(self, index: int) -> CurvePosition:
        """Return the position at the point with index `index` in `values`."""
        return CurvePosition(self.values[:, index, :], index, index, 0.0, 0.0)

    def nearest_end(self, metric: int, target: float) -> CurvePosition:
        """Return the position at the point whose metric is nearest to `target`; if tied, the point with smallest L0."""
        by_l0 = self.l0_order[0]
        return self.at_point(int(by_l0[np.argmin(np.abs(self.values[0, by_l0, metric] - target))]))

    def positions(self, metric: int, target: float) -> list[CurvePosition]:
        """Return all positions where the curve crosses `target`, by increasing L0; [] outside the measured range.

        metric: index of the metric that `target` is a value of.
        """
        low, high = self.measured_range(metric)
        if not low <= target <= high:
            bound = low if target < low else high
            is_near = abs(target - bound) <= SNAP_TOLERANCE * abs(bound)
            return [self.nearest_end(metric, bound)] if is_near else []
        if len(self.l0_order[0]) == 1:
            return [self.at_point(0)]
        return [self._position_at(metric, target, segment, t) for segment, t in self._crossings(metric, target)]

    def _crossings(self, metric: int, target: float) -> list[tuple[int, float]]:
        """Return (segment, t) for every crossing of the estimate with `target`; t in [0, 1].

        Segment i connects sorted points i and i+1; t is the fraction of the segment.
        A point equal to the target counts as one crossing.
        """
        raw, y = self.sorted_values[0, :, metric], self.scaled_values[0, :, metric]
        target_on_scale = self._target_on_scale(metric, target)[0]
        crossings: list[tuple[int, float]] = []
        for i in range(len(raw)):
            if raw[i] == target:
                crossings.append((i, 0.0) if i < len(raw) - 1 else (i - 1, 1.0))
            elif i < len(raw) - 1 and raw[i + 1] != target and (raw[i] < target) != (raw[i + 1] < target):
                crossings.append((i, float(np.clip((target_on_scale - y[i]) / (y[i + 1] - y[i]), 0.0, 1.0))))
        return crossings

    def _target_on_scale(self, metric: int, target: float) -> np.ndarray:
        """Return `target` on the scale of each row, [1 + R]: plain or log; −inf for the logarithm of a target ≤ 0."""
        return np.where(self.uses_log[:, metric], np.log(target) if target > 0 else -np.inf, target)

    def _position_at(self, metric: int, target: float, segment: int, t: float) -> CurvePosition:
        """Return the position at (segment, t) of the estimate; replicates use their nearest crossings."""
        segments, ts, is_reached = self._nearest_crossings(metric, target, segment, t)
        segments[0], ts[0], is_reached[0] = segment, t, True
        values = self._interpolate(segments, ts)
        values[is_reached, metric] = target
        left, right = int(self.l0_order[0, segment]), int(self.l0_order[0, segment + 1])
        if t in (0.0, 1.0):
            left = right = left if t == 0.0 else right
            t = 0.0
        unreached_share = float(1 - is_reached[1:].mean()) if len(is_reached) > 1 else 0.0
        return CurvePosition(values, left, right, t, unreached_share)

    def _nearest_crossings(
        self, metric: int, target: float, segment: int, t: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return segment, t and a mask of rows that reach the target, [1 + R] each.

        Of several crossings, each row takes the one nearest in L0 to the crossing (segment, t) of the estimate. A row
        without a crossing takes the point whose metric is nearest to the target.
        """
        y, x = self.scaled_values[:, :, metric], self.scaled_values[:, :, 0]
        target_on_scale = self._target_on_scale(metric, target)[:, None]
        here = self._interpolate(np.full(len(y), segment), np.full(len(y), t))[0, 0]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            near = np.where(self.uses_log[:, 0], np.log(here), here)[:, None]
            rise, run = np.diff(y, axis=1), np.diff(x, axis=1)
            flat = np.where(run == 0, 0.0, np.clip((near - x[:, :-1]) / run, 0, 1))
            ts = np.where(rise == 0, flat, np.clip((target_on_scale - y[:, :-1]) / rise, 0, 1))
            crosses = (y[:, :-1] - target_on_scale) * (y[:, 1:] - target_on_scale) <= 0
        distance = np.where(crosses, np.abs(x[:, :-1] + ts * run - near), np.inf)
        segments = np.argmin(distance, axis=1)
        ts = np.take_along_axis(ts, segments[:, None], axis=1)[:, 0]
        is_reached = np.asarray(crosses.any(axis=1))
        stop = np.argmin(np.abs(self.sorted_values[:, :, metric] - target), axis=1)
        last = y.shape[1] - 1
        segments = np.where(is_reached, segments, np.minimum(stop, last - 1))
        return segments, np.where(is_reached, ts, (stop == last).astype(np.float64)), is_reached

    def _interpolate(self, segments: np.ndarray, ts: np.ndarray) -> np.ndarray:
        """Interpolate all m metrics, [1 + R, m]: row i in segment `segments[i]` at fraction `ts[i]`.

        Row 0 is the measurement, rows 1 … R are its bootstrap replicates. Values are clamped to the segment's two ends.
        """
        rows = np.arange(len(segments))
        a, b = self.sorted_values[rows, segments], self.sorted_values[rows, segments + 1]
        t = ts[:, None]
        between = (1 - t) * self.scaled_values[rows, segments] + t * self.scaled_values[rows, segments + 1]
        with np.errstate(over="ignore"):
            between = np.where(self.uses_log, np.exp(np.where(self.uses_log, between, 0.0)), between)
        between = np.clip(between, np.minimum(a, b), np.maximum(a, b))
        return np.where(t == 0, a, np.where(t == 1, b, between))
