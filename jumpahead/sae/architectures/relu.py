"""ReLU SAE with the RI-L1 penalty of Jumping Ahead (appendix D), https://arxiv.org/abs/2407.14435 — the baseline

    π    = W_enc·(x − b_dec) + b_enc
    f    = ReLU(π)
    x̂    = W_decᵀ f + b_dec                           rows of W_dec free
    L    = mean over tokens of ‖x − x̂‖² + λ·S
    S    = Σ_j f_j·‖d_j‖                              unchanged where d_j grows and f_j shrinks by the same factor

    ∂L/∂π_j = H(π_j)·(∂‖x − x̂‖²/∂f_j + λ‖d_j‖)/B     ∂L/∂d_j gets λ/B·Σ_tokens f_j·d_j/‖d_j‖

The support is π > 0. λ shrinks every f_j besides switching features off, which the other architectures avoid.

Departures from the paper: the paper uses this penalty in its Gated baseline; here it is the ReLU SAE's, as in
Anthropic's April 2024 update. No resampling of dead features. The preset `short` starts b_enc where L0 starts at the
requested one (instead of at M/2), starts b_dec at the mean activation, and can control λ for a requested L0
(controller.py), whose proportional action moves every b_enc by the same amount, a share of mean |b_enc|.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture
from jumpahead.sae.gradients import Affine, Counts, Gradients, StepInputs
from jumpahead.sae.parameters import Params, initial_parameters, threshold_for_l0, with_unit_decoder_rows
from jumpahead.sae.support import AboveThreshold, Entries, Number


class ReLU(Architecture):
    """The ReLU SAE; equations in the module's docstring."""

    name, title = "relu", "ReLU"
    has_momentum = False
    settings = ("l0", "lambda")
    revision = 1
    vectors = ("b_enc",)

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        return "free"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        params, pre = initial_parameters(d, width, generator, sample, self.recipe)
        if self.recipe.initial_threshold is None:
            params["b_enc"] -= threshold_for_l0(pre, self.initial_l0(width, d))
        return params

    def derive(self, params: Params) -> Params:
        return {"norm": params["W_dec"].norm(dim=1)}

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> AboveThreshold:
        return AboveThreshold(torch.zeros_like(params["b_enc"]))

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        return (entries.pre.relu(),)

    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        norm, coefficient = entries.per_feature(derived["norm"]), step_inputs.sparsity_coefficient / counts.tokens
        on = (values[0] > 0).to(values[0].dtype)
        d_pre = Affine((on,), coefficient * norm * on)
        return Gradients(d_pre, {"b_enc": d_pre}, coefficient * values[0])

    def sparsity_sum(self, entries: Entries, values: tuple[Tensor, ...], derived: Params) -> Tensor:
        return (values[0] * entries.per_feature(derived["norm"])).sum(dtype=torch.float64)

    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        f = ((x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]).relu()
        error = (x - f @ params["W_dec"] - params["b_dec"]).square().sum(1)
        return (error + step_inputs.sparsity_coefficient * (f * params["W_dec"].norm(dim=1)).sum(1)).mean()

    def activate(self, params: Params, pre: Tensor) -> Tensor:
        return pre.relu()

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        params["b_enc"][features] = -thresholds

    def shift_thresholds(self, params: Params, shift: Number) -> None:
        # λ alone ends 3 % below the requested L0 after 146 steps; with this, within 1 % (docs/LOG.md, 2026-11-24).
        params["b_enc"] -= shift * params["b_enc"].abs().mean()

    def fold(self, params: Params, scale: float) -> Params:
        """Return the folded parameters. Decoder rows get norm one by π_j ← ‖d_j‖·π_j."""
        return super().fold(params | with_unit_decoder_rows(params), scale)


ARCHITECTURE = ReLU
