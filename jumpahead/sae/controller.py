"""Steering towards a requested L0.

    L̄0 ← L̄0 + s·(L0 − L̄0)                 smoothed over about 1/s steps
    e   = clip(log(L̄0/L0*), −1, 1)          positive while too many features are active
    c  ← c·exp(g·e)                         the slow hand: finds the price at which L0* is an optimum
    θ_j ← θ_j·exp(h·e)                      the quick hand: holds L0 meanwhile (an architecture's `steer`)
    λ  = c·u                                u: the architecture's `sparsity_unit`, 1 where it has none

g is the recipe's `control_gain`, h its `steering`: by default the architecture's `hands`, quicker at a high learning
rate. At h = 0.1, since L0 falls about as the third power of the thresholds, an error halves in two steps.

λ alone is too slow for short runs: it acts through θ's own learning rate, which ends at zero. Moving all thresholds
together acts at once and at any learning rate; the price then finds the value at which nothing is left to move. Where
thresholds say what λ must be about, as in JumpReLU (u = (median θ)², c ends at 0.6 to 0.9), λ is there at once. A pure
function of what it has seen: resuming continues exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jumpahead.sae.base import Number

SMOOTHING = 0.3
"""s."""


class Control(NamedTuple):
    """The controller's state: floats, or 0-d float64 tensors where training does not wait for its device."""

    price: Number
    """c."""
    l0: Number
    """Smoothed L0, features per token."""

    def after(self, l0: Number, target: float, gain: float) -> Control:
        """The state after a step whose batch had `l0` active features per token. gain: g."""
        smooth = self.l0 + SMOOTHING * (l0 - self.l0)
        return Control(self.price * exp(gain * relative(smooth, target)), smooth)

    def steering(self, target: float, gain: float) -> Number:
        """What to add to every log θ now. gain: h."""
        return gain * relative(self.l0, target)

    def read(self) -> Control:
        """As floats."""
        return Control(float(self.price), float(self.l0))


def relative(l0: Number, target: float) -> Number:
    """e: log(l0/target), within ±1."""
    if isinstance(l0, int | float):
        return max(-1.0, min(1.0, math.log(max(l0, 1e-9) / target)))
    return (l0.clamp_min(1e-9) / target).log().clamp(-1.0, 1.0)


def exp(growth: Any) -> Any:
    """e^growth, of a float or a tensor."""
    return math.exp(growth) if isinstance(growth, int | float) else growth.exp()
