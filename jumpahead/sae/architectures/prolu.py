"""ProLU SAE — ProLU: A Nonlinearity for Sparse Autoencoders, https://www.alignmentforum.org/posts/HEpufTdakGTTKgoYF

    m    = W_enc·(x − b_dec)
    f    = ProLU(m, b) = ReLU(m)·H(m + b)             the bias decides whether a feature is active, not its value
    x̂    = W_decᵀ f + b_dec                           rows of W_dec free
    L    = mean over tokens of ‖x − x̂‖² + λ·S
    S    = Σ_j f_j·‖d_j‖

    ∂H(z)/∂z := H(z)                                  straight-through: the derivative of ReLU (ProLU_STE)
    ∂f/∂b    := ReLU(m)·H(m + b) = f
    ∂f/∂m    := H(m)·H(m + b) + f = (1 + m)·H(m)·H(m + b)

    ∂L/∂b_j = Σ_tokens f_j·(∂‖x − x̂‖²/∂f_j + λ‖d_j‖)/B
    ∂L/∂m_j = (H(f_j) + f_j)·(∂‖x − x̂‖²/∂f_j + λ‖d_j‖)/B          ∂L/∂d_j gets λ/B·Σ_tokens f_j·d_j/‖d_j‖

b_gate holds b. It acts as a JumpReLU threshold of max(0, −b), which is the support: m > max(0, −b). The encoder's
additive bias b_enc is zero in training; a saved SAE holds −W_enc·b_dec there.

Departures from the paper: S weights each feature by ‖d_j‖, where the paper has the L1 norm of f, so that W_dec needs no
constraint; the activations' unit is E‖x‖² = 1, and ∂f/∂m depends on the unit. No resampling of dead features. The
preset `short` starts −b at the quantile of the first m that gives the initial L0 (instead of at zero), starts b_dec at
the mean activation, and can control λ for a requested L0 (controller.py), whose proportional action scales every b.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture
from jumpahead.sae.controller import exp
from jumpahead.sae.gradients import Affine, Counts, Gradients, StepInputs
from jumpahead.sae.parameters import Params, initial_parameters, threshold_for_l0, with_unit_decoder_rows
from jumpahead.sae.support import AboveThreshold, Entries, Number


class ProLUFunction(torch.autograd.Function):
    """ReLU(m)·H(m + b) for autograd, with straight-through gradients of m and b. m: [B, M]. b: [M]."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, b: Tensor) -> Tensor:
        f = m * ((m + b > 0) & (m > 0))
        ctx.save_for_backward(f)
        return f

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (f,), (grad,) = ctx.saved_tensors, grad_outputs
        return ((f > 0) + f) * grad, (f * grad).sum(0)


class ProLU(Architecture):
    """The ProLU SAE; equations in the module's docstring."""

    name, title = "prolu", "ProLU"
    has_momentum = False
    settings = ("l0", "lambda")
    vectors = ("b_enc", "b_gate")

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        return "free"

    @property
    def trained_vectors(self) -> dict[str, float]:
        return {"b_gate": 1.0}

    @property
    def sparsity_parameter(self) -> str:
        return "b_gate"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        params, m = initial_parameters(d, width, generator, sample, self.recipe)
        threshold = 0.0
        if self.recipe.initial_threshold is None:
            threshold = max(0.0, threshold_for_l0(m, self.initial_l0(width, d)))
        return params | {"b_gate": torch.full((width,), -threshold)}

    def derive(self, params: Params) -> Params:
        return {"threshold": (-params["b_gate"]).relu(), "norm": params["W_dec"].norm(dim=1)}

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> AboveThreshold:
        return AboveThreshold(derived["threshold"])

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        return (entries.pre * entries.between(derived["threshold"]),)

    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        (f,), coefficient = values, step_inputs.sparsity_coefficient / counts.tokens
        cost = coefficient * entries.per_feature(derived["norm"])
        d_m, d_b = (f > 0) + f, f
        return Gradients(Affine((d_m,), cost * d_m), {"b_gate": Affine((d_b,), cost * d_b)}, coefficient * f)

    def sparsity_sum(self, entries: Entries, values: tuple[Tensor, ...], derived: Params) -> Tensor:
        return (values[0] * entries.per_feature(derived["norm"])).sum(dtype=torch.float64)

    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        m = (x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
        f = ProLUFunction.apply(m, params["b_gate"])
        error = (x - f @ params["W_dec"] - params["b_dec"]).square().sum(1)
        return (error + step_inputs.sparsity_coefficient * (f * params["W_dec"].norm(dim=1)).sum(1)).mean()

    def activate(self, params: Params, pre: Tensor) -> Tensor:
        return pre * (pre > (-params["b_gate"]).relu())

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        super().reinitialise_features(params, features, thresholds)
        params["b_gate"][features] = -thresholds

    def shift_thresholds(self, params: Params, shift: Number) -> None:
        params["b_gate"] *= exp(shift)

    def fold(self, params: Params, scale: float) -> Params:
        """Return the folded parameters. Decoder rows get norm one by m_j ← ‖d_j‖·m_j and b_j ← ‖d_j‖·b_j."""
        b_gate = params["b_gate"].double() * params["W_dec"].double().norm(dim=1)
        return super().fold(params | with_unit_decoder_rows(params) | {"b_gate": b_gate}, scale)

    def fold_vectors(self, params: Params, scale: float, norms: Tensor) -> Params:
        return super().fold_vectors(params, scale, norms) | {"b_gate": scale * params["b_gate"].double()}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        return super().unfold_vectors(folded, scale, shift) | {"b_gate": folded["b_gate"].double() / scale}


ARCHITECTURE = ProLU
