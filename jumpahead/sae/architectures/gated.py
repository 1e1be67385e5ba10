"""Gated SAE — Improving Dictionary Learning with Gated Sparse Autoencoders, https://arxiv.org/abs/2404.16014

    h       = W_gate·(x − b_dec)                    W_enc holds W_gate, b_enc holds b_gate
    π_gate  = h + b_gate                            decides whether a feature is active
    π_mag   = exp(r_mag)·h + b_mag                  tied weights: W_mag = exp(r_mag)·W_gate
    f       = H(π_gate)·ReLU(π_mag)
    x̂       = W_decᵀ f + b_dec
    x̂_aux   = W_decᵀ ReLU(π_gate) + b_dec           with W_dec and b_dec frozen: trains the gate only
    L       = mean over tokens of ‖x − x̂‖² + ‖x − x̂_aux‖² + λ·S

    norm = "l1":     S = Σ_j ReLU(π_gate,j)         rows of W_dec have norm one; the original, and the default
    norm = "ri-l1":  S = Σ_j ReLU(π_gate,j)·‖d_j‖   rows of W_dec free; arXiv 2407.14435 appendix D; at a few million
                                                    tokens far behind l1 (docs/LOG.md, 2026-11-22)

The support is π_gate > 0. One encoder product serves both paths; both reconstructions use the same rows.

Departures from the paper: no resampling of dead features, no division of the squared error by d; the b_dec inside the
encoder stays live in the auxiliary path, only the decoder's copies are frozen. The preset `short` starts b_gate at the
value that gives the initial L0 (instead of M/2) with b_mag = b_gate, starts b_dec at the mean activation, and can
control λ for a requested L0 (controller.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture, Options
from jumpahead.sae.gradients import Affine, Counts, Gradients, Reconstruction, StepInputs
from jumpahead.sae.parameters import Params, initial_parameters, threshold_for_l0
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig
from jumpahead.sae.support import AboveThreshold, Entries, Number


@dataclass(frozen=True, kw_only=True)
class GatedOptions(Options):
    """Options of a `gated` series."""

    norm: Literal["l1", "ri-l1"] = "l1"
    """The sparsity term, which also decides the decoder's norm: `l1` unit rows, `ri-l1` free rows."""


class Gated(Architecture):
    """The Gated SAE; equations in the module's docstring."""

    name, title = "gated", "Gated"
    settings = ("l0", "lambda")
    revision = 1
    vectors = ("b_enc", "b_mag", "r_mag")
    Options = GatedOptions
    reconstructions = (
        Reconstruction("input", trains_decoder=True, adds_bias=True),
        Reconstruction("input", trains_decoder=False, adds_bias=True),
    )
    options: GatedOptions

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        return "free" if self.options.norm == "ri-l1" else "unit"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        params, pre = initial_parameters(d, width, generator, sample, self.recipe)
        if self.recipe.initial_threshold is None:
            params["b_enc"] -= threshold_for_l0(pre, self.initial_l0(width, d))
        return params | {"b_mag": params["b_enc"].clone(), "r_mag": torch.zeros(width)}

    def derive(self, params: Params) -> Params:
        derived = {"scale": params["r_mag"].exp()}
        return derived | {"norm": params["W_dec"].norm(dim=1)} if self.decoder_norm == "free" else derived

    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> AboveThreshold:
        closed = params["b_enc"] - params["b_mag"] / derived["scale"]  # π_mag = 0
        return AboveThreshold(torch.zeros_like(params["b_enc"]), (closed,))

    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        magnitude = self._magnitude(entries, params, derived).relu() * (entries.pre > 0)
        return magnitude, entries.pre.relu()

    def _magnitude(self, entries: Entries, params: Params, derived: Params) -> Tensor:
        """Return π_mag = exp(r_mag)·(π_gate − b_gate) + b_mag at each entry; shape and dtype of `entries.pre`."""
        return entries.per_feature(derived["scale"]) * (
            entries.pre - entries.per_feature(params["b_enc"])
        ) + entries.per_feature(params["b_mag"])

    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        scale, coefficient = entries.per_feature(derived["scale"]), step_inputs.sparsity_coefficient / counts.tokens
        norm = entries.per_feature(derived["norm"]) if "norm" in derived else torch.ones_like(scale)
        is_on, is_open = (values[0] > 0).to(scale.dtype), (entries.pre > 0).to(scale.dtype)
        d_mag = Affine((is_on, None))
        d_gate = Affine((None, is_open), coefficient * norm * is_open)
        d_pre = Affine((scale * is_on, is_open), d_gate.constant)
        d_r = Affine((is_on * scale * (entries.pre - entries.per_feature(params["b_enc"])), None))
        shrink = coefficient * values[1] if "norm" in derived else None
        return Gradients(d_pre, {"b_enc": d_gate, "b_mag": d_mag, "r_mag": d_r}, shrink)

    def sparsity_sum(self, entries: Entries, values: tuple[Tensor, ...], derived: Params) -> Tensor:
        total = values[1] * entries.per_feature(derived["norm"]) if "norm" in derived else values[1]
        return total.sum(dtype=torch.float64)

    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        h = (x - params["b_dec"]) @ params["W_enc"].T
        gate = h + params["b_enc"]
        f = (gate > 0) * (params["r_mag"].exp() * h + params["b_mag"]).relu()
        error = (x - f @ params["W_dec"] - params["b_dec"]).square().sum(1)
        auxiliary = (x - gate.relu() @ params["W_dec"].detach() - params["b_dec"].detach()).square().sum(1)
        norms = params["W_dec"].norm(dim=1) if self.decoder_norm == "free" else 1.0
        return (error + auxiliary + step_inputs.sparsity_coefficient * (gate.relu() * norms).sum(1)).mean()

    def activate(self, params: Params, pre: Tensor) -> Tensor:
        return (pre > 0) * (params["r_mag"].exp() * (pre - params["b_enc"]) + params["b_mag"]).relu()

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        for name in ("b_enc", "b_mag"):
            params[name][features] = -thresholds
        params["r_mag"][features] = 0.0

    def shift_thresholds(self, params: Params, shift: Number) -> None:
        # π_mag does not depend on b_gate: a common shift of b_gate changes which features are active, not their values.
        params["b_enc"] -= shift * params["b_enc"].abs().mean().double()

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        short = short._replace(proportional_gain=0.0)
        if not short.beta1:
            return short
        return short._replace(bias_lr_multiplier=0.4, resample_every=max(1, config.steps // 24))

    def fold_vectors(self, params: Params, scale: float, norms: Tensor) -> Params:
        shift = params["W_enc"].double() @ params["b_dec"].double()
        ratio = params["r_mag"].double().exp()
        return super().fold_vectors(params, scale, norms) | {
            "b_mag": scale * norms * (params["b_mag"].double() - ratio * shift),
            "r_mag": params["r_mag"].double() + norms.log(),
        }

    def rescale_features(self, params: Params, factors: Tensor) -> Params:
        # π_mag = exp(r_mag)·(π_gate − b_gate) + b_mag grows with π_gate and b_mag
        return super().rescale_features(params, factors) | {"r_mag": params["r_mag"]}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        ratio = folded["r_mag"].double().exp()
        b_mag = folded["b_mag"].double() / scale + ratio * shift
        return super().unfold_vectors(folded, scale, shift) | {"b_mag": b_mag, "r_mag": folded["r_mag"]}


ARCHITECTURE = Gated
