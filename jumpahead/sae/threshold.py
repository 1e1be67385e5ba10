"""What architectures with a learned threshold per feature share (arXiv 2407.14435): f = π·H(π − θ), trained through a
window of width ε around θ (ste.py). Either log θ or θ is the trained vector, as the recipe says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jumpahead.sae.base import (
    Above,
    Architecture,
    Entries,
    Knobs,
    Number,
    Params,
    Thresholds,
    common_parameters,
    quantile_for_l0,
)
from jumpahead.sae.controller import exp
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig

LEAST = 1e-3
"""The smallest θ that a feature starts with."""


class WithThreshold(Architecture):
    """An architecture with f = π·H(π − θ)."""

    settings = ("l0", "lambda")
    vectors = ("b_enc", "threshold")
    hands = (0.01, 0.1)

    @classmethod
    def tuned(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        return short._replace(
            bandwidth_share=0.5,
            threshold_pull=12.0,
            resample_every=max(1, config.steps // 24),
        )

    @property
    def trained(self) -> dict[str, float]:
        return {"b_enc": 1.0, self.gate: self.recipe.threshold_rate}

    @property
    def gate(self) -> str:
        return "log_threshold" if self.recipe.threshold_form == "log" else "threshold"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        p, pre = common_parameters(d, width, generator, sample, self.recipe)
        start = self.recipe.threshold_start
        if start is None:
            start = max(quantile_for_l0(pre, self.started_l0(width, d)), LEAST)
        theta = torch.full((width,), start)
        return p | {self.gate: theta.log() if self.gate == "log_threshold" else theta}

    def derive(self, p: Params) -> Params:
        theta = p["log_threshold"].exp() if "log_threshold" in p else p["threshold"]
        if self.recipe.bandwidth is None:
            epsilon = torch.minimum(self.recipe.bandwidth_share * theta.detach().median(), 1.8 * theta.detach())
        else:
            epsilon = torch.full_like(theta, self.recipe.bandwidth)
        return {"theta": theta, "epsilon": epsilon, "lower": theta - epsilon / 2, "upper": theta + epsilon / 2}

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Above:
        return Above(v["lower"], (v["theta"], v["upper"])) if training else Above(v["theta"])

    def values(self, entries: Entries, p: Params, v: Params) -> tuple[Tensor, ...]:
        return (entries.pre * entries.between(v["theta"]),)

    def in_window(self, entries: Entries, v: Params, weight: Tensor | None = None) -> Tensor:
        """weight_j, or 1, at entries that train θ, and 0 elsewhere. weight [M]; like `pre`."""
        return entries.between(v["lower"], v["upper"], weight)

    def chain(self, v: Params) -> Tensor:
        """∂θ/∂(the trained vector), [M]."""
        return v["theta"] if self.gate == "log_threshold" else torch.ones_like(v["theta"])

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return pre * (pre > p["threshold"])

    def activate_batch(self, p: Params, pre: Tensor, knobs: Knobs) -> Tensor:
        return pre * (pre > self.derive(p)["theta"])

    def constrain(self, p: Params) -> None:
        if "threshold" in p:
            p["threshold"].clamp_min_(1e-6)

    def revive(self, p: Params, dead: Tensor) -> None:
        if "log_threshold" in p:
            p["log_threshold"] += dead * math.log(self.recipe.revival)
        else:
            p["threshold"] *= torch.where(dead, self.recipe.revival, 1.0)

    def begin(self, p: Params, features: Tensor, thresholds: Tensor) -> None:
        super().begin(p, features, thresholds)
        theta = thresholds.clamp_min(LEAST)
        p[self.gate][features] = theta.log() if "log_threshold" in p else theta

    def thresholds(self, v: Params) -> Thresholds:
        name = self.gate
        return Thresholds(v["theta"], v["lower"], v["upper"], name, is_log=name == "log_threshold")

    def steer(self, p: Params, growth: Number) -> None:
        if "log_threshold" in p:
            p["log_threshold"] += growth
        else:
            p["threshold"] *= exp(growth)

    def median_threshold(self, p: Params, power: int = 1) -> Number:
        """(median θ)^power."""
        middle = p[self.gate].median().double()
        return (power * middle).exp() if self.gate == "log_threshold" else middle**power

    def fold_vectors(self, p: Params, scale: float, norms: Tensor) -> Params:
        theta = self.derive(p)["theta"].double()
        return super().fold_vectors(p, scale, norms) | {"threshold": scale * theta}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        theta, name = folded["threshold"].double() / scale, self.gate
        return super().unfold_vectors(folded, scale, shift) | {name: theta.log() if name == "log_threshold" else theta}
