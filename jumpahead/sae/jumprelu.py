"""JumpReLU SAE — Jumping Ahead, https://arxiv.org/abs/2407.14435

    π    = W_enc·(x − b_dec) + b_enc
    f    = JumpReLU_θ(π) = π·H(π − θ)                 one threshold θ_j > 0 per feature
    x̂    = W_decᵀ f + b_dec                           rows of W_dec have norm one
    L    = mean over tokens of ‖x − x̂‖² + λ·‖f‖₀      ‖f‖₀ = Σ_j H(π_j − θ_j)

    ∂L/∂θ_j = −(1/ε) Σ_tokens K((π_j − θ_j)/ε)·(θ_j·∂L/∂f_j + λ/B)        K the rectangle, see ste.py
    ∂L/∂π_j = H(π_j − θ_j)·∂L/∂f_j                                        the penalty trains θ alone

The support is π_j > θ_j − ε_j/2. Where ε_j ≤ 2θ_j that implies π_j > 0 and the paper's ReLU before the jump changes
nothing; where θ_j < ε_j/2 (possible in the paper's preset only) rectified zeros fall into the window and every token of
that feature is in its support.

Departures from the paper: none in the preset `paper`, whose target is the unshifted x. The preset `short` starts θ at
the quantile of the first pre-activations that gives the requested L0, lets the bandwidth follow the thresholds,
ε_j = min(share·median θ, 1.8·θ_j), starts b_dec at the mean activation, lowers the threshold of a dead feature a little
every step of the first half until it fires again, and can steer λ towards a requested L0 (control.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jumpahead.sae import ste
from jumpahead.sae.base import (
    Above,
    Affine,
    Architecture,
    Entries,
    Gradients,
    Knobs,
    Params,
    Thresholds,
    common_parameters,
    quantile_for_l0,
)


class JumpReLU(Architecture):
    """See the module's docstring."""

    name, title, order = "jumprelu", "JumpReLU", 0
    colour, dash, symbol = "#0072B2", "solid", "circle"
    settings = ("l0", "lambda")

    vectors = ("b_enc", "threshold")

    @property
    def trained(self) -> dict[str, float]:
        return {"b_enc": 1.0, self._trained_threshold: self.recipe.threshold_rate}

    @property
    def _trained_threshold(self) -> str:
        return "log_threshold" if self.recipe.threshold_form == "log" else "threshold"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        p, pre = common_parameters(d, width, generator, sample, self.recipe)
        start = self.recipe.threshold_start
        if start is None:
            start = max(quantile_for_l0(pre, self.started_l0(width, d)), 1e-3)
        theta = torch.full((width,), start)
        return p | {self._trained_threshold: theta.log() if self._trained_threshold == "log_threshold" else theta}

    def derive(self, p: Params) -> Params:
        theta = p["log_threshold"].exp() if "log_threshold" in p else p["threshold"]
        if self.recipe.bandwidth is None:
            epsilon = torch.minimum(self.recipe.bandwidth_share * theta.detach().median(), 1.8 * theta.detach())
        else:
            epsilon = torch.full_like(theta, self.recipe.bandwidth)
        lower = theta - epsilon / 2
        return {
            "theta": theta,
            "epsilon": epsilon,
            "lower": torch.where(lower < 0, -torch.inf, lower),  # a rectified zero is in a window that reaches below 0
            "upper": theta + epsilon / 2,
        }

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Above:
        return Above(v["lower"], (v["theta"], v["upper"])) if training else Above(v["theta"])

    def values(self, entries: Entries, p: Params, v: Params) -> tuple[Tensor, ...]:
        return (entries.pre * (entries.pre > entries.at(v["theta"])),)

    def rule(
        self, entries: Entries, values: tuple[Tensor, ...], p: Params, v: Params, knobs: Knobs, tokens: int
    ) -> Gradients:
        on = (values[0] > 0).to(values[0].dtype)
        window = (entries.pre > entries.at(v["lower"])) & (entries.pre < entries.at(v["upper"]))
        chain = v["theta"] if self._trained_threshold == "log_threshold" else torch.ones_like(v["theta"])
        weight = -chain / v["epsilon"]
        d_pre = Affine((on,))
        d_theta = Affine(
            (window * entries.at(weight * v["theta"]),), window * entries.at(weight * (knobs.sparsity / tokens))
        )
        penalty = knobs.sparsity * on.sum() / tokens
        return Gradients(d_pre, {"b_enc": d_pre, self._trained_threshold: d_theta}, None, penalty)

    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        v = self.derive(p)
        pre = ((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]).relu()
        f = ste.jumprelu(pre, v["theta"], v["epsilon"])
        error = (x - f @ p["W_dec"] - p["b_dec"]).square().sum(1)
        l0 = ste.step(pre, v["theta"], v["epsilon"]).sum(1)
        return (error + knobs.sparsity * l0).mean()

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return pre * (pre > p["threshold"])

    def constrain(self, p: Params) -> None:
        if "threshold" in p:
            p["threshold"].clamp_min_(1e-6)

    def revive(self, p: Params, dead: Tensor) -> None:
        if "log_threshold" in p:
            p["log_threshold"] += dead * math.log(self.recipe.revival)
        else:
            p["threshold"] *= torch.where(dead, self.recipe.revival, 1.0)

    def thresholds(self, v: Params) -> Thresholds:
        name = self._trained_threshold
        return Thresholds(v["theta"], v["lower"], v["upper"], name, is_log=name == "log_threshold")

    def steer(self, p: Params, growth: float) -> None:
        if "log_threshold" in p:
            p["log_threshold"] += growth
        else:
            p["threshold"] *= math.exp(growth)

    def fold_vectors(self, p: Params, scale: float, norms: Tensor) -> Params:
        theta = self.derive(p)["theta"].double()
        return super().fold_vectors(p, scale, norms) | {"threshold": scale * theta}


ARCHITECTURE = JumpReLU
