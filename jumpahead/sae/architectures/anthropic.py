"""Anthropic's JumpReLU — https://transformer-circuits.pub/2025/january-update — after https://arxiv.org/abs/2407.14435

    π    = W_enc·(x − b_dec) + b_enc
    f    = π·H(π − θ)                                   one threshold θ_j > 0 per feature
    x̂    = W_decᵀ f + b_dec                             rows of W_dec free
    L    = mean over tokens of ‖x − x̂‖² + λ·S + λ_P·P
    S    = Σ_j tanh(c·f_j·‖d_j‖)                        saturates: large features cost what an active entry costs
    P    = Σ_j ReLU(θ_j − π_j)·‖d_j‖                    over dead features j: raises π_j until they fire

    K = 1 for |π − θ| < ε/2, else 0                     g_j = ∂L/∂f_j without λ_P, the tanh's share of it
                                                        λ/B·c·‖d_j‖·(1 − tanh²(c·f_j·‖d_j‖))
    ∂L/∂θ_j = Σ_tokens −(θ_j/ε)·K·g_j                   + λ_P/B·‖d_j‖ where π_j < θ_j, j dead
    ∂L/∂π_j = (H(π_j − θ_j) + (θ_j/ε)·K)·g_j            − the same;   ste = "threshold": H(π_j − θ_j)·g_j alone
    ∂L/∂d_j gets d_j/‖d_j‖·Σ_tokens (λ/B·c·f_j·(1 − tanh²) + λ_P/B·ReLU(θ_j − π_j))

Both penalties are unchanged where d_j grows and f_j, θ_j shrink by the same factor. Unlike in jumprelu.py the penalty
is a function of f, so that it reaches all parameters; and so does the straight-through estimator: it depends on π − θ
alone, and its derivative in π is the negative of that in θ.

Units: the update scales activations to a mean norm of √d, here it is E‖x‖² = 1. `scale` and `pre_activation` are given
as the update has them: c = scale·√d, λ_P = pre_activation/√d. λ here is its λ_S (about 10 to 20) divided by d.

The support is π_j > θ_j − ε/2, and every token of a dead feature: these are dense products (engine/dense_features.py).

Departures from the paper: P is over dead features alone, as in SAELens, because over all every entry has a
gradient (`pre_activation_of = "all"`: as published, and as slow as a dense step); row momentum where it has Adam's, and
none in the preset `paper`; no clipping of gradients; W_enc starts as W_dec with unit rows, b_enc at zero; the true
derivative in log θ, where the update leaves out a factor θ. The preset `paper` has its learning rate and decay, θ and ε
at the start, and λ warmed up over the whole run. The preset `short` is jumprelu.py's without AuxK, a requested L0
controlled with λ = (penalty scale)·median θ/c: at entries in the window, the penalty's gradient of θ is about λ·c, the
reconstruction's about θ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from jumpahead.sae import ste
from jumpahead.sae.architecture import Options
from jumpahead.sae.bounds import AtLeast, Finite, GreaterThan
from jumpahead.sae.gradients import Affine, Counts, Gradients, StepInputs, Thresholds
from jumpahead.sae.parameters import Params, with_unit_decoder_rows
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig
from jumpahead.sae.support import AboveThreshold, Entries, Number
from jumpahead.sae.threshold import WithThreshold


@dataclass(frozen=True, kw_only=True)
class AnthropicOptions(Options):
    """Options of an `anthropic` series."""

    scale: Annotated[float, GreaterThan(0), Finite()] = 4.0
    """c, for activations of norm √d: the penalty of an entry of size 1/c is 0.76 of that of a very large entry."""
    pre_activation: Annotated[float, AtLeast(0), Finite()] = 3e-6
    """λ_P, in the same unit; 0 switches it off."""
    pre_activation_of: Literal["dead", "all"] = "dead"
    """The features that P is summed over."""
    ste: Literal["all", "threshold"] = "all"
    """The parameters that the straight-through estimator trains: all, through π, or θ alone."""


class Anthropic(WithThreshold):
    """The JumpReLU SAE of Anthropic's update; equations in the module's docstring."""

    name, title = "anthropic", "JumpReLU (Anthropic)"
    Options = AnthropicOptions
    options: AnthropicOptions
    initial_penalty_scale = 1.0  # final values: 0.94 and 0.97 at L0 32 and 8 (docs/LOG.md, 2026-11-26)

    @classmethod
    def paper_recipe(cls, paper: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        unit = 1 / math.sqrt(shape.d)
        return paper._replace(
            lr=config.lr or 2e-4,
            lr_decay_steps=config.steps // 5,
            sparsity_warmup_steps=max(1, config.steps),
            initial_threshold=0.1 * unit,
            bandwidth=2.0 * unit,
        )

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        # P raises the dead features in every step.
        return super().short_recipe(short, config, shape)._replace(aux_every=1, aux_after_tokens=None)

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        return "free"

    @property
    def needs_dead_features(self) -> bool:
        return self.options.pre_activation > 0 and self.options.pre_activation_of == "dead"

    def derive(self, params: Params) -> Params:
        norm, root = params["W_dec"].norm(dim=1), math.sqrt(params["W_dec"].shape[1])
        return super().derive(params) | {"norm": norm, "steep": self.options.scale * root * norm}

    def penalised_features(self, step_inputs: StepInputs, like: Tensor) -> Tensor | None:
        """Return the mask of the features that P is summed over, [M] bool; None if P is switched off or none is dead.

        like: [M] tensor whose shape and device the mask gets.
        """
        if self.options.pre_activation == 0:
            return None
        return torch.ones_like(like, dtype=torch.bool) if self.options.pre_activation_of == "all" else step_inputs.dead

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> AboveThreshold:
        selection, penalised = (
            super().selection(params, derived, step_inputs, training=training),
            self.penalised_features(step_inputs, derived["theta"]),
        )
        if not training or penalised is None:
            return selection
        return AboveThreshold(derived["lower"].masked_fill(penalised, -torch.inf), (derived["lower"], *selection.edges))

    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        (f,), norm, steep = values, entries.per_feature(derived["norm"]), entries.per_feature(derived["steep"])
        jump = self.window_mask(entries, derived) * entries.per_feature(derived["theta"] / derived["epsilon"])
        direct = (f > 0) + jump if self.options.ste == "all" else (f > 0).to(f.dtype)
        slope = step_inputs.sparsity_coefficient / counts.tokens * steep * (1 - (f * steep).tanh().square())
        below_weight, chain = (
            self._penalty_weights(entries, params, derived, step_inputs, counts),
            entries.per_feature(self.threshold_derivative(derived)),
        )
        d_pre = Affine((direct,), direct * slope - below_weight * norm)
        d_theta = Affine((-chain * jump,), chain * (below_weight * norm - jump * slope))
        shrink = slope * f / norm + below_weight * (entries.per_feature(derived["theta"]) - entries.pre)
        return Gradients(d_pre, {"b_enc": d_pre, self.sparsity_parameter: d_theta}, shrink)

    def _penalty_weights(
        self, entries: Entries, params: Params, derived: Params, step_inputs: StepInputs, counts: Counts
    ) -> Tensor:
        """Return λ_P/B at entries that P penalises (π < θ), and 0 elsewhere; shape and dtype of `entries.pre`."""
        penalised = self.penalised_features(step_inputs, derived["theta"])
        if penalised is None:
            return torch.zeros_like(entries.pre)
        below = (entries.pre < entries.per_feature(derived["theta"])) & entries.per_feature(penalised)
        return below.to(entries.pre.dtype) * (self._pre_activation_coefficient(params) / counts.tokens)

    def _pre_activation_coefficient(self, params: Params) -> float:
        """Return λ_P, the weight of P, for activations in the unit E‖x‖² = 1."""
        return self.options.pre_activation / math.sqrt(params["W_dec"].shape[1])

    def sparsity_sum(self, entries: Entries, values: tuple[Tensor, ...], derived: Params) -> Tensor:
        return (values[0] * entries.per_feature(derived["steep"])).tanh().sum(dtype=torch.float64)

    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        derived = self.derive(params)
        pre = (x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
        f = ste.jumprelu(pre, derived["theta"], derived["epsilon"], to_input=self.options.ste == "all")
        error = (x - f @ params["W_dec"] - params["b_dec"]).square().sum(1).mean()
        loss = error + step_inputs.sparsity_coefficient * (f * derived["steep"]).tanh().sum(1).mean()
        penalised = self.penalised_features(step_inputs, derived["theta"])
        if penalised is None:
            return loss
        return (
            loss
            + self._pre_activation_coefficient(params)
            * ((derived["theta"] - pre).relu() * derived["norm"])[:, penalised].sum(1).mean()
        )

    def sparsity_coefficient_scale(self, params: Params) -> Number:
        return self.median_threshold(params) / (self.options.scale * math.sqrt(params["W_dec"].shape[1]))

    def thresholds(self, derived: Params) -> Thresholds:
        return super().thresholds(derived)._replace(in_sqrt_lambda=False)

    def fold(self, params: Params, scale: float) -> Params:
        """Return the folded parameters. Decoder rows get norm one by π_j ← ‖d_j‖·π_j and θ_j ← ‖d_j‖·θ_j."""
        norms, old = params["W_dec"].double().norm(dim=1).clamp_min(1e-30), params[self.sparsity_parameter].double()
        rescaled = old + norms.log() if self.sparsity_parameter == "log_threshold" else old * norms
        return super().fold(params | with_unit_decoder_rows(params) | {self.sparsity_parameter: rescaled}, scale)


ARCHITECTURE = Anthropic
