"""The controller of λ and the thresholds for a requested L0: integral action on λ, proportional action on θ.

    L̄0 ← L̄0 + s·(L0 − L̄0)                 smoothed over about 1/s steps
    e   = clip(log(L̄0/L0*), −1, 1)          positive while too many features are active
    c  ← c·exp(g·e)                         integral action: finds the penalty scale at which L0* is an optimum
    θ_j ← θ_j·exp(h·e)                      proportional action (an architecture's `shift_thresholds`): holds L0
    λ  = c·u                                u: the architecture's `sparsity_coefficient_scale`, 1 by default

g is the recipe's `integral_gain`, h its `proportional_gain`: by default the architecture's `controller_gains`, larger
at a high learning rate. At h = 0.1, since L0 falls about as the third power of the thresholds, an error halves in two
steps.

Adjusting λ alone is too slow for short runs: λ changes L0 through gradient steps of θ, at a learning rate that ends at
zero. Shifting all thresholds together changes L0 at once, at any learning rate. The penalty scale then converges to the
value that needs no further shift. If u is computed from the thresholds, as in JumpReLU (u = (median θ)², c ends at 0.6
to 0.9), λ is about right from the first step. The state depends only on the observed L0 values: resuming is exact.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jumpahead.sae.support import Number

SMOOTHING = 0.3
"""s, the weight of the newest batch in the smoothed L0."""


class ControllerState(NamedTuple):
    """The controller's state: floats, or 0-d float64 tensors if training is asynchronous."""

    penalty_scale: Number
    """c, the penalty scale: λ = c·u."""
    l0: Number
    """Smoothed L0, features per token."""

    def updated(self, l0: Number, target: float, gain: float) -> ControllerState:
        """Return the state after a step.

        l0: mean number of active features per token of the step's batch.
        target: the requested L0.
        gain: the integral gain g.
        """
        smooth = self.l0 + SMOOTHING * (l0 - self.l0)
        return ControllerState(self.penalty_scale * exp(gain * clipped_log_ratio(smooth, target)), smooth)

    def threshold_shift(self, target: float, gain: float) -> Number:
        """Return the shift to add to every log θ in this step.

        target: the requested L0.
        gain: the proportional gain h.
        """
        return gain * clipped_log_ratio(self.l0, target)

    def to_floats(self) -> ControllerState:
        """Return the state as Python floats; waits for the device."""
        return ControllerState(float(self.penalty_scale), float(self.l0))


def clipped_log_ratio(l0: Number, target: float) -> Number:
    """Return the control error e = log(l0/target), clipped to ±1."""
    if isinstance(l0, int | float):
        return max(-1.0, min(1.0, math.log(max(l0, 1e-9) / target)))
    return (l0.clamp_min(1e-9) / target).log().clamp(-1.0, 1.0)


def exp(value: Any) -> Any:
    """Return e^value of a float or a tensor."""
    return math.exp(value) if isinstance(value, int | float) else value.exp()
