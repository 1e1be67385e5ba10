"""Adam with β₁ = 0, exact for rows that are updated only at some steps (arXiv 1412.6980; β₁ = 0: arXiv 2407.14435).

    v ← β₂·v + (1 − β₂)·g²          w ← w − lr·g / (√(v/(1 − β₂ᵗ)) + ε)

With β₁ = 0 a zero gradient changes no weight and only decays v. So a row that was last updated at step s and is updated
again at step t needs v ← β₂^(t−s)·v first, and nothing in between. Conditions: t is the global step; no weight decay;
no weight averaging; the support is the union over every term of the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AdamStep(NamedTuple):
    """The constants of one Adam step."""

    lr: float
    beta2: float
    epsilon: float
    step: int
    """This step's number, from 1."""

    @property
    def correction(self) -> float:
        """Return 1/√(1 − β₂ᵗ): √v times this is the bias-corrected √v."""
        return (1.0 - self.beta2**self.step) ** -0.5


def adam_update_(w: Tensor, v: Tensor, g: Tensor, adam: AdamStep, rate: float = 1.0) -> None:
    """Apply one dense step to w with second moment v, in place. g: the gradient; rate: learning rate in units of lr."""
    v.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
    w.sub_(adam.lr * rate * g / (v.sqrt() * adam.correction + adam.epsilon))


def lazy_adam_update_(w: Tensor, v: Tensor, g: Tensor, rows: Tensor, skipped: Tensor, adam: AdamStep) -> None:
    """Apply one lazy step to the rows `rows` [n] of w [M, d] with second moments v, in place.

    g [n, d]: their gradients; skipped [n]: steps since each was last updated, this one included (t − s ≥ 1).
    """
    decay = torch.pow(torch.tensor(adam.beta2, dtype=torch.float64, device=w.device), skipped.double()).to(w.dtype)
    moment = v[rows] * decay[:, None] + (1 - adam.beta2) * g * g
    v[rows] = moment
    w[rows] = w[rows] - adam.lr * g / (moment.sqrt() * adam.correction + adam.epsilon)


def remove_radial_component(g: Tensor, w: Tensor) -> Tensor:
    """Return g without its component along the unit rows w; both [n, d]."""
    return g - (g * w).sum(1, keepdim=True) * w
