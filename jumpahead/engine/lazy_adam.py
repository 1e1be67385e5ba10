"""Lazy Adam: Adam for rows that get a gradient only at some steps (arXiv 1412.6980), without and with momentum.

    v ← β₂·v + (1 − β₂)·g²          w ← w − lr·g / (√(v/(1 − β₂ᵗ)) + ε)

Without momentum (β₁ = 0, as in arXiv 2407.14435) it equals dense Adam: a zero gradient changes no weight and only
decays v. So a row that was last updated at step s and is updated again at step t needs v ← β₂^(t−s)·v first, and
nothing in between. Conditions: t is the global step; no weight decay; no weight averaging; the support is the union
over every term of the loss.

With momentum (β₁ > 0) it is **lazy Adam with row momentum**, another algorithm than dense Adam: the first moment of a
row of W_enc or W_dec changes, and acts, only in steps in which the row's gradient (of the whole loss, before the radial
component is removed) is not exactly zero,

    m ← β₁·m + (1 − β₁)·g           w ← w − lr·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)           if g ≠ 0

while v decays in every step, as above. [M] and [d] vectors are updated densely, so their momentum is Adam's.
`engine/reference.py` states the same densely; docs/LOG.md, 2026-11-30, compares it with dense Adam.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AdamStep(NamedTuple):
    """The constants of one Adam step."""

    lr: float
    beta1: float
    """β₁; 0: no first moments."""
    beta2: float
    epsilon: float
    step: int
    """This step's number, from 1."""

    @property
    def correction(self) -> float:
        """Return 1/√(1 − β₂ᵗ): √v times this is the bias-corrected √v."""
        return (1.0 - self.beta2**self.step) ** -0.5

    @property
    def momentum_correction(self) -> float:
        """Return 1/(1 − β₁ᵗ): m times this is the bias-corrected m."""
        return 1.0 / (1.0 - self.beta1**self.step)


def adam_update_(w: Tensor, m: Tensor | None, v: Tensor, g: Tensor, adam: AdamStep, rate: float = 1.0) -> None:
    """Apply one dense step to w with moments m and v, in place.

    m: None without momentum. g: the gradient. rate: learning rate in units of lr.
    """
    v.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
    if m is not None:
        g = m.mul_(adam.beta1).add_(g, alpha=1 - adam.beta1) * adam.momentum_correction
    w.sub_(adam.lr * rate * g / (v.sqrt() * adam.correction + adam.epsilon))


def lazy_adam_update_(
    w: Tensor, m: Tensor | None, v: Tensor, g: Tensor, rows: Tensor, skipped: Tensor, has_gradient: Tensor,
    adam: AdamStep,
) -> None:  # fmt: skip
    """Apply one lazy step to the rows `rows` [n] of w [M, d] with moments m and v, in place.

    m: None without momentum. g [n, d]: their gradients. skipped [n]: steps since each was last updated, this one
    included (t − s ≥ 1). has_gradient [n] bool: False for rows whose gradient is exactly zero: only their v decays.
    """
    decay = torch.pow(torch.tensor(adam.beta2, dtype=torch.float64, device=w.device), skipped.double()).to(w.dtype)
    moment = v[rows] * decay[:, None] + (1 - adam.beta2) * g * g
    v[rows] = moment
    if m is not None:
        momentum = adam.beta1 * m[rows] + (1 - adam.beta1) * g
        m[rows] = torch.where(has_gradient[:, None], momentum, m[rows])
        g = torch.where(has_gradient[:, None], momentum * adam.momentum_correction, 0.0)
    w[rows] = w[rows] - adam.lr * g / (moment.sqrt() * adam.correction + adam.epsilon)


def remove_radial_component(g: Tensor, w: Tensor) -> Tensor:
    """Return g without its component along the unit rows w; both [n, d]."""
    return g - (g * w).sum(1, keepdim=True) * w
