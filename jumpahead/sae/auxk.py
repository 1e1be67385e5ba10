"""The AuxK loss (arXiv 2406.04093): dead features reconstruct the residual.

x̂ = W_decᵀ f + b_dec          f = ReLU(π) at the kept entries (MAIN), which the architecture selects
e = x − x̂, as a constant
ê = W_decᵀ ReLU(TopK_kaux(π among dead features))                   (DEAD); an entry can belong to both
L = ‖x − x̂‖² + α·(Var x/Var e)·‖e − ê‖²      means over tokens; Var x = mean ‖x − x̄‖² of the batch, a constant

`WithAuxK` is the base of the TopK architectures. Others (jumprelu.py) add α·‖e − ê‖² with the functions below if their
recipe's `aux_weight` α is not 0. The recipe also says in which steps there is an AuxK loss, and after how many tokens
without firing it trains a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture, Options
from jumpahead.sae.bounds import AtLeast, GreaterThan
from jumpahead.sae.gradients import Affine, Counts, Gradients, Reconstruction, StepInputs
from jumpahead.sae.parameters import Params
from jumpahead.sae.support import DEAD, MAIN, Entries, Number, TopKOfBatch, TopKPerToken


@dataclass(frozen=True, kw_only=True)
class AuxKOptions(Options):
    """Options of an architecture with the AuxK loss."""

    aux: Annotated[float, AtLeast(0)] = 1 / 32
    """α, the weight of the AuxK loss; 0 switches it off."""
    k_aux: Annotated[int, GreaterThan(0)] | None = None
    """Number of dead features per token that reconstruct the residual; None: d/2."""


RECONSTRUCTIONS = (
    Reconstruction("input", trains_decoder=True, adds_bias=True),
    Reconstruction("residual", trains_decoder=True, adds_bias=False),
)
"""The reconstructions of a loss with AuxK: x̂ and ê."""


class WithAuxK(Architecture):
    """Base class of architectures that select the largest π and add the AuxK loss."""

    settings = ("l0", "k")
    Options = AuxKOptions
    reconstructions = RECONSTRUCTIONS
    options: AuxKOptions

    @property
    def needs_dead_features(self) -> bool:
        return self.options.aux > 0

    def k_dead(self, params: Params) -> int:
        """Return the number of dead features per token that reconstruct the residual."""
        return self.options.k_aux or default_k_aux(params)

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        f = entries.pre.relu()
        if entries.part is None:
            return (f,)
        return f * entries.part_mask(MAIN), f * entries.part_mask(DEAD)

    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        d_pre = Affine(tuple((value > 0).to(value.dtype) for value in values))
        return Gradients(d_pre, {"b_enc": d_pre}, None)

    def error_weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        whole, left = sum_of_squared_deviations(x), sum_of_squared_deviations(errors)
        return 1.0, torch.where(left > 0, self.options.aux * whole / left, 0.0)

    def loss_and_error(self, params: Params, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss without AuxK, 0-d, and the error x − x̂ [B, d], given dense features f [B, M]."""
        error = x - f @ params["W_dec"] - params["b_dec"]
        return error.square().sum(1).mean(), error

    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        pre = (x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
        loss, error = self.loss_and_error(params, x, self.activate_batch(params, pre, step_inputs))
        selection = self.selection(params, {}, step_inputs, training=True)
        assert isinstance(selection, TopKPerToken | TopKOfBatch)
        if selection.dead is None:
            return loss
        e = error.detach()
        return loss + self.error_weights(x, e)[-1] * auxk_error(params, pre, e, selection.dead, selection.k_dead)


def default_k_aux(params: Params) -> int:
    """Return the default number of dead features per token that reconstruct the residual: d/2."""
    return max(1, params["W_enc"].shape[1] // 2)


def auxk_error(params: Params, pre: Tensor, e: Tensor, dead: Tensor, k: int) -> Tensor:
    """Return the mean over tokens of ‖e − ê‖², 0-d, for autograd.

    pre [B, M]: pre-activations. e [B, d]: x − x̂, detached. dead [M] bool. k: features per token that make ê.
    """
    f = topk_relu(pre.masked_fill(~dead, -torch.inf), k)
    return (e - f @ params["W_dec"]).square().sum(1).mean()


def sum_of_squared_deviations(rows: Tensor) -> Tensor:
    """Return Σ_i ‖rows_i − mean row‖² of rows [B, d], 0-d float64."""
    return rows.var(0, correction=0).sum(dtype=torch.float64) * len(rows)


def topk_relu(pre: Tensor, k: int) -> Tensor:
    """Return a dense tensor [..., M] with ReLU of the k largest values of each row of pre [..., M], and 0 elsewhere.

    Of equal values, the one with the lower index is selected.
    """
    order = torch.sort(pre, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(pre).scatter(-1, order, pre.gather(-1, order).relu())
