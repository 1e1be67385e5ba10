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
a fixed L0 (appendix F): there is no controller, λ is `target_weight`, warmed up as the recipe says. "token" also
penalises the variance of ‖f‖₀ over tokens: E(‖f‖₀/L0* − 1)² = (L̄0/L0* − 1)² + Var ‖f‖₀/L0*². The two kinds do not
combine: with the frequency penalty a controlled λ reaches L0* as well.

The support is π_j > θ_j − ε_j/2. Where ε_j ≤ 2θ_j that implies π_j > 0 and the paper's ReLU before the jump changes
nothing; where θ_j < ε_j/2 (possible in the paper's preset only) rectified zeros fall into the window and every token of
that feature is in its support.

Departures from the paper: none in the preset `paper`, whose target is the unshifted x. The preset `short` adds, every
fourth step, the auxiliary loss ‖e − ê‖², in which features that have not fired lately reconstruct e = x − x̂ (auxk.py).
The paper has no auxiliary loss; with few tokens and momentum rare features die without it (docs/LOG.md, 2026-11-30).
θ gets no gradient from it, and `recipe = {aux_weight = 0}` leaves it out. The preset also starts θ at the quantile of
the first pre-activations that gives the requested L0, lets the bandwidth follow the thresholds,
ε_j = min(share·median θ, 1.8·θ_j), starts b_dec at the mean activation, and resamples dead features at a dozen steps
of the first half (engine/resample.py). Its log θ decay towards their median,

    log θ_j ← log θ_j + κ·lr_θ·(median log θ − log θ_j)          after Adam's step, lr_θ its learning rate

because a feature that hardly fires has a noisy gradient of θ and, once π_j never reaches θ_j, none: it stays dead.
Where features explain a token independently of each other an entry pays if f² > λ, so one θ = √λ is right for all; κ =
12 allows about a twelfth of a nat around it. A requested L0 is controlled (controller.py) with λ = c·(median θ)²,
unless `target` says otherwise. The fixed-L0 loss is often implemented on the batch's mean instead of every token: both
are here. Under the frequency penalty an entry costs λ·(1 + 2p_j/ω₀), so log θ_j − ½·log(1 + 2p_j/ω₀) decays to its
median instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from jumpahead.sae import ste
from jumpahead.sae.architecture import Options
from jumpahead.sae.auxk import RECONSTRUCTIONS, auxk_error, default_k_aux
from jumpahead.sae.bounds import Finite, GreaterThan
from jumpahead.sae.gradients import Affine, Counts, Gradients, StepInputs
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Recipe, Setting, Shape, TrainConfig
from jumpahead.sae.support import DEAD, AboveThreshold, Entries, Number
from jumpahead.sae.threshold import WithThreshold

TARGET_WEIGHT = 1.0
"""The default λ of the loss of a fixed L0. At its minimum the gradient (2λ/L0*)·(L̄0/L0* − 1) equals μ, the coefficient
of a plain penalty with that L0: so L̄0 ends a share μ·L0*/2λ above L0*. The controllers of an earlier demo ended with
μ·L0*/2 between 0.026 (L0* = 4) and 0.005 (64): one weight serves all settings, and 1 would leave at most 3 % there.
dictionary_learning has 1 as well, in the same unit."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUOptions(Options):
    """Options of a `jumprelu` series."""

    frequency_scale: Annotated[float, GreaterThan(0), Finite()] | None = None
    """ω₀ of the quadratic-frequency penalty, a share of tokens (0.1 and 0.01 were tried); None: plain L0."""
    target: Literal["controller", "batch", "token"] = "controller"
    """Means of reaching a requested L0: controlling λ, or a loss of the batch's mean L0, or of every token's L0."""
    target_weight: Annotated[float, GreaterThan(0), Finite()] = TARGET_WEIGHT
    """λ of that loss, in the unit E‖x‖² = 1: the loss at an L0 of twice the requested one, or of zero."""

    def contradiction(self, kind: str) -> str:
        if self.target == "controller":
            is_idle = self.target_weight != TARGET_WEIGHT
            return 'target_weight goes with target = "batch" or "token".' if is_idle else ""
        if kind != "l0":
            return f'target = "{self.target}" is a loss of a requested L0: give it l0 = […] instead of {kind}.'
        if self.frequency_scale is not None:
            return f'frequency_scale and target = "{self.target}" do not go together: leave one of them out.'
        return ""


class JumpReLU(WithThreshold):
    """The JumpReLU SAE; equations in the module's docstring."""

    name, title = "jumprelu", "JumpReLU"
    Options = JumpReLUOptions
    options: JumpReLUOptions
    initial_penalty_scale = 0.75  # final values are 0.6 to 0.9, over L0 4 to 64 (docs/LOG.md, 2026-11-26)
    revision = 2

    @property
    def needs_token_counts(self) -> bool:
        return self.options.target == "token"

    @property
    def is_controlled(self) -> bool:
        return super().is_controlled and self.options.target == "controller"

    @property
    def fixed_sparsity_coefficient(self) -> float:
        return super().fixed_sparsity_coefficient if self.options.target == "controller" else self.options.target_weight

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        return super().short_recipe(short, config, shape)._replace(aux_weight=1.0 if short.beta1 else 0.0)

    def __init__(self, options: JumpReLUOptions, setting: Setting | None, recipe: Recipe | None):
        super().__init__(options, setting, recipe)
        if recipe is not None and recipe.aux_weight:
            self.reconstructions = RECONSTRUCTIONS

    @property
    def needs_dead_features(self) -> bool:
        return self.recipe.aux_weight > 0

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> AboveThreshold:
        selection = super().selection(params, derived, step_inputs, training=training)
        if not training or step_inputs.dead is None:
            return selection
        return selection._replace(dead=step_inputs.dead, k_dead=default_k_aux(params))

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        values = super().values(entries, params, derived)
        return values if entries.part is None else (*values, entries.pre.relu() * entries.part_mask(DEAD))

    def error_weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        return 1.0, self.recipe.aux_weight

    def derive(self, params: Params) -> Params:
        derived = super().derive(params)
        if "lower" not in derived:
            return derived
        # a rectified zero is in a window that reaches below 0
        return derived | {"lower": torch.where(derived["lower"] < 0, -torch.inf, derived["lower"])}

    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        weight = -self.threshold_derivative(derived) / derived["epsilon"]
        slope = self.window_mask(entries, derived, weight * derived["theta"])
        sparsity = self.window_mask(entries, derived, weight * self._active_entry_cost(counts, step_inputs))
        if self.options.target == "token":
            assert counts.active is not None
            sparsity = sparsity * entries.per_token(counts.active / self.requested_l0(step_inputs) - 1)
        of_aux = [(value > 0).to(value.dtype) for value in values[1:]]
        d_pre = Affine((entries.between(derived["theta"]), *of_aux))
        d_theta = Affine((slope, *[None] * len(of_aux)), sparsity)
        return Gradients(d_pre, {"b_enc": d_pre, self.sparsity_parameter: d_theta}, None)

    def _active_entry_cost(self, counts: Counts, step_inputs: StepInputs) -> Number:
        """Return the derivative of the sparsity term with respect to H(π − θ) of an entry: one number, or [M].

        For target = "token", the factor that depends on the token is left out.
        """
        coefficient, l0 = step_inputs.sparsity_coefficient / counts.tokens, self.requested_l0(step_inputs)
        if self.options.target == "token":
            return coefficient * (2 / l0)
        if self.options.target == "batch":
            return coefficient * (2 / l0) * (_mean_l0(counts) / l0 - 1)
        if self.options.frequency_scale is None:
            return coefficient
        return coefficient * (1 + counts.fired * (2 / (counts.tokens * self.options.frequency_scale)))

    def penalty(self, sparsity_sum: Number, counts: Counts, step_inputs: StepInputs) -> Number:
        l0 = self.requested_l0(step_inputs)
        if self.options.target == "token":
            assert counts.active is not None
            return step_inputs.sparsity_coefficient * (counts.active.double() / l0 - 1).square().mean()
        if self.options.target == "batch":
            return step_inputs.sparsity_coefficient * (_mean_l0(counts) / l0 - 1) ** 2
        if self.options.frequency_scale is None:
            return step_inputs.sparsity_coefficient * _mean_l0(counts)
        frequency = counts.fired.double() / counts.tokens
        return step_inputs.sparsity_coefficient * (frequency * (1 + frequency / self.options.frequency_scale)).sum()

    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        derived = self.derive(params)
        pre = (x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
        f = ste.jumprelu(pre.relu(), derived["theta"], derived["epsilon"])
        e = x - f @ params["W_dec"] - params["b_dec"]
        on = ste.step(pre.relu(), derived["theta"], derived["epsilon"])
        sparsity = self._sparsity(on, self.requested_l0(step_inputs))
        loss = e.square().sum(1).mean() + step_inputs.sparsity_coefficient * sparsity
        if step_inputs.dead is None or not self.needs_dead_features:
            return loss
        k = default_k_aux(params)
        return loss + self.recipe.aux_weight * auxk_error(params, pre, e.detach(), step_inputs.dead, k)

    def _sparsity(self, on: Tensor, requested_l0: float) -> Tensor:
        """Return the sparsity term without λ, 0-d. on: [B, M] H(π − θ), 1 for active entries."""
        if self.options.target != "controller":
            l0 = on.sum(1) if self.options.target == "token" else on.sum(1).mean()
            return (l0 / requested_l0 - 1).square().mean()
        if self.options.frequency_scale is None:
            return on.sum(1).mean()
        frequency = on.mean(0)
        return (frequency * (1 + frequency / self.options.frequency_scale)).sum()

    def sparsity_coefficient_scale(self, params: Params) -> Number:
        return self.median_threshold(params, 2)

    def decay_target_offset(self, counts: Counts) -> Tensor:
        if self.options.frequency_scale is None or self.sparsity_parameter != "log_threshold":
            return super().decay_target_offset(counts)
        return 0.5 * (counts.fired * (2 / (counts.tokens * self.options.frequency_scale))).log1p()


def _mean_l0(counts: Counts) -> Tensor:
    """Return L̄0, the mean number of active features per token, 0-d float64."""
    return counts.fired.sum(dtype=torch.float64) / counts.tokens


ARCHITECTURE = JumpReLU
