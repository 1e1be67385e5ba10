"""Steering λ towards a requested L0.

    L̄0 ← L̄0 + s·(L0 − L̄0)                       smoothed over about 1/s steps
    λ  ← λ·exp(g·clip(L̄0/L0* − 1, −1, 1))        g = 0.05, s = 0.1

λ rises while too many features are active. It moves by at most e^±g per step, so that a wrong start costs a few hundred
steps and a settled λ only breathes. A pure function of what it has seen: resuming continues exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

GAIN, SMOOTHING = 0.05, 0.1


class Control(NamedTuple):
    """The controller's state."""

    sparsity: float
    """λ now."""
    l0: float
    """Smoothed L0, features per token."""

    def after(self, l0: float, target: float) -> Control:
        """The state after a step whose batch had `l0` active features per token."""
        smooth = self.l0 + SMOOTHING * (l0 - self.l0)
        error = max(-1.0, min(1.0, smooth / target - 1.0))
        return Control(self.sparsity * math.exp(GAIN * error), smooth)
