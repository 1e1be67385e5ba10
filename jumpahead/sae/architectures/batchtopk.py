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

θ estimates the mean of τ over batches, for the final weights. r follows the learning rate, so that θ averages over
fewer batches while weights move fast. Where lr falls to zero over K steps, the last √(10·K) batches count, in which
weights move as far as in 5 steps at the peak; where lr is constant, the last 5. At evaluation a token's features depend
on that token alone.

Departures from the paper: both errors as in topk.py; θ is a weighted mean over the last part of training, not a mean
over batches after it; b_dec starts at the mean activation; no gradient clipping. k_aux = d/2, α = 1/32 as published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.sae.auxk import WithAuxK, topk_relu
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import Params, initial_parameters, threshold_for_l0
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig, requested_l0_at
from jumpahead.sae.support import AboveThreshold, Number, TopKOfBatch

RATE = 0.2
"""r, the rate of the moving average θ, at the peak learning rate."""


class BatchTopK(WithAuxK):
    """The BatchTopK SAE; equations in the module's docstring."""

    name, title = "batchtopk", "BatchTopK"
    vectors = ("b_enc", "threshold")

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        return short._replace(bias_lr_multiplier=0.3 if short.beta1 else 1.0)

    @property
    def trained_vectors(self) -> dict[str, float]:
        return {"b_enc": self.recipe.bias_lr_multiplier}

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        params, pre = initial_parameters(d, width, generator, sample, self.recipe)
        start = max(0.0, threshold_for_l0(pre, min(requested_l0_at(self.recipe, self.setting, 0), width / 2)))
        return params | {"threshold": torch.full((width,), start)}

    def selection(
        self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool
    ) -> AboveThreshold | TopKOfBatch:
        if not training:
            return AboveThreshold(params["threshold"])
        chosen = TopKOfBatch(self.requested_l0(step_inputs), guess=params["threshold"][0])
        if step_inputs.dead is None:
            return chosen
        return chosen._replace(dead=step_inputs.dead, k_dead=self.k_dead(params))

    def activate(self, params: Params, pre: Tensor) -> Tensor:
        return pre * (pre > params["threshold"])

    def activate_batch(self, params: Params, pre: Tensor, step_inputs: StepInputs) -> Tensor:
        n = TopKOfBatch(self.requested_l0(step_inputs), guess=0.0).count(len(pre))
        return topk_relu(pre.T.reshape(-1), n).view(pre.shape[1], len(pre)).T

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        params["b_enc"][features] = params["threshold"][features] - thresholds

    def update_inference_threshold(self, params: Params, smallest: Number, lr: float) -> None:
        rate = RATE * min(1.0, lr / self.recipe.lr)
        params["threshold"] += rate * (smallest - params["threshold"])

    def fold_vectors(self, params: Params, scale: float, norms: Tensor) -> Params:
        return super().fold_vectors(params, scale, norms) | {"threshold": scale * params["threshold"].double()}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        threshold = folded["threshold"].double() / scale
        return super().unfold_vectors(folded, scale, shift) | {"threshold": threshold}


ARCHITECTURE = BatchTopK
