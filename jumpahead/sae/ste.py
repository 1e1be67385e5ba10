"""Straight-through estimators for thresholds (arXiv 2407.14435, section 3 and equations 11–12).

    JumpReLU_θ(z) = z·H(z − θ)                      H(0) = 0
    ∂ JumpReLU_θ(z)/∂z := H(z − θ)                  the true derivative; `to_input` adds (θ/ε)·K((z − θ)/ε)
    ∂ JumpReLU_θ(z)/∂θ := −(θ/ε)·K((z − θ)/ε)       pseudo-derivative
    ∂ H(z − θ)/∂z      := 0
    ∂ H(z − θ)/∂θ      := −(1/ε)·K((z − θ)/ε)       pseudo-derivative
    K(u) = 1 for |u| < 1/2, else 0                  integrates to 1

Units: z, θ and ε are pre-activations in the unit E‖x‖² = 1. Both functions must be given the *pre*-activation: if H is
applied to f = JumpReLU(z) instead, entries of the window below θ are lost. These are the dense functions, for autograd;
`entry_gradients` in `architectures/jumprelu.py` computes the same gradients on the support.

B = tokens, M = features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rectangle(z: Tensor, theta: Tensor, epsilon: Tensor) -> Tensor:
    """Return K((z − θ)/ε): 1 where θ − ε/2 < z < θ + ε/2, else 0; [B, M], dtype of z. z: [B, M]. θ, ε: [M]."""
    return ((z > theta - epsilon / 2) & (z < theta + epsilon / 2)).to(z.dtype)


class JumpReLUFunction(torch.autograd.Function):
    """z·H(z − θ) for autograd, with the pseudo-derivative in θ; if `to_input`, its negative is added to that in z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, epsilon: Tensor, to_input: bool) -> Tensor:
        ctx.save_for_backward(z, theta, epsilon)
        ctx.to_input = to_input
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, theta, epsilon = ctx.saved_tensors
        (grad,) = grad_outputs
        d_theta = -(theta / epsilon) * rectangle(z, theta, epsilon) * grad
        d_z = (z > theta) * grad
        return d_z - d_theta if ctx.to_input else d_z, d_theta.sum(tuple(range(z.dim() - 1))), None, None


class StepFunction(torch.autograd.Function):
    """H(z − θ) for autograd, with the pseudo-derivative in θ and derivative zero in z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, epsilon: Tensor) -> Tensor:
        ctx.save_for_backward(z, theta, epsilon)
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        z, theta, epsilon = ctx.saved_tensors
        (grad,) = grad_outputs
        d_theta = -(1 / epsilon) * rectangle(z, theta, epsilon) * grad
        return None, d_theta.sum(tuple(range(z.dim() - 1))), None


def jumprelu(z: Tensor, theta: Tensor, epsilon: Tensor, to_input: bool = False) -> Tensor:
    """Return JumpReLU_θ(z), elementwise, [B, M].

    z: [B, M] pre-activations. theta, epsilon: [M]. to_input: add the pseudo-derivative to the gradient of z too.
    """
    return JumpReLUFunction.apply(z, theta, epsilon, to_input)


def step(z: Tensor, theta: Tensor, epsilon: Tensor) -> Tensor:
    """Return H(z − θ), elementwise: 0 or 1, [B, M]. z: [B, M] pre-activations. theta, epsilon: [M]."""
    return StepFunction.apply(z, theta, epsilon)
