"""TopK SAE with AuxK — Scaling and Evaluating Sparse Autoencoders, https://arxiv.org/abs/2406.04093

    π    = W_enc·(x − b_dec) + b_enc
    f    = ReLU(TopK_k(π))                          of equal π the lower feature index is kept
    x̂    = W_decᵀ f + b_dec                         rows of W_dec have norm one
    e    = x − x̂, as a constant
    ê    = W_decᵀ ReLU(TopK_kaux(π among dead features))
    L    = ‖x − x̂‖² + α·(Var x/Var e)·‖e − ê‖²      means over tokens; Var x = mean ‖x − x̄‖² of the batch, a constant

A feature is dead when it has not fired for `dead_after` tokens. The support is the kept entries with π > 0: the k of x̂
and the kaux of ê; an entry can belong to both.

Departures from the paper: the whole loss is theirs (both errors normalised by their variance) multiplied by Var x, so
that its unit is the other architectures'; b_dec starts at the mean activation, not at the geometric median; the encoder
is not rescaled at the start; no gradient clipping, no weight averaging. k_aux = d/2, α = 1/32 as published.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from jumpahead.sae import base
from jumpahead.sae.base import (
    DEAD,
    MAIN,
    Affine,
    Architecture,
    Counts,
    Entries,
    Gradients,
    Knobs,
    Largest,
    Params,
    Reconstruction,
    common_parameters,
)


class Options(base.Options):
    """Options of a `topk` series."""

    aux: float = Field(1 / 32, ge=0)
    """α, the weight of AuxK; 0 switches it off."""
    k_aux: int | None = Field(None, gt=0)
    """Dead features per token that reconstruct the residual; None: d/2."""


class TopK(Architecture):
    """See the module's docstring."""

    name, title, order = "topk", "TopK", 2
    colour, dash, symbol = "#009E73", "dot", "triangle-up"
    settings = ("l0", "k")
    keeps_whole = True
    vectors = ("b_enc",)
    Options = Options
    reconstructions = (
        Reconstruction("input", live=True, bias=True),
        Reconstruction("residual", live=True, bias=False),
    )
    options: Options

    @property
    def k(self) -> int:
        """Features kept per token."""
        return max(1, round(self.setting.value))

    @property
    def uses_dead(self) -> bool:
        return self.options.aux > 0

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        return common_parameters(d, width, generator, sample, self.recipe)[0]

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Largest:
        if not training or knobs.dead is None:
            return Largest(self.k)
        return Largest(self.k, knobs.dead, self.options.k_aux or max(1, p["W_enc"].shape[1] // 2))

    def values(self, entries: Entries, p: Params, v: Params) -> tuple[Tensor, ...]:
        f = entries.pre.relu()
        if entries.part is None:
            return (f,)
        return f * entries.within(MAIN), f * entries.within(DEAD)

    def rule(
        self, entries: Entries, values: tuple[Tensor, ...], p: Params, v: Params, knobs: Knobs, counts: Counts
    ) -> Gradients:
        d_pre = Affine(tuple((value > 0).to(value.dtype) for value in values))
        return Gradients(d_pre, {"b_enc": d_pre}, None)

    def weights(self, x: Tensor, errors: Tensor) -> tuple[float, ...]:
        return 1.0, aux_weight(self.options.aux, x, errors)

    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        error = x - largest(pre, self.k) @ p["W_dec"] - p["b_dec"]
        loss = error.square().sum(1).mean()
        selection = self.selection(p, {}, knobs, training=True)
        if selection.dead is None:
            return loss
        e = error.detach()
        dead = largest(pre.masked_fill(~selection.dead, -torch.inf), selection.k_dead)
        return loss + self.weights(x, e)[1] * (e - dead @ p["W_dec"]).square().sum(1).mean()

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return largest(pre, self.k)


def aux_weight(aux: float, x: Tensor, errors: Tensor) -> float:
    """α·Var x/Var e. x, errors [B, d]."""
    variances = [variance(some) for some in (x, errors)]
    return aux * variances[0] / variances[1] if variances[1] > 0 else 0.0


def variance(rows: Tensor) -> float:
    """Σ ‖row − mean row‖² of rows [B, d]."""
    return float(rows.var(0, correction=0).sum(dtype=torch.float64)) * len(rows)


def largest(pre: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each row, zero elsewhere; of equal entries the lower index. pre [..., M] → [..., M]."""
    order = torch.sort(pre, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(pre).scatter(-1, order, pre.gather(-1, order).relu())


ARCHITECTURE = TopK
