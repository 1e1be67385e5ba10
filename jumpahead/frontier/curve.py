"""One measured curve, and what lies between its points.

    R  bootstrap replicates, row 0 being the estimate     n  points of the curve     m  metrics, the first being L0

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
SNAP = 0.01
"""A target beyond an end by at most this share of it is answered with that end's own values, which are shown."""


class Estimate(NamedTuple):
    """A number with its interval; None where there is none (0 / 0, no replicates)."""

    value: float | None
    low: float | None = None
    high: float | None = None


def estimate(values: np.ndarray) -> Estimate:
    """From [1 + R]: the estimate, and the central 95 % of the replicates, reaching at least to the estimate.

    (Of a count, 39 in 40 replicates can be equal to each other and all lie on one side of it.)
    """
    if not np.isfinite(values[0]):
        return Estimate(None)
    replicates = values[1:][np.isfinite(values[1:])]
    if len(replicates) < 2:
        return Estimate(float(values[0]))
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))


def centred(value: float, replicates: np.ndarray, clusters: int) -> np.ndarray:
    """value + √(G/(G−1)) · (replicates − their mean): [R], for G clusters.

    Resampling makes some counts larger on average (a feature that fires in one document only is dead in every
    replicate without it), which says nothing about the spread; and the variance of a bootstrap mean is (G−1)/G of
    the unbiased one. Both are undone here. One cluster has no spread: [0].
    """
    replicates = np.asarray(replicates, np.float64)
    if len(replicates) < 2 or clusters < 2:
        return np.empty(0)
    deviations = replicates - replicates.mean() if np.ptp(replicates) else np.zeros(len(replicates))
    return value + np.sqrt(clusters / (clusters - 1)) * deviations


class Place(NamedTuple):
    """Somewhere on a curve: on a point, or between two neighbours."""

    values: np.ndarray
    """[1 + R, m] every metric there."""
    left: int
    """The point before, in the order in which the points were given."""
    right: int
    """The point after; the same as `left` on a point."""
    t: float
    """How far from `left` to `right`, 0 to 1."""
    beyond: float
    """Share of replicates whose curve does not reach the target."""


