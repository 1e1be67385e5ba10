"""One training step, as five calls. Nothing of size B×M exists after the first.

    1  support   which entries (token, feature) can carry a value or a gradient, and π there      O(B·d·M), one product
    2  decode    x̂ = Σ values·d_j + b_dec, residual r = x̂ − target                                O(|S|·d)
    3  project   r·d_j at the entries                                                             O(|S|·d)
    4  rule      the architecture: elementwise on vectors of length |S|                           O(|S|)
    5  rows      per touched feature: gradient rows, decoder norm, lazy Adam, renormalise         O(|S|·d + touched·d)

B tokens · d activation dimensions · M features · |S| entries of the support. All tensors are float32 (float64 in
tests); x is in the unit E‖x‖² = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from jumpahead.engine.lazy_adam import Adam, update_
from jumpahead.errors import DivergedError
from jumpahead.sae.base import Architecture, Entries, Knobs, Params, Reconstruction, Selection
from jumpahead.sae.control import Control

LARGEST = 1e15
"""A loss beyond which squared gradients overflow float32 and rows would be lost for good; about 1 is usual."""


class Support(NamedTuple):
    """The entries, token by token and within a token by feature; and how to walk them feature by feature."""

    indptr: Tensor
    """[B + 1] int64: token i's entries are indptr[i] … indptr[i + 1] − 1."""
    token: Tensor
    """[|S|] int32."""
    feature: Tensor
    """[|S|] int32."""
    pre: Tensor
    """[|S|] π, recomputed canonically: products and sum in float64, rounded once."""
    part: Tensor | None
    """[|S|] uint8 (base.MAIN | base.DEAD); None where there is one part."""
    colptr: Tensor
    """[M + 1] int64: feature j's entries are order[colptr[j]] … order[colptr[j + 1] − 1]."""
    order: Tensor
    """[|S|] int64: entries sorted by feature, then by token."""


class Centred(NamedTuple):
    """What the encoder multiplies."""

    x: Tensor
    """[B, d] x − b_dec."""
    norms: Tensor
    """[B] ‖x − b_dec‖."""


class Residual(NamedTuple):
    """One reconstruction's error."""

    error: Tensor
    """[B, d] x̂ − target."""
    square: float
    """Σ ‖x̂ − target‖² over the batch, summed in float64."""


class RowUpdate(NamedTuple):
    """What step 5 needs besides the support."""

    x: Tensor
    """[B, d] x − b_dec."""
    d_pre: Tensor
    """[|S|] ∂L/∂(W_enc·x) at each entry."""
    values: tuple[Tensor, ...]
    """[|S|] per live reconstruction."""
    residuals: tuple[Tensor, ...]
    """[B, d] per live reconstruction: x̂ − target."""
    scales: tuple[float, ...]
    """Per live reconstruction: ∂L/∂x̂ = scale·residual."""
    shrink: Tensor | None
    """[M] c: ∂L/∂d_j gets c·d_j/‖d_j‖."""
    unit: bool
    """Whether rows of W_dec have norm one."""


class Kernels(Protocol):
    """A kernel layer."""

    name: str

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        """x − bias and the norms of its rows. x [B, d]; bias [d]."""
        ...

    def support(self, x: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, selection: Selection) -> Support:
        """Step 1. w_enc [M, d]; b_enc, norms = ‖rows of w_enc‖ [M]."""
        ...

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        """Step 2: Σ_j value·d_j + bias − sign·target. values [|S|]; bias [d]; target [B, d]."""
        ...

    def project(self, support: Support, residual: Tensor, scale: float, w_dec: Tensor) -> Tensor:
        """Step 3: scale·residual_i·d_j at each entry, [|S|]."""
        ...

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        """Per-feature sums of a support vector, [M], added in token order."""
        ...

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> None:
        """Step 5: update W_enc, W_dec, their second moments, `last` and `norms` of every touched feature, in place."""
        ...


@dataclass
class State:
    """An SAE in training: everything a checkpoint holds."""

    arch: Architecture
    p: Params
    v: Params
    """Second moments, by parameter name."""
    last: Tensor
    """[M] int32: the step that last touched each feature's rows."""
    silent: Tensor
    """[M] int64: tokens since each feature last fired."""
    norms: Tensor
    """[M] ‖rows of W_enc‖, kept with them."""
    t: int = 0
    """Steps done."""
    control: Control | None = None
    """The controller of λ, where an L0 was requested of an architecture that has λ."""


class StepResult(NamedTuple):
    """What a step measured, before its update; means over the batch."""

    error: float
    """‖x − x̂‖²."""
    penalty: float
    """The sparsity term."""
    l0: float
    """Active features per token."""
    entries: float
    """|S| per token."""


