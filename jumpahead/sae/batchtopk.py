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

from jumpahead.sae.base import (
    DEAD,
    MAIN,
    Above,
    Affine,
    Architecture,
    Counts,
    Entries,
    Gradients,
    Knobs,
    LargestOfBatch,
    Params,
    Reconstruction,
    common_parameters,
    quantile_for_l0,
)
from jumpahead.sae.topk import Options, aux_weight, largest

RATE = 0.2
"""r at the peak learning rate."""


class BatchTopK(Architecture):
    """See the module's docstring."""

    name, title, order = "batchtopk", "BatchTopK", 4
    colour, dash, symbol = "#E69F00", "dashdot", "triangle-down"
    settings = ("l0", "k")
    vectors = ("b_enc", "threshold")
    Options = Options
    reconstructions = (
        Reconstruction("input", live=True, bias=True),
        Reconstruction("residual", live=True, bias=False),
    )
    options: Options

    @property
    def trained(self) -> dict[str, float]:
        return {"b_enc": 1.0}

    @property
    def uses_dead(self) -> bool:
        return self.options.aux > 0

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        p, pre = common_parameters(d, width, generator, sample, self.recipe)
        start = max(0.0, quantile_for_l0(pre, min(self.setting.value, width / 2)))
        return p | {"threshold": torch.full((width,), start)}

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Above | LargestOfBatch:
        if not training:
            return Above(p["threshold"])
        chosen = LargestOfBatch(self.setting.value, guess=p["threshold"][0].item())
        if knobs.dead is None:
            return chosen
        return chosen._replace(dead=knobs.dead, k_dead=self.options.k_aux or max(1, p["W_enc"].shape[1] // 2))

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
        error = x - self.activate_batch(p, pre) @ p["W_dec"] - p["b_dec"]
        loss = error.square().sum(1).mean()
        selection = self.selection(p, {}, knobs, training=True)
        assert isinstance(selection, LargestOfBatch)
        if selection.dead is None:
            return loss
        e = error.detach()
        dead = largest(pre.masked_fill(~selection.dead, -torch.inf), selection.k_dead)
        return loss + self.weights(x, e)[1] * (e - dead @ p["W_dec"]).square().sum(1).mean()

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return pre * (pre > p["threshold"])

    def activate_batch(self, p: Params, pre: Tensor) -> Tensor:
        n = LargestOfBatch(self.setting.value, guess=0.0).count(len(pre))
        return largest(pre.T.reshape(-1), n).view(pre.shape[1], len(pre)).T

    def begin(self, p: Params, features: Tensor, thresholds: Tensor) -> None:
        p["b_enc"][features] = p["threshold"][features] - thresholds

    def observe(self, p: Params, least: float, lr: float) -> None:
        rate = RATE * min(1.0, lr / self.recipe.lr)
        p["threshold"] += rate * (least - p["threshold"])

    def fold_vectors(self, p: Params, scale: float, norms: Tensor) -> Params:
        return super().fold_vectors(p, scale, norms) | {"threshold": scale * p["threshold"].double()}


ARCHITECTURE = BatchTopK
