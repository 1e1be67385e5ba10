"""JumpReLU SAE — Jumping Ahead, https://arxiv.org/abs/2407.14435

    π    = W_enc·(x − b_dec) + b_enc
    f    = JumpReLU_θ(π) = π·H(π − θ)                 one threshold θ_j > 0 per feature
    x̂    = W_decᵀ f + b_dec                           rows of W_dec have norm one
    L    = mean over tokens of ‖x − x̂‖² + λ·‖f‖₀      ‖f‖₀ = Σ_j H(π_j − θ_j)

    ∂L/∂θ_j = −(1/ε) Σ_tokens K((π_j − θ_j)/ε)·(θ_j·∂L/∂f_j + λ/B)        K the rectangle, see ste.py
    ∂L/∂π_j = H(π_j − θ_j)·∂L/∂f_j                                        the penalty trains θ alone

Other sparsity terms, as options. Each stands in L in the place of λ·‖f‖₀, and its derivative by H(π_j − θ_j) in ∂L/∂θ_j
in the place of λ/B. p_j is the share of the whole batch's tokens on which feature j is active, L̄0 = Σ_j p_j, L0* the
requested L0:

    frequency_scale = ω₀   λ·Σ_j p_j·(1 + p_j/ω₀)              (λ/B)·(1 + 2p_j/ω₀)
    target = "batch"       λ·(L̄0/L0* − 1)²                     (λ/B)·(2/L0*)·(L̄0/L0* − 1)
    target = "token"       mean over tokens of                 (λ/B)·(2/L0*)·(‖f‖₀/L0* − 1) at the token
                           λ·(‖f‖₀/L0* − 1)²

The first is the quadratic-frequency penalty (https://www.alignmentforum.org/posts/4uXCAJNuPKtKBsi28): a feature on a
share ω₀ of the tokens costs twice what it costs in L0. Its λ is fixed or controlled. The others are the paper's loss of
a fixed L0 (appendix F): nothing is steered, λ is `target_weight`, under the recipe's warm-up of λ. "token" also presses
the spread of ‖f‖₀ over tokens: E(‖f‖₀/L0* − 1)² = (L̄0/L0* − 1)² + Var ‖f‖₀/L0*². The two kinds do not combine: with
the frequency penalty a controlled λ reaches L0* as well.

The support is π_j > θ_j − ε_j/2. Where ε_j ≤ 2θ_j that implies π_j > 0 and the paper's ReLU before the jump changes
nothing; where θ_j < ε_j/2 (possible in the paper's preset only) rectified zeros fall into the window and every token of
that feature is in its support.

Departures from the paper: none in the preset `paper`, whose target is the unshifted x. The preset `short` starts θ at
the quantile of the first pre-activations that gives the requested L0, lets the bandwidth follow the thresholds,
ε_j = min(share·median θ, 1.8·θ_j), starts b_dec at the mean activation, and starts dead features anew at a dozen steps
of the first half (engine/resample.py). Its log θ decay towards their median,

    log θ_j ← log θ_j + κ·lr_θ·(median log θ − log θ_j)          after Adam's step, lr_θ its learning rate

because a feature that hardly fires has a noisy gradient of θ and, once θ_j is out of reach of π_j, none: it never comes
back. Where features explain a token independently of each other an entry pays if f² > λ, so one θ = √λ is right for
all; κ = 12 leaves room for a twelfth of a nat around it. A requested L0 is steered (control.py) with λ = c·(median θ)²,
where `target` does not say otherwise. The fixed-L0 loss is often implemented on the batch's mean instead of every
token: both are here. Under the frequency penalty an entry costs λ·(1 + 2p_j/ω₀), so that
log θ_j − ½·log(1 + 2p_j/ω₀) is what is drawn together.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jumpahead.sae import base, ste
from jumpahead.sae.base import Affine, Counts, Entries, Gradients, Knobs, Number, Params
from jumpahead.sae.checked import Field
from jumpahead.sae.threshold import WithThreshold

TARGET_WEIGHT = 1.0
"""The default λ of the loss of a fixed L0. At its minimum the pull (2λ/L0*)·(L̄0/L0* − 1) equals μ, the weight of a
plain penalty with that L0: so L̄0 ends a share μ·L0*/2λ above L0*. The controllers of an earlier demo ended with μ·L0*/2
between 0.026 (L0* = 4) and 0.005 (64): one weight serves all settings, and 1 would leave at most 3 % there.
dictionary_learning has 1 as well, in the same unit."""


class Options(base.Options):
    """Options of a `jumprelu` series."""

    frequency_scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    """ω₀ of the quadratic-frequency penalty, a share of tokens (0.1 and 0.01 were tried); None: plain L0."""
    target: Literal["controller", "batch", "token"] = "controller"
    """How a requested L0 is reached: λ is controlled, or by a loss of the batch's mean L0, or of every token's."""
    target_weight: float = Field(TARGET_WEIGHT, gt=0, allow_inf_nan=False)
    """λ of that loss, in the unit E‖x‖² = 1: what it costs that L0 is twice the requested one, or zero."""

    def objection(self, kind: str) -> str:
        if self.target == "controller":
            is_idle = self.target_weight != TARGET_WEIGHT
            return 'target_weight goes with target = "batch" or "token".' if is_idle else ""
        if kind != "l0":
            return f'target = "{self.target}" is a loss of a requested L0: give it l0 = […] instead of {kind}.'
        if self.frequency_scale is not None:
            return f'frequency_scale and target = "{self.target}" do not go together: leave one of them out.'
        return ""


class JumpReLU(WithThreshold):
    """See the module's docstring."""

    name, title, order = "jumprelu", "JumpReLU", 0
    colour, dash, symbol = "#0072B2", "solid", "circle"
    Options = Options
    options: Options
    first_price = 0.75  # where it ends: 0.6 to 0.9, over L0 4 to 64 (docs/LOG.md, 2026-11-26)
    revision = 2

    @property
    def uses_active(self) -> bool:
        return self.options.target == "token"

    @property
    def controlled(self) -> bool:
        return super().controlled and self.options.target == "controller"

    @property
    def fixed_sparsity(self) -> float:
        return super().fixed_sparsity if self.options.target == "controller" else self.options.target_weight

    def derive(self, p: Params) -> Params:
        v = super().derive(p)  # a rectified zero is in a window that reaches below 0
        return v | {"lower": torch.where(v["lower"] < 0, -torch.inf, v["lower"])}

    def rule(
        self, entries: Entries, values: tuple[Tensor, ...], p: Params, v: Params, knobs: Knobs, counts: Counts
    ) -> Gradients:
        weight = -self.chain(v) / v["epsilon"]
        slope = self.in_window(entries, v, weight * v["theta"])
        sparsity = self.in_window(entries, v, weight * self._price(counts, knobs))
        if self.options.target == "token":
            assert counts.active is not None
            sparsity = sparsity * entries.across(counts.active / self.asked(knobs) - 1)
        d_pre, d_theta = Affine((entries.between(v["theta"]),)), Affine((slope,), sparsity)
        return Gradients(d_pre, {"b_enc": d_pre, self.gate: d_theta}, None)

    def _price(self, counts: Counts, knobs: Knobs) -> Number:
        """∂(sparsity term)/∂H(π − θ): a number, or [M]; for target = "token" without its token's factor."""
        price, l0 = knobs.sparsity / counts.tokens, self.asked(knobs)
        if self.options.target == "token":
            return price * (2 / l0)
        if self.options.target == "batch":
            return price * (2 / l0) * (_mean_l0(counts) / l0 - 1)
        if self.options.frequency_scale is None:
            return price
        return price * (1 + counts.fired * (2 / (counts.tokens * self.options.frequency_scale)))

    def penalty(self, charge: Number, counts: Counts, knobs: Knobs) -> Number:
        l0 = self.asked(knobs)
        if self.options.target == "token":
            assert counts.active is not None
            return knobs.sparsity * (counts.active.double() / l0 - 1).square().mean()
        if self.options.target == "batch":
            return knobs.sparsity * (_mean_l0(counts) / l0 - 1) ** 2
        if self.options.frequency_scale is None:
            return knobs.sparsity * _mean_l0(counts)
        p = counts.fired.double() / counts.tokens
        return knobs.sparsity * (p * (1 + p / self.options.frequency_scale)).sum()

    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        v = self.derive(p)
        pre = ((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]).relu()
        f = ste.jumprelu(pre, v["theta"], v["epsilon"])
        error = (x - f @ p["W_dec"] - p["b_dec"]).square().sum(1)
        on = ste.step(pre, v["theta"], v["epsilon"])
        return error.mean() + knobs.sparsity * self._sparsity(on, self.asked(knobs))

    def _sparsity(self, on: Tensor, asked: float) -> Tensor:
        """The sparsity term without λ. on [B, M]: H(π − θ)."""
        if self.options.target != "controller":
            l0 = on.sum(1) if self.options.target == "token" else on.sum(1).mean()
            return (l0 / asked - 1).square().mean()
        if self.options.frequency_scale is None:
            return on.sum(1).mean()
        frequency = on.mean(0)
        return (frequency * (1 + frequency / self.options.frequency_scale)).sum()

    def sparsity_unit(self, p: Params) -> Number:
        return self.median_threshold(p, 2)

    def apart(self, counts: Counts) -> Tensor:
        if self.options.frequency_scale is None or self.gate != "log_threshold":
            return super().apart(counts)
        return 0.5 * (counts.fired * (2 / (counts.tokens * self.options.frequency_scale))).log1p()


def _mean_l0(counts: Counts) -> Tensor:
    """L̄0, active features per token."""
    return counts.fired.sum(dtype=torch.float64) / counts.tokens


ARCHITECTURE = JumpReLU
