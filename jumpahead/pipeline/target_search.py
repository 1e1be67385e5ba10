"""The next L0 to train at, so that an SAE has a requested delta LM loss: interpolation on what is trained so far.

Between two SAEs, log delta LM loss is taken as linear in log L0; beyond the trained ones, the line through the two
nearest goes on, by a factor of `MAX_STEP` at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

MAX_ROUNDS = 3
"""Largest number of SAEs trained for one requested loss, per seed."""
TOLERANCE = 0.03
"""Accepted relative deviation from the requested delta LM loss."""
MAX_STEP = 4.0
"""Largest factor by which L0 goes beyond what is trained, at once."""
MIN_L0 = 1.0
WIDTH_SHARE = 0.25
"""Largest L0 that is tried, as a share of the width."""
DIGITS = 3
"""Significant digits of a requested L0."""


class TrainedPoint(NamedTuple):
    """A sparsity setting that is trained, and its delta LM loss on the calibration text."""

    l0: float
    """The requested L0 (or k); of a fixed λ, the measured L0."""
    loss: float
    """Delta LM loss, the mean over seeds."""
    error: float
    """Standard error of the loss."""


def is_reached(point: TrainedPoint, target: float) -> bool:
    """Return True if a point has the requested loss, within `TOLERANCE` or one standard error, whichever is larger."""
    return abs(point.loss - target) <= max(TOLERANCE * target, point.error)


def closest(points: Sequence[TrainedPoint], target: float) -> int:
    """Return the index of the point whose loss is closest to the target."""
    return min(range(len(points)), key=lambda i: abs(points[i].loss - target))


def next_l0(points: Sequence[TrainedPoint], target: float, width: int, *, is_integer: bool = False) -> float | None:
    """Return the L0 at which the target is expected; None if it is trained already, or beyond the limits.

    points: at least one. width: number of features. is_integer: the architecture keeps whole features.
    """
    ordered = sorted(points)
    wanted = _expected_l0(ordered, target)
    limited = min(max(wanted, MIN_L0, ordered[0].l0 / MAX_STEP), WIDTH_SHARE * width, ordered[-1].l0 * MAX_STEP)
    rounded = float(round(limited)) if is_integer else float(f"{limited:.{DIGITS}g}")
    return None if any(math.isclose(rounded, point.l0, rel_tol=1e-9) for point in points) else rounded


def _expected_l0(ordered: Sequence[TrainedPoint], target: float) -> float:
    """Return the L0 of the target on the line through the two points about it, or through the two nearest to it."""
    for left, right in itertools.pairwise(ordered):
        if left.loss >= target >= right.loss and left.loss > right.loss:
            return _on_line(left, right, target)
    is_too_sparse = all(point.loss > target for point in ordered)
    outer = ordered[-1] if is_too_sparse else ordered[0]
    inner = (ordered[-2] if is_too_sparse else ordered[1]) if len(ordered) > 1 else None
    step = MAX_STEP if is_too_sparse else 1 / MAX_STEP
    if inner is None:
        return outer.l0 * math.sqrt(step)
    left, right = sorted((inner, outer))
    if not _falls(left, right):
        return outer.l0 * math.sqrt(step)
    return _on_line(left, right, target)


def _falls(left: TrainedPoint, right: TrainedPoint) -> bool:
    """Return True if the loss falls with L0, so that the line through two points leads to every loss."""
    return right.l0 > left.l0 and left.loss > right.loss


def _on_line(left: TrainedPoint, right: TrainedPoint, target: float) -> float:
    """Return the L0 of the target on the line through two points: log in L0, and in the loss if all are positive."""
    is_log = min(left.loss, right.loss, target) > 0
    a, b, y = (math.log(loss) if is_log else loss for loss in (left.loss, right.loss, target))
    t = min(max((y - a) / (b - a), -50.0), 50.0)
    return math.exp((1 - t) * math.log(left.l0) + t * math.log(right.l0))
