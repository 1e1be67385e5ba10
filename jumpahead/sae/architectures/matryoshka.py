"""Matryoshka SAE — Learning Multi-Level Features, https://arxiv.org/abs/2503.17547 — with BatchTopK and AuxK

    π    = W_enc·(x − b_dec) + b_enc
    f    = ReLU(BatchTopK(π))                       one selection among all features, and of a saved SAE one threshold:
                                                    see batchtopk.py
    m_1 < … < m_G = M                               the features are split into G groups: shares of the width M
    x̂_g  = Σ_{j ≤ m_g} f_j d_j + b_dec              of the first g groups alone; rows of W_dec have norm one
    x̂    = x̂_G
    L    = Σ_g w_g·‖x − x̂_g‖² + α·(Var x/Var e)·‖e − ê‖²        means over tokens; e = x − x̂ and AuxK as in topk.py

    ∂L/∂x̂_g, through all that x̂_g is part of:  r_g = Σ_{h ≥ g} 2w_h·(x̂_h − x)
    ∂L/∂f_j = r_g·d_j,   ∂L/∂d_j = Σ_tokens f_j·r_g             for every feature j of group g

So each feature is projected on one residual, that of its group: nesting costs no more decoding than one x̂. A saved SAE
is decoded with all features, in the order of the groups; each prefix of m_g features reconstructs x by itself.

Departures from the paper: those of batchtopk.py. The groups are those of its Gemma 2 SAEs (2,048, 6,144, 14,336, 30,720
and 65,536 features), as shares of the width: 1/32, 1/16, 1/8, 1/4 and the rest; w_g = 1, as it sums the errors (its
code takes their mean and each weight 1/G, which makes AuxK G² times as heavy relative to them).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor

from jumpahead.sae.architecture import Setting
from jumpahead.sae.architectures.batchtopk import BatchTopK
from jumpahead.sae.auxk import AuxKOptions
from jumpahead.sae.bounds import NotEmpty
from jumpahead.sae.gradients import Reconstruction
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Recipe
from jumpahead.sae.support import DEAD, MAIN, Entries, Number


@dataclass(frozen=True, kw_only=True)
class MatryoshkaOptions(AuxKOptions):
    """Options of a `matryoshka` series."""

    groups: Annotated[tuple[float, ...], NotEmpty()] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Share of the width of each group of features, from the first features to the last; together 1."""
    weights: tuple[float, ...] | None = None
    """w_g, the weight of each group's nested reconstruction error; None: 1 for each."""

    def contradiction(self, kind: str) -> str:
        if not (min(self.groups) > 0 and abs(sum(self.groups) - 1) < 1e-6):
            return f"groups are shares of the width: positive, together 1 instead of {sum(self.groups):.6g}."
        if self.weights is None:
            return ""
        if len(self.weights) != len(self.groups):
            return f"weights has {len(self.weights)} numbers for {len(self.groups)} groups: give one for each."
        if not all(0 <= weight < float("inf") for weight in self.weights) or self.weights[-1] == 0:
            return "weights are finite and at least 0, and the last, that of all features, above 0."
        return ""


class Matryoshka(BatchTopK):
    """The Matryoshka BatchTopK SAE; equations in the module's docstring."""

    name, title = "matryoshka", "Matryoshka BatchTopK"
    Options = MatryoshkaOptions
    options: MatryoshkaOptions  # pyright: ignore[reportIncompatibleVariableOverride] — set once, in __init__

    def __init__(self, options: MatryoshkaOptions, setting: Setting | None, recipe: Recipe | None):
        super().__init__(options, setting, recipe)
        first, missed = self.reconstructions
        further = Reconstruction("input", trains_decoder=True, adds_bias=False, extends_previous=True)
        self.reconstructions = (first, *[further] * (len(options.groups) - 1), missed)

    @property
    def group_weights(self) -> tuple[float, ...]:
        """Return the loss weight w_g of every group of features."""
        return self.options.weights or (1.0,) * len(self.options.groups)

    def group_ends(self, width: int) -> list[int]:
        """Return the end m_g of every group: group g holds the features below m_g that no earlier group holds.

        Every m_g is at least 1. At a small width, some groups are empty.
        """
        ends = [max(1, round(width * share)) for share in accumulate(self.options.groups)]
        return [*ends[:-1], width]

    def derive(self, params: Params) -> Params:
        feature = torch.arange(len(params["W_enc"]), device=params["W_enc"].device)
        group = torch.zeros_like(feature)
        for end in self.group_ends(len(feature))[:-1]:
            group += feature >= end
        return {"group": group}

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        f, group = entries.pre.relu(), entries.per_feature(derived["group"])
        main = f * entries.part_mask(MAIN)
        nested = tuple(main * (group == g) for g in range(len(self.options.groups)))
        return nested if entries.part is None else (*nested, f * entries.part_mask(DEAD))

    def features(self, values: tuple[Tensor, ...]) -> Tensor:
        return sum(values[1 : len(self.options.groups)], start=values[0])

    def error_weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        return *self.group_weights, super().error_weights(x, errors)[-1]

    def loss_and_error(self, params: Params, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        error, total, start = x - params["b_dec"], x.new_zeros(()), 0
        for end, weight in zip(self.group_ends(f.shape[1]), self.group_weights, strict=True):
            error = error - f[:, start:end] @ params["W_dec"][start:end]
            total = total + weight * error.square().sum(1).mean()
            start = end
        return total, error


ARCHITECTURE = Matryoshka
