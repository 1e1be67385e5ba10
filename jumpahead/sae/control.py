"""Steering towards a requested L0.

    L̄0 ← L̄0 + s·(L0 − L̄0)                 smoothed over about 1/s steps
    e   = clip(log(L̄0/L0*), −1, 1)          positive while too many features are active
    λ  ← λ·exp(g·e)                         the slow hand: finds the price at which L0* is an optimum
    θ_j ← θ_j·exp(h·e)                      the quick hand: holds L0 meanwhile (an architecture's `steer`)

g is the recipe's `control_gain`, h its `steering`: at 0.05, since L0 falls about as the third power of the thresholds,
an error halves in five steps.

λ alone is too slow for short runs: it acts through θ's own learning rate, which ends at zero. Moving all thresholds
together acts at once and at any learning rate; λ then finds the value at which nothing is left to move. A pure function
of what it has seen: resuming continues exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SMOOTHING = 0.3
"""s."""


class Control(NamedTuple):
    """The controller's state."""

    sparsity: float
    """λ now."""
    l0: float
    """Smoothed L0, features per token."""

    def after(self, l0: float, target: float, gain: float) -> Control:
        """The state after a step whose batch had `l0` active features per token. gain: g."""
        smooth = self.l0 + SMOOTHING * (l0 - self.l0)
        return Control(self.sparsity * math.exp(gain * relative(smooth, target)), smooth)

    def steering(self, target: float, gain: float) -> float:
        """What to add to every log θ now. gain: h."""
        return gain * relative(self.l0, target)


def relative(l0: float, target: float) -> float:
    """e: log(l0/target), within ±1."""
    return max(-1.0, min(1.0, math.log(max(l0, 1e-9) / target)))
