"""Parameters of an SAE: their initial values, and rescaling to decoder rows of norm one."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.sae.recipe import Recipe

Params = dict[str, Tensor]
"""Tensors by name: W_enc and W_dec [M, d], b_dec [d], and the architecture's [M] vectors."""


def with_unit_rows(params: Params) -> Params:
    """Return W_enc, W_dec and b_enc with unit d_j and π_j ← ‖d_j‖·π_j, float64: the same SAE if f scales with π."""
    norms = params["W_dec"].double().norm(dim=1).clamp_min(1e-30)
    return {
        "W_enc": params["W_enc"].double() * norms[:, None],
        "W_dec": params["W_dec"].double() / norms[:, None],
        "b_enc": params["b_enc"].double() * norms,
    }


def unit_rows(d: int, width: int, generator: torch.Generator) -> Tensor:
    """Return [width, d] He-uniform rows, each rescaled to norm one (Gemma Scope section 3.2)."""
    rows = torch.rand(width, d, generator=generator) * 2 - 1
    return rows / rows.norm(dim=1, keepdim=True)


def initial_parameters(
    d: int, width: int, generator: torch.Generator, sample: Tensor, recipe: Recipe
) -> tuple[Params, Tensor]:
    """Return the initial parameters that most architectures share, and π [n, M] of (a part of) the sample.

    W_dec has unit rows, W_enc starts as a copy of it, b_enc at zero, b_dec at the mean of the sample or at zero.
    """
    w_dec = unit_rows(d, width, generator)
    b_dec = sample.mean(0) if recipe.centre_b_dec else torch.zeros(d)
    params = {"W_enc": w_dec.clone(), "W_dec": w_dec, "b_enc": torch.zeros(width), "b_dec": b_dec}
    some = sample[: max(64, min(len(sample), 2**24 // width))]
    return params, (some - b_dec) @ w_dec.T


def quantile_for_l0(pre: Tensor, l0: float) -> float:
    """Return the threshold that `l0` entries per token of pre [n, M] reach."""
    return float(torch.topk(pre.flatten(), max(1, round(l0 * len(pre)))).values[-1])