def fresh_state(arch: Architecture, d: int, width: int, seed: int, sample: Tensor) -> State:
    """An untrained SAE. sample [n, d]: activations in the unit E‖x‖² = 1."""
    p = arch.initialise(d, width, torch.Generator().manual_seed(seed), sample.float())
    p = {name: tensor.to(sample.dtype).contiguous() for name, tensor in p.items()}
    p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
    trained = ("W_enc", "W_dec", "b_dec", *arch.trained)
    state = State(
        arch=arch,
        p=p,
        v={name: torch.zeros_like(p[name]) for name in trained},
        last=torch.zeros(width, dtype=torch.int32),
        silent=torch.zeros(width, dtype=torch.int64),
        norms=p["W_enc"].norm(dim=1),
    )
    if arch.controlled:
        state.control = Control(sparsity=arch.first_sparsity(p), l0=arch.setting.value)
    return state


def step(state: State, x: Tensor, lr: float, warmup: float, kernels: Kernels) -> StepResult:
    """Train on one batch x [B, d]. lr: Adam's learning rate; warmup: the share of a fixed λ in force.

    Raises DivergedError, with the weights untouched, where the loss is not finite.
    """
    arch, p, tokens = state.arch, state.p, len(x)
    v, knobs = arch.derive(p), knobs_of(state, warmup)
    centred = kernels.centre(x, p["b_dec"])
    selection = arch.selection(p, v, knobs, training=True)
    support = kernels.support(centred, p["W_enc"], p["b_enc"], state.norms, selection)
    entries = Entries(support.pre, support.feature, support.part)
    values = arch.values(entries, p, v)

    parts = arch.reconstructions[: len(values)]
    residuals = reconstruct(parts, values, support, x, p, kernels)
    weights = arch.weights(x, residuals[0].error) if len(parts) > 1 else (1.0,)
    scales = tuple(float(2 * weight / tokens) for weight in weights)
    projections = tuple(
        kernels.project(support, r.error, scale, p["W_dec"]) for r, scale in zip(residuals, scales, strict=True)
    )
    gradients = arch.rule(entries, values, projections, p, v, knobs, tokens)

    fired = values[0] > 0
    result = StepResult(
        error=residuals[0].square / tokens,
        penalty=gradients.penalty.item(),
        l0=fired.sum().item() / tokens,
        entries=len(support.pre) / tokens,
    )
    loss = result.error + result.penalty
    if not (loss < LARGEST and math.isfinite(gradients.pre.sum().item())):
        raise DivergedError(f"the loss is {loss:.3g}")

    state.t += 1
    adam = Adam(lr, arch.recipe.beta2, arch.recipe.adam_epsilon, state.t)
    live = [i for i, part in enumerate(parts) if part.live]
    d_bias = -(kernels.sums(support, gradients.pre) @ p["W_enc"])  # through x − b_dec, before W_enc moves
    for i in live:
        if parts[i].bias:
            d_bias += scales[i] * residuals[i].error.sum(0)
    update = RowUpdate(
        x=centred.x,
        d_pre=gradients.pre,
        values=tuple(values[i] for i in live),
        residuals=tuple(residuals[i].error for i in live),
        scales=tuple(scales[i] for i in live),
        shrink=None if gradients.shrink is None else kernels.sums(support, gradients.shrink),
        unit=arch.decoder_norm == "unit",
    )
    kernels.rows(support, update, state, adam)
    update_(p["b_dec"], state.v["b_dec"], d_bias, adam)
    for name, rate in arch.trained.items():
        update_(p[name], state.v[name], kernels.sums(support, gradients.vectors[name]), adam, rate)
    arch.constrain(p)
    remember(state, kernels.sums(support, fired.to(x.dtype)), tokens, result.l0)
    return result


def reconstruct(
    parts: tuple[Reconstruction, ...], values: tuple[Tensor, ...], support: Support, x: Tensor, p: Params,
    kernels: Kernels,
) -> list[Residual]:  # fmt: skip
    """The residual of every reconstruction; those of the residual have −(x̂ − x) of the first as their target."""
    residuals: list[Residual] = []
    for part, value in zip(parts, values, strict=True):
        target, sign = (x, 1.0) if part.target == "input" else (residuals[0].error, -1.0)
        bias = p["b_dec"] if part.bias else torch.zeros_like(p["b_dec"])
        residuals.append(kernels.decode(support, value, p["W_dec"], bias, target, sign))
    return residuals


def knobs_of(state: State, warmup: float) -> Knobs:
    """The step's λ and dead features."""
    arch = state.arch
    if state.control is not None:
        sparsity = state.control.sparsity
    else:
        sparsity = arch.setting.value * warmup if arch.setting.kind == "lambda" else 0.0
    dead = state.silent >= arch.recipe.dead_after if arch.uses_dead else None
    return Knobs(sparsity, dead if dead is not None and bool(dead.any()) else None)


def remember(state: State, counts: Tensor, tokens: int, l0: float) -> None:
    """Bookkeeping after a step: who fired, and the controller. counts [M]: tokens each feature fired on."""
    state.silent = torch.where(counts > 0, 0, state.silent + tokens)
    if state.t <= state.arch.recipe.revive_until:
        state.arch.revive(state.p, state.silent >= state.arch.recipe.dead_after)
    if state.control is not None:
        state.control = state.control.after(l0, state.arch.setting.value)
        state.arch.steer(state.p, state.control.steering(state.arch.setting.value))
