"""BatchTopK Sparse Autoencoders — https://arxiv.org/abs/2412.06410 — with AuxK (arXiv 2406.04093)

    π    = W_enc·(x − b_dec) + b_enc
    f    = ReLU(BatchTopK(π))                       in training: the k·B largest π of the whole batch of B tokens
    f_j  = π_j·H(π_j − θ)                           of a saved SAE: one threshold θ for all features
    x̂    = W_decᵀ f + b_dec                         rows of W_dec have norm one
    L    = ‖x − x̂‖² + α·(Var x/Var e)·‖e − ê‖²      means over tokens; AuxK on dead features, per token: see topk.py

    τ    = the smallest f > 0 of a batch
    θ    ← θ + r·(τ − θ)     r = 0.2·lr/(peak lr)   after every step, from the quantile of the first π that gives k

Of equal π the lower feature, then the earlier token is kept. k is a mean and need not be whole. The support is the kept
entries with π > 0, and AuxK's.

θ should be the mean of τ over batches, with the weights as they are in the end. r follows the learning rate: θ forgets
with the weights' own movement. Where lr falls to zero over K steps, the last √(10·K) batches count, in which weights
move as far as in 5 steps at the peak; where lr is constant, the last 5. At evaluation a token's features depend on that
token alone.

Departures from the paper: both errors as in topk.py; θ is a weighted mean over the last part of training, not a mean
over batches after it; b_dec starts at the mean activation; no gradient clipping. k_aux = d/2, α = 1/32 as published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.sae.auxk import WithAuxK, largest
from jumpahead.sae.base import Above, Knobs, LargestOfBatch, Number, Params, common_parameters, quantile_for_l0
from jumpahead.sae.recipe import wanted_l0

RATE = 0.2
"""r at the peak learning rate."""


class BatchTopK(WithAuxK):
    """See the module's docstring."""

    name, title, order = "batchtopk", "BatchTopK", 4
    colour, dash, symbol = "#E69F00", "dashdot", "triangle-down"
    vectors = ("b_enc", "threshold")

    @property
    def trained(self) -> dict[str, float]:
        return {"b_enc": 1.0}

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        p, pre = common_parameters(d, width, generator, sample, self.recipe)
        start = max(0.0, quantile_for_l0(pre, min(wanted_l0(self.recipe, self.setting, 0), width / 2)))
        return p | {"threshold": torch.full((width,), start)}

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Above | LargestOfBatch:
        if not training:
            return Above(p["threshold"])
        chosen = LargestOfBatch(self.asked(knobs), guess=p["threshold"][0])
        if knobs.dead is None:
            return chosen
        return chosen._replace(dead=knobs.dead, k_dead=self.k_dead(p))

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return pre * (pre > p["threshold"])

    def activate_batch(self, p: Params, pre: Tensor, knobs: Knobs) -> Tensor:
        n = LargestOfBatch(self.asked(knobs), guess=0.0).count(len(pre))
        return largest(pre.T.reshape(-1), n).view(pre.shape[1], len(pre)).T

    def begin(self, p: Params, features: Tensor, thresholds: Tensor) -> None:
        p["b_enc"][features] = p["threshold"][features] - thresholds

    def observe(self, p: Params, least: Number, lr: float) -> None:
        rate = RATE * min(1.0, lr / self.recipe.lr)
        p["threshold"] += rate * (least - p["threshold"])

    def fold_vectors(self, p: Params, scale: float, norms: Tensor) -> Params:
        return super().fold_vectors(p, scale, norms) | {"threshold": scale * p["threshold"].double()}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        threshold = folded["threshold"].double() / scale
        return super().unfold_vectors(folded, scale, shift) | {"threshold": threshold}


ARCHITECTURE = BatchTopK
