"""What architectures with AuxK share (arXiv 2406.04093): features are the largest π, dead ones explain what is left.

x̂ = W_decᵀ f + b_dec          f = ReLU(π) at the entries kept (MAIN), which ones is the architecture's own
e = x − x̂, as a constant
ê = W_decᵀ ReLU(TopK_kaux(π among dead features))                   (DEAD); an entry can belong to both
L = ‖x − x̂‖² + α·(Var x/Var e)·‖e − ê‖²      means over tokens; Var x = mean ‖x − x̄‖² of the batch, a constant
"""

from __future__ import annotations

import torch
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
    LargestOfBatch,
    Number,
    Params,
    Reconstruction,
)
from jumpahead.sae.checked import Field


class Options(base.Options):
    """Options of a series with AuxK."""

    aux: float = Field(1 / 32, ge=0)
    """α, the weight of AuxK; 0 switches it off."""
    k_aux: int | None = Field(None, gt=0)
    """Dead features per token that reconstruct the residual; None: d/2."""


class WithAuxK(Architecture):
    """An architecture that keeps the largest π and has AuxK."""

    settings = ("l0", "k")
    Options = Options
    reconstructions = (
        Reconstruction("input", live=True, bias=True),
        Reconstruction("residual", live=True, bias=False),
    )
    options: Options

    @property
    def uses_dead(self) -> bool:
        return self.options.aux > 0

    def k_dead(self, p: Params) -> int:
        """Dead features per token."""
        return self.options.k_aux or max(1, p["W_enc"].shape[1] // 2)

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

    def weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        whole, left = variance(x), variance(errors)
        return 1.0, torch.where(left > 0, self.options.aux * whole / left, 0.0)

    def errors(self, p: Params, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """The loss without AuxK, given features f [B, M], and x − x̂ [B, d]; on dense tensors."""
        error = x - f @ p["W_dec"] - p["b_dec"]
        return error.square().sum(1).mean(), error

    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        loss, error = self.errors(p, x, self.activate_batch(p, pre, knobs))
        selection = self.selection(p, {}, knobs, training=True)
        assert isinstance(selection, Largest | LargestOfBatch)
        if selection.dead is None:
            return loss
        e = error.detach()
        dead = largest(pre.masked_fill(~selection.dead, -torch.inf), selection.k_dead)
        return loss + self.weights(x, e)[-1] * (e - dead @ p["W_dec"]).square().sum(1).mean()


def variance(rows: Tensor) -> Tensor:
    """Σ ‖row − mean row‖² of rows [B, d]. 0-d, float64."""
    return rows.var(0, correction=0).sum(dtype=torch.float64) * len(rows)


def largest(pre: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each row, zero elsewhere; of equal entries the lower index. pre [..., M] → [..., M]."""
    order = torch.sort(pre, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(pre).scatter(-1, order, pre.gather(-1, order).relu())
