"""Anthropic's JumpReLU — https://transformer-circuits.pub/2025/january-update — after https://arxiv.org/abs/2407.14435

    π    = W_enc·(x − b_dec) + b_enc
    f    = π·H(π − θ)                                   one threshold θ_j > 0 per feature
    x̂    = W_decᵀ f + b_dec                             rows of W_dec free
    L    = mean over tokens of ‖x − x̂‖² + λ·S + λ_P·P
    S    = Σ_j tanh(c·f_j·‖d_j‖)                        saturates: large features cost what an active entry costs
    P    = Σ_j ReLU(θ_j − π_j)·‖d_j‖                    over dead features j: draws them back until they fire

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

The support is π_j > θ_j − ε/2, and every token of a dead feature: these go through products (engine/dense.py).

Departures from the paper: P is over dead features alone, as in SAELens, because over all every entry has a
gradient (`pre_activation_of = "all"`: as published, and as slow as a dense step); β₁ = 0 where it has 0.9, no clipping
of gradients; W_enc starts as W_dec with unit rows, b_enc at zero; the true derivative in log θ, where the update leaves
out a factor θ. The preset `paper` has its learning rate and decay, θ and ε at the start, and λ warmed up over the whole
run. The preset `short` is jumprelu.py's, a requested L0 steered with λ = (controller's price)·median θ/c: where half of
the window is off, the penalty presses θ with about λ·c, the reconstruction with about θ.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from jumpahead.sae import base, ste
from jumpahead.sae.base import (
    Above,
    Affine,
    Counts,
    Entries,
    Gradients,
    Knobs,
    Number,
    Params,
    Thresholds,
    with_unit_rows,
)
from jumpahead.sae.checked import Field
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig
from jumpahead.sae.threshold import WithThreshold


class Options(base.Options):
    """Options of an `anthropic` series."""

    scale: float = Field(4.0, gt=0, allow_inf_nan=False)
    """c, for activations of norm √d: an entry of 1/c there costs 0.76 of what a large one costs."""
    pre_activation: float = Field(3e-6, ge=0, allow_inf_nan=False)
    """λ_P, in the same unit; 0 switches it off."""
    pre_activation_of: Literal["dead", "all"] = "dead"
    """The features that it is summed over."""
    ste: Literal["all", "threshold"] = "all"
    """What the straight-through estimator trains: also what π comes from, or θ alone."""


class Anthropic(WithThreshold):
    """See the module's docstring."""

    name, title, order = "anthropic", "JumpReLU (Anthropic)", 6
    colour, dash, symbol = "#000000", "longdash", "star"
    Options = Options
    options: Options
    first_price = 1.0  # where it ends: 0.94 and 0.97 at L0 32 and 8 (docs/LOG.md, 2026-11-26)

    @classmethod
    def published(cls, paper: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        unit = 1 / math.sqrt(shape.d)
        return paper._replace(
            lr=config.lr or 2e-4,
            lr_decay=config.steps // 5,
            sparsity_warmup=max(1, config.steps),
            threshold_start=0.1 * unit,
            bandwidth=2.0 * unit,
        )

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        return "free"

    @property
    def uses_dead(self) -> bool:
        return self.options.pre_activation > 0 and self.options.pre_activation_of == "dead"

    def derive(self, p: Params) -> Params:
        norm, root = p["W_dec"].norm(dim=1), math.sqrt(p["W_dec"].shape[1])
        return super().derive(p) | {"norm": norm, "steep": self.options.scale * root * norm}

    def drawn(self, knobs: Knobs, like: Tensor) -> Tensor | None:
        """[M] bool: the features that λ_P is for; None for none. like [M]."""
        if self.options.pre_activation == 0:
            return None
        return torch.ones_like(like, dtype=torch.bool) if self.options.pre_activation_of == "all" else knobs.dead

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Above:
        found, drawn = super().selection(p, v, knobs, training=training), self.drawn(knobs, v["theta"])
        if not training or drawn is None:
            return found
        return Above(v["lower"].masked_fill(drawn, -torch.inf), (v["lower"], *found.edges))

    def rule(
        self, entries: Entries, values: tuple[Tensor, ...], p: Params, v: Params, knobs: Knobs, counts: Counts
    ) -> Gradients:
        (f,), norm, steep = values, entries.at(v["norm"]), entries.at(v["steep"])
        jump = self.in_window(entries, v) * entries.at(v["theta"] / v["epsilon"])
        direct = (f > 0) + jump if self.options.ste == "all" else (f > 0).to(f.dtype)
        slope = knobs.sparsity / counts.tokens * steep * (1 - (f * steep).tanh().square())
        draw, chain = self._draw(entries, p, v, knobs, counts), entries.at(self.chain(v))
        d_pre = Affine((direct,), direct * slope - draw * norm)
        d_theta = Affine((-chain * jump,), chain * (draw * norm - jump * slope))
        shrink = slope * f / norm + draw * (entries.at(v["theta"]) - entries.pre)
        return Gradients(d_pre, {"b_enc": d_pre, self.gate: d_theta}, shrink)

    def _draw(self, entries: Entries, p: Params, v: Params, knobs: Knobs, counts: Counts) -> Tensor:
        """λ_P/B at each entry that it is for, else 0."""
        drawn = self.drawn(knobs, v["theta"])
        if drawn is None:
            return torch.zeros_like(entries.pre)
        below = (entries.pre < entries.at(v["theta"])) & entries.at(drawn)
        return below.to(entries.pre.dtype) * (self._pre_activation(p) / counts.tokens)

    def _pre_activation(self, p: Params) -> float:
        """λ_P in the unit E‖x‖² = 1."""
        return self.options.pre_activation / math.sqrt(p["W_dec"].shape[1])

    def charge(self, entries: Entries, values: tuple[Tensor, ...], v: Params) -> Tensor:
        return (values[0] * entries.at(v["steep"])).tanh().sum(dtype=torch.float64)

    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        v = self.derive(p)
        pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        f = ste.jumprelu(pre, v["theta"], v["epsilon"], to_input=self.options.ste == "all")
        error = (x - f @ p["W_dec"] - p["b_dec"]).square().sum(1).mean()
        loss = error + knobs.sparsity * (f * v["steep"]).tanh().sum(1).mean()
        drawn = self.drawn(knobs, v["theta"])
        if drawn is None:
            return loss
        return loss + self._pre_activation(p) * ((v["theta"] - pre).relu() * v["norm"])[:, drawn].sum(1).mean()

    def sparsity_unit(self, p: Params) -> Number:
        return self.median_threshold(p) / (self.options.scale * math.sqrt(p["W_dec"].shape[1]))

    def thresholds(self, v: Params) -> Thresholds:
        return super().thresholds(v)._replace(in_sqrt_lambda=False)

    def fold(self, p: Params, scale: float) -> Params:
        """Unit d_j by π_j ← ‖d_j‖·π_j and θ_j ← ‖d_j‖·θ_j."""
        norms, gate = p["W_dec"].double().norm(dim=1).clamp_min(1e-30), p[self.gate].double()
        moved = gate + norms.log() if self.gate == "log_threshold" else gate * norms
        return super().fold(p | with_unit_rows(p) | {self.gate: moved}, scale)


ARCHITECTURE = Anthropic
