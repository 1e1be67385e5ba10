"""Parameters of an SAE: initialisation, and rescaling to decoder rows of norm one."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.sae.recipe import Recipe

Params = dict[str, Tensor]
"""Parameter tensors by name: W_enc and W_dec [M, d], b_dec [d], and the architecture's [M] vectors."""


def with_unit_decoder_rows(params: Params) -> Params:
    """Return W_enc, W_dec and b_enc, float64, rescaled so that ‖d_j‖ = 1 and π_j becomes ‖d_j‖·π_j.

    The SAE computes the same x̂ if its features f are proportional to π.
    """
    norms = params["W_dec"].double().norm(dim=1).clamp_min(1e-30)
    return {
        "W_enc": params["W_enc"].double() * norms[:, None],
        "W_dec": params["W_dec"].double() / norms[:, None],
        "b_enc": params["b_enc"].double() * norms,
    }


def random_unit_rows(d: int, width: int, generator: torch.Generator) -> Tensor:
    """Return random rows [width, d], He-uniform and rescaled to norm one each (Gemma Scope section 3.2)."""
    rows = torch.rand(width, d, generator=generator) * 2 - 1
    return rows / rows.norm(dim=1, keepdim=True)


def initial_parameters(
    d: int, width: int, generator: torch.Generator, sample: Tensor, recipe: Recipe
) -> tuple[Params, Tensor]:
    """Return the initial parameters that most architectures share, and the pre-activations π [n, M] of a subsample.

    W_dec has random unit rows, W_enc is a copy of W_dec, and b_enc is zero. b_dec is the mean of the sample if the
    recipe's `centre_b_dec` is set, and zero otherwise.
    sample: activations in the unit E‖x‖² = 1, one per row.
    """
    w_dec = random_unit_rows(d, width, generator)
    b_dec = sample.mean(0) if recipe.centre_b_dec else torch.zeros(d)
    params = {"W_enc": w_dec.clone(), "W_dec": w_dec, "b_enc": torch.zeros(width), "b_dec": b_dec}
    subsample = sample[: max(64, min(len(sample), 2**24 // width))]
    return params, (subsample - b_dec) @ w_dec.T


def threshold_for_l0(pre: Tensor, l0: float) -> float:
    """Return the threshold on the pre-activations `pre` [n, M] that gives a mean of `l0` active features per token."""
    return float(torch.topk(pre.flatten(), max(1, round(l0 * len(pre)))).values[-1])
