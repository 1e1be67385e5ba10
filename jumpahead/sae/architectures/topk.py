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
from torch import Tensor

from jumpahead.sae.auxk import WithAuxK, largest
from jumpahead.sae.base import Knobs, Largest, Params, common_parameters


class TopK(WithAuxK):
    """See the module's docstring."""

    name, title, order = "topk", "TopK", 2
    colour, dash, symbol = "#009E73", "dot", "triangle-up"
    keeps_whole = True
    vectors = ("b_enc",)

    def k(self, knobs: Knobs) -> int:
        """Features kept per token."""
        return max(1, round(self.asked(knobs)))

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        return common_parameters(d, width, generator, sample, self.recipe)[0]

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Largest:
        if not training or knobs.dead is None:
            return Largest(self.k(knobs))
        return Largest(self.k(knobs), knobs.dead, self.k_dead(p))

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return largest(pre, self.k(Knobs()))

    def activate_batch(self, p: Params, pre: Tensor, knobs: Knobs) -> Tensor:
        return largest(pre, self.k(knobs))


ARCHITECTURE = TopK