@dataclass(frozen=True)
class Curve:
    """A curve through n points, with its replicates."""

    values: np.ndarray
    """[1 + R, n, m]; row 0 is the estimate, column 0 of the metrics is L0."""
    is_log: tuple[bool, ...]
    """[m] metrics that are positive beyond doubt; a replicate with one that is not falls back to plain values."""

    @cached_property
    def order(self) -> np.ndarray:
        """[1 + R, n] each row's points in the order of L0; equal L0: the larger second metric (the loss) first."""
        second = -self.values[:, :, 1] if self.values.shape[2] > 1 else self.values[:, :, 0]
        return np.lexsort((second, self.values[:, :, 0]), axis=-1)

    @cached_property
    def sorted(self) -> np.ndarray:
        """[1 + R, n, m] values in that order."""
        return np.take_along_axis(self.values, self.order[:, :, None], axis=1)

    @cached_property
    def uses_log(self) -> np.ndarray:
        """[1 + R, m] whether a row's metric is interpolated in its logarithm."""
        return np.asarray(self.is_log) & (self.sorted > 0).all(axis=1)

    @cached_property
    def scaled(self) -> np.ndarray:
        """[1 + R, n, m] sorted values, in logarithms where those are used."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.uses_log[:, None, :], np.log(self.sorted), self.sorted)

    def range(self, metric: int) -> tuple[float, float]:
        """Smallest and largest measured value of a metric."""
        measured = self.values[0, :, metric]
        return float(measured.min()), float(measured.max())

    def at_point(self, index: int) -> Place:
        """On a point, counted as given."""
        return Place(self.values[:, index, :], index, index, 0.0, 0.0)

    def end(self, metric: int, target: float) -> Place:
        """On the point whose metric is nearest to the target; of several, the one with the smallest L0."""
        by_l0 = self.order[0]
        return self.at_point(int(by_l0[np.argmin(np.abs(self.values[0, by_l0, metric] - target))]))

    def find(self, metric: int, target: float) -> list[Place]:
        """All places where the curve meets the target, by increasing L0; none where it lies outside the range."""
        low, high = self.range(metric)
        if not low <= target <= high:
            nearest = low if target < low else high
            is_near = abs(target - nearest) <= SNAP * abs(nearest)
            return [self.end(metric, nearest)] if is_near else []
        if len(self.order[0]) == 1:
            return [self.at_point(0)]
        return [self._place(metric, target, segment, t) for segment, t in self._crossings(metric, target)]

    def _crossings(self, metric: int, target: float) -> list[tuple[int, float]]:
        """(segment, t) of every crossing of the estimate; a point that is exactly on the target is one crossing."""
        raw, y = self.sorted[0, :, metric], self.scaled[0, :, metric]
        wanted = self._scaled_target(metric, target)[0]
        found: list[tuple[int, float]] = []
        for i in range(len(raw)):
            if raw[i] == target:
                found.append((i, 0.0) if i < len(raw) - 1 else (i - 1, 1.0))
            elif i < len(raw) - 1 and raw[i + 1] != target and (raw[i] < target) != (raw[i + 1] < target):
                found.append((i, float(np.clip((wanted - y[i]) / (y[i + 1] - y[i]), 0.0, 1.0))))
        return found

    def _scaled_target(self, metric: int, target: float) -> np.ndarray:
        """[1 + R] the target as each row's scale has it; −inf where a logarithm is asked of what is not positive."""
        return np.where(self.uses_log[:, metric], np.log(target) if target > 0 else -np.inf, target)

    def _place(self, metric: int, target: float, segment: int, t: float) -> Place:
        segments, ts, is_reached = self._nearest_crossings(metric, target, segment, t)
        segments[0], ts[0], is_reached[0] = segment, t, True
        values = self._interpolate(segments, ts)
        values[is_reached, metric] = target
        left, right = int(self.order[0, segment]), int(self.order[0, segment + 1])
        if t in (0.0, 1.0):
            left = right = left if t == 0.0 else right
            t = 0.0
        beyond = float(1 - is_reached[1:].mean()) if len(is_reached) > 1 else 0.0
        return Place(values, left, right, t, beyond)

    def _nearest_crossings(
        self, metric: int, target: float, segment: int, t: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row, the crossing nearest in L0 to that of the estimate: segment, t, and whether there is one at all.

        A row that never meets the target stops at its point with the nearest value.
        """
        y, x = self.scaled[:, :, metric], self.scaled[:, :, 0]
        wanted = self._scaled_target(metric, target)[:, None]
        here = self._interpolate(np.full(len(y), segment), np.full(len(y), t))[0, 0]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            near = np.where(self.uses_log[:, 0], np.log(here), here)[:, None]
            rise, run = np.diff(y, axis=1), np.diff(x, axis=1)
            flat = np.where(run == 0, 0.0, np.clip((near - x[:, :-1]) / run, 0, 1))
            ts = np.where(rise == 0, flat, np.clip((wanted - y[:, :-1]) / rise, 0, 1))
            crosses = (y[:, :-1] - wanted) * (y[:, 1:] - wanted) <= 0
        distance = np.where(crosses, np.abs(x[:, :-1] + ts * run - near), np.inf)
        segments = np.argmin(distance, axis=1)
        ts = np.take_along_axis(ts, segments[:, None], axis=1)[:, 0]
        is_reached = np.asarray(crosses.any(axis=1))
        stop = np.argmin(np.abs(self.sorted[:, :, metric] - target), axis=1)
        last = y.shape[1] - 1
        segments = np.where(is_reached, segments, np.minimum(stop, last - 1))
        return segments, np.where(is_reached, ts, (stop == last).astype(np.float64)), is_reached

    def _interpolate(self, segments: np.ndarray, ts: np.ndarray) -> np.ndarray:
        """[1 + R, m] every metric at (segment, t) of each row; never outside what the two ends measured."""
        rows = np.arange(len(segments))
        a, b = self.sorted[rows, segments], self.sorted[rows, segments + 1]
        t = ts[:, None]
        between = (1 - t) * self.scaled[rows, segments] + t * self.scaled[rows, segments + 1]
        with np.errstate(over="ignore"):
            between = np.where(self.uses_log, np.exp(np.where(self.uses_log, between, 0.0)), between)
        between = np.clip(between, np.minimum(a, b), np.maximum(a, b))
        return np.where(t == 0, a, np.where(t == 1, b, between))
