"""Base class of architectures with learned thresholds θ: f = π·H(π − θ) (arXiv 2407.14435).

    ∂f_j/∂θ_j := −(θ_j/ε_j)·K((π_j − θ_j)/ε_j)         the straight-through estimator, see ste.py
    ∂f_j/∂(log θ_j) = θ_j·∂f_j/∂θ_j                    `threshold_derivative`

The trained vector is log θ or θ, depending on the recipe's `threshold_form`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture
from jumpahead.sae.controller import exp
from jumpahead.sae.gradients import StepInputs, Thresholds
from jumpahead.sae.parameters import Params, initial_parameters, threshold_for_l0
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig
from jumpahead.sae.support import AboveThreshold, Entries, Number

MIN_INITIAL_THRESHOLD = 1e-3
"""The smallest initial θ of a feature."""


class WithThreshold(Architecture):
    """Base class of architectures with f = π·H(π − θ) and a learned threshold θ per feature."""

    settings = ("l0", "lambda")
    vectors = ("b_enc", "threshold")
    controller_gains = (0.01, 0.1)

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        return short._replace(
            bias_lr_multiplier=0.3 if short.beta1 else 1.0,
            bandwidth_share=0.5,
            threshold_decay=12.0,
            resample_every=max(1, config.steps // 24),
        )

    @property
    def trained_vectors(self) -> dict[str, float]:
        return {
            "b_enc": self.recipe.bias_lr_multiplier,
            self.sparsity_parameter: self.recipe.threshold_lr_multiplier,
        }

    @property
    def sparsity_parameter(self) -> str:
        return "log_threshold" if self.recipe.threshold_form == "log" else "threshold"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        params, pre = initial_parameters(d, width, generator, sample, self.recipe)
        start = self.recipe.initial_threshold
        if start is None:
            start = max(threshold_for_l0(pre, self.initial_l0(width, d)), MIN_INITIAL_THRESHOLD)
        theta = torch.full((width,), start)
        return params | {self.sparsity_parameter: theta.log() if self.sparsity_parameter == "log_threshold" else theta}

    def derive(self, params: Params) -> Params:
        theta = params["log_threshold"].exp() if "log_threshold" in params else params["threshold"]
        if self.known_recipe is None:  # an SAE of another make: no window, because it is not trained
            return {"theta": theta}
        if self.recipe.bandwidth is None:
            epsilon = torch.minimum(self.recipe.bandwidth_share * theta.detach().median(), 1.8 * theta.detach())
        else:
            epsilon = torch.full_like(theta, self.recipe.bandwidth)
        return {"theta": theta, "epsilon": epsilon, "lower": theta - epsilon / 2, "upper": theta + epsilon / 2}

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> AboveThreshold:
        return (
            AboveThreshold(derived["lower"], (derived["theta"], derived["upper"]))
            if training
            else AboveThreshold(derived["theta"])
        )

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        return (entries.pre * entries.between(derived["theta"]),)

    def window_mask(self, entries: Entries, derived: Params, weight: Tensor | None = None) -> Tensor:
        """Return weight_j at entries in the window θ_j ± ε_j/2, in which entries train θ, and 0 at all other entries.

        The result has the shape and dtype of `entries.pre`.
        weight: [M]; if it is None, every weight is 1.
        """
        return entries.between(derived["lower"], derived["upper"], weight)

    def threshold_derivative(self, derived: Params) -> Tensor:
        """Return the derivative of θ with respect to the trained vector, [M]: θ if log θ is trained, else 1."""
        return derived["theta"] if self.sparsity_parameter == "log_threshold" else torch.ones_like(derived["theta"])

    def activate(self, params: Params, pre: Tensor) -> Tensor:
        return pre * (pre > params["threshold"])

    def activate_batch(self, params: Params, pre: Tensor, step_inputs: StepInputs) -> Tensor:
        return pre * (pre > self.derive(params)["theta"])

    def constrain(self, params: Params) -> None:
        if "threshold" in params:
            params["threshold"].clamp_min_(1e-6)

    def revive_dead(self, params: Params, dead: Tensor) -> None:
        if "log_threshold" in params:
            params["log_threshold"] += dead * math.log(self.recipe.dead_threshold_factor)
        else:
            params["threshold"] *= torch.where(dead, self.recipe.dead_threshold_factor, 1.0)

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        super().reinitialise_features(params, features, thresholds)
        theta = thresholds.clamp_min(MIN_INITIAL_THRESHOLD)
        params[self.sparsity_parameter][features] = theta.log() if "log_threshold" in params else theta

    def thresholds(self, derived: Params) -> Thresholds:
        name = self.sparsity_parameter
        return Thresholds(derived["theta"], derived["lower"], derived["upper"], name, is_log=name == "log_threshold")

    def shift_thresholds(self, params: Params, shift: Number) -> None:
        if "log_threshold" in params:
            params["log_threshold"] += shift
        else:
            params["threshold"] *= exp(shift)

    def median_threshold(self, params: Params, power: int = 1) -> Number:
        """Return (median of θ over features)^power."""
        middle = params[self.sparsity_parameter].median().double()
        return (power * middle).exp() if self.sparsity_parameter == "log_threshold" else middle**power

    def fold_vectors(self, params: Params, scale: float, norms: Tensor) -> Params:
        theta = self.derive(params)["theta"].double()
        return super().fold_vectors(params, scale, norms) | {"threshold": scale * theta}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        theta, name = folded["threshold"].double() / scale, self.sparsity_parameter
        if name == "log_threshold":  # an SAE of another make may have θ = 0
            theta = torch.where(theta > 0, theta, MIN_INITIAL_THRESHOLD).log()
        return super().unfold_vectors(folded, scale, shift) | {name: theta}
