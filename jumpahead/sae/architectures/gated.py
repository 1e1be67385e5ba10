"""Gated SAE — Improving Dictionary Learning with Gated Sparse Autoencoders, https://arxiv.org/abs/2404.16014

    h       = W_gate·(x − b_dec)                    W_enc holds W_gate, b_enc holds b_gate
    π_gate  = h + b_gate                            what decides whether a feature is active
    π_mag   = exp(r_mag)·h + b_mag                  tied weights: W_mag = exp(r_mag)·W_gate
    f       = H(π_gate)·ReLU(π_mag)
    x̂       = W_decᵀ f + b_dec
    x̂_aux   = W_decᵀ ReLU(π_gate) + b_dec           with W_dec and b_dec frozen: trains the gate alone
    L       = mean over tokens of ‖x − x̂‖² + ‖x − x̂_aux‖² + λ·S

    norm = "l1":     S = Σ_j ReLU(π_gate,j)         rows of W_dec have norm one; the original, and the default
    norm = "ri-l1":  S = Σ_j ReLU(π_gate,j)·‖d_j‖   rows of W_dec free; arXiv 2407.14435 appendix D; at a few million
                                                    tokens far behind l1 (docs/LOG.md, 2026-11-22)

The support is π_gate > 0. One encoder product serves both paths; both reconstructions use the same rows.

Departures from the paper: no resampling of dead features, no division of the squared error by d; the b_dec inside the
encoder stays live in the auxiliary path, only the decoder's copies are frozen. The preset `short` starts b_gate
where L0 starts at the requested one (instead of at M/2) with b_mag = b_gate, starts b_dec at the mean activation, and
can steer λ towards a requested L0 (control.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jumpahead.sae import base
from jumpahead.sae.base import (
    Above,
    Affine,
    Architecture,
    Counts,
    Entries,
    Gradients,
    Knobs,
    Number,
    Params,
    Reconstruction,
    common_parameters,
    quantile_for_l0,
)
from jumpahead.sae.recipe import Recipe, Shape, TrainConfig


class Options(base.Options):
    """Options of a `gated` series."""

    norm: Literal["l1", "ri-l1"] = "l1"
    """The sparsity term, and with it the decoder's norm."""


class Gated(Architecture):
    """See the module's docstring."""

    name, title, order = "gated", "Gated", 1
    colour, dash, symbol = "#D55E00", "dash", "square"
    settings = ("l0", "lambda")
    revision = 1
    vectors = ("b_enc", "b_mag", "r_mag")
    Options = Options
    reconstructions = (Reconstruction("input", live=True, bias=True), Reconstruction("input", live=False, bias=True))
    options: Options

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        return "free" if self.options.norm == "ri-l1" else "unit"

    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        p, pre = common_parameters(d, width, generator, sample, self.recipe)
        if self.recipe.threshold_start is None:
            p["b_enc"] -= quantile_for_l0(pre, self.started_l0(width, d))
        return p | {"b_mag": p["b_enc"].clone(), "r_mag": torch.zeros(width)}

    def derive(self, p: Params) -> Params:
        v = {"scale": p["r_mag"].exp()}
        return v | {"norm": p["W_dec"].norm(dim=1)} if self.decoder_norm == "free" else v

    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Above:
        closed = p["b_enc"] - p["b_mag"] / v["scale"]  # π_mag = 0
        return Above(torch.zeros_like(p["b_enc"]), (closed,))

    def values(self, entries: Entries, p: Params, v: Params) -> tuple[Tensor, ...]:
        magnitude = self._magnitude(entries, p, v).relu() * (entries.pre > 0)
        return magnitude, entries.pre.relu()

    def _magnitude(self, entries: Entries, p: Params, v: Params) -> Tensor:
        """π_mag = exp(r_mag)·(π_gate − b_gate) + b_mag at each entry."""
        return entries.at(v["scale"]) * (entries.pre - entries.at(p["b_enc"])) + entries.at(p["b_mag"])

    def rule(
        self, entries: Entries, values: tuple[Tensor, ...], p: Params, v: Params, knobs: Knobs, counts: Counts
    ) -> Gradients:
        scale, price = entries.at(v["scale"]), knobs.sparsity / counts.tokens
        norm = entries.at(v["norm"]) if "norm" in v else torch.ones_like(scale)
        is_on, is_open = (values[0] > 0).to(scale.dtype), (entries.pre > 0).to(scale.dtype)
        d_mag = Affine((is_on, None))
        d_gate = Affine((None, is_open), price * norm * is_open)
        d_pre = Affine((scale * is_on, is_open), d_gate.constant)
        d_r = Affine((is_on * scale * (entries.pre - entries.at(p["b_enc"])), None))
        shrink = price * values[1] if "norm" in v else None
        return Gradients(d_pre, {"b_enc": d_gate, "b_mag": d_mag, "r_mag": d_r}, shrink)

    def charge(self, entries: Entries, values: tuple[Tensor, ...], v: Params) -> Tensor:
        total = values[1] * entries.at(v["norm"]) if "norm" in v else values[1]
        return total.sum(dtype=torch.float64)

    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        h = (x - p["b_dec"]) @ p["W_enc"].T
        gate = h + p["b_enc"]
        f = (gate > 0) * (p["r_mag"].exp() * h + p["b_mag"]).relu()
        error = (x - f @ p["W_dec"] - p["b_dec"]).square().sum(1)
        auxiliary = (x - gate.relu() @ p["W_dec"].detach() - p["b_dec"].detach()).square().sum(1)
        norms = p["W_dec"].norm(dim=1) if self.decoder_norm == "free" else 1.0
        return (error + auxiliary + knobs.sparsity * (gate.relu() * norms).sum(1)).mean()

    def activate(self, p: Params, pre: Tensor) -> Tensor:
        return (pre > 0) * (p["r_mag"].exp() * (pre - p["b_enc"]) + p["b_mag"]).relu()

    def begin(self, p: Params, features: Tensor, thresholds: Tensor) -> None:
        for name in ("b_enc", "b_mag"):
            p[name][features] = -thresholds
        p["r_mag"][features] = 0.0

    def steer(self, p: Params, growth: Number) -> None:
        # π_mag does not depend on b_gate: only who is active moves, by a common shift of the gates.
        p["b_enc"] -= growth * p["b_enc"].abs().mean().double()

    @classmethod
    def tuned(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        return short._replace(steering=0.0)

    def fold_vectors(self, p: Params, scale: float, norms: Tensor) -> Params:
        shift = p["W_enc"].double() @ p["b_dec"].double()
        growth = p["r_mag"].double().exp()
        return super().fold_vectors(p, scale, norms) | {
            "b_mag": scale * norms * (p["b_mag"].double() - growth * shift),
            "r_mag": p["r_mag"].double() + norms.log(),
        }

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        growth = folded["r_mag"].double().exp()
        b_mag = folded["b_mag"].double() / scale + growth * shift
        return super().unfold_vectors(folded, scale, shift) | {"b_mag": b_mag, "r_mag": folded["r_mag"]}


ARCHITECTURE = Gated
