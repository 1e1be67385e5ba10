"""Adam with β₁ = 0, exact when rows are touched only now and then (arXiv 1412.6980; β₁ = 0: arXiv 2407.14435).

    v ← β₂·v + (1 − β₂)·g²          w ← w − lr·g / (√(v/(1 − β₂ᵗ)) + ε)

With β₁ = 0 a zero gradient moves nothing and only decays v. So a row that was last touched at step s and is touched
again at step t needs v ← β₂^(t−s)·v first, and nothing in between. Conditions: t is the global step; no weight decay;
no averaging of weights; the support is the union over every term of the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """One step's constants."""

    lr: float
    beta2: float
    epsilon: float
    t: int
    """This step's number, from 1."""

    @property
    def correction(self) -> float:
        """1/√(1 − β₂ᵗ): √v times this is the bias-corrected √v."""
        return (1.0 - self.beta2**self.t) ** -0.5


def update_(w: Tensor, v: Tensor, g: Tensor, adam: Adam, rate: float = 1.0) -> None:
    """One dense step on w, with second moment v, in place."""
    v.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
    w.sub_(adam.lr * rate * g / (v.sqrt() * adam.correction + adam.epsilon))


def update_rows_(w: Tensor, v: Tensor, g: Tensor, rows: Tensor, skipped: Tensor, adam: Adam) -> None:
    """One lazy step on `rows` of w [M, d], in place. g [n, d] their gradients; skipped [n] steps since each was last
    touched, this one included (t − s ≥ 1)."""
    decay = torch.pow(torch.tensor(adam.beta2, dtype=torch.float64, device=w.device), skipped.double()).to(w.dtype)
    moment = v[rows] * decay[:, None] + (1 - adam.beta2) * g * g
    v[rows] = moment
    w[rows] = w[rows] - adam.lr * g / (moment.sqrt() * adam.correction + adam.epsilon)


def without_radial(g: Tensor, w: Tensor) -> Tensor:
    """g without its component along the unit rows w. Both [n, d]."""
    return g - (g * w).sum(1, keepdim=True) * w
