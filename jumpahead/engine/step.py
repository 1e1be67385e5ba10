"""One training step, as five calls. Nothing of size B×M exists after the first.

    1  support   which entries (token, feature) can carry a value or a gradient, and π there      O(B·d·M), one product
    2  values    the architecture: what each entry adds to a reconstruction                       O(|S|)
    3  decode    x̂ = Σ values·d_j + b_dec, residual r = x̂ − target                                O(|S|·d)
    4  rule      the architecture, given what fired in the whole batch: every gradient as an
                 affine function of the projections r·d_j                                         O(|S|)
    5  rows      per touched feature: project, gradient rows, decoder norm, lazy Adam             O(|S|·d + touched·d)

B tokens · d activation dimensions · M features · |S| entries of the support. All tensors are float32 (float64 in
tests); x is in the unit E‖x‖² = 1. Features that are on for a large share of the tokens do not go through the support
but through products, block by block (`dense.py`): the same five steps, the same functions of the architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from jumpahead.engine import dense
from jumpahead.engine.lazy_adam import Adam, update_
from jumpahead.engine.resample import is_due, resample
from jumpahead.engine.select import select
from jumpahead.engine.supports import Support
from jumpahead.errors import DivergedError
from jumpahead.sae.base import Architecture, Counts, Entries, Gradients, Knobs, Params, Reconstruction, Simple
from jumpahead.sae.control import Control

if TYPE_CHECKING:
    from jumpahead.engine.watch import Watch

LARGEST = 1e15
"""A loss beyond which squared gradients overflow float32 and rows would be lost for good; about 1 is usual."""


class Encoder(NamedTuple):
    """W_enc, and what screening its product needs to know; `rows` keeps all of it up to date."""

    w: Tensor
    """[M, d] W_enc itself."""
    norms: Tensor
    """[M] ‖w_j‖."""
    low: Tensor | None
    """[M, d] W_enc in bfloat16, where the product is computed so."""
    gaps: Tensor
    """[M] ‖w_j − low_j‖; empty without `low`."""
    layer: str
    """The kernel layer that made it."""


class Centred(NamedTuple):
    """What the encoder multiplies."""

    x: Tensor
    """[B, d] x − b_dec."""
    norms: Tensor
    """[B] ‖x − b_dec‖."""
    low: Tensor | None = None
    """[B, d] x − b_dec in bfloat16, where the product is computed so."""
    gap: float = 0.0
    """The largest ‖row − low row‖/‖row‖."""


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
    slopes: tuple[Tensor, ...]
    """[|S|] per reconstruction: ∂L/∂π = Σ slope·projection + constant."""
    constant: Tensor | None
    """[|S|]"""
    values: tuple[Tensor, ...]
    """[|S|] per live reconstruction; those come first."""
    residuals: tuple[Tensor, ...]
    """[B, d] per reconstruction: x̂ − target."""
    scales: tuple[float, ...]
    """Per reconstruction: ∂L/∂x̂ = scale·residual, projection = scale·residual·d_j."""
    shrink: Tensor | None
    """[M] c: ∂L/∂d_j gets c·d_j/‖d_j‖."""
    unit: bool
    """Whether rows of W_dec have norm one."""
    spare: tuple[bool, ...]
    """Per reconstruction: whether a projection may be left at 0 where value and slope are 0."""


class Rows(NamedTuple):
    """What step 5 hands back."""

    projections: tuple[Tensor, ...]
    """[|S|] per reconstruction."""
    pull: Tensor
    """[d] Σ_j (∂L/∂π summed over j's entries)·W_enc,j, with W_enc as it was: −∂L/∂b_dec through x − b_dec."""


class Kernels(Protocol):
    """A kernel layer."""

    name: str

    def encoder(self, w_enc: Tensor) -> Encoder:
        """Everything about W_enc [M, d], computed afresh."""
        ...

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        """x − bias and the norms of its rows. x [B, d]; bias [d]."""
        ...

    def support(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Simple) -> Support:
        """Step 1. b_enc [M]."""
        ...

    def canonical(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
        """π of any entries, as in a support. token, feature [n] → [n]."""
        ...

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product a·b in a's own precision, by the fastest library that is exact enough."""
        ...

    def kth(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Bounds of the k-th largest of every column of values [m, B], or of 0 where that is larger: [B] each."""
        ...

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        """Step 3: Σ_j value·d_j + bias − sign·target. values [|S|]; bias [d]; target [B, d]."""
        ...

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        """Per-feature sums of a support vector, [M], added in token order."""
        ...

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> Rows:
        """Step 5: update W_enc, W_dec, their second moments, `last` and the encoder of every touched feature."""
        ...

    def given_rows(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: Adam) -> None:  # fmt: skip
        """The end of step 5 for features [m] whose gradient rows [m, d] are there. touched [m] bool."""
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
    share: Tensor
    """[M] float32: the share of the last batch's tokens with an entry of each feature. Decides who goes through
    products."""
    t: int = 0
    """Steps done."""
    control: Control | None = None
    """The controller of λ, where an L0 was requested of an architecture that has λ."""
    encoder: Encoder | None = None
    """Made from W_enc when first needed: not in a checkpoint."""

    def encoder_for(self, kernels: Kernels) -> Encoder:
        """The encoder in the form of this kernel layer."""
        found = self.encoder
        if found is None or found.w is not self.p["W_enc"] or found.layer != kernels.name:
            self.encoder = found = kernels.encoder(self.p["W_enc"])
        return found


class StepResult(NamedTuple):
    """What a step measured, before its update; means over the batch."""

    error: float
    """‖x − x̂‖²."""
    penalty: float
    """The sparsity term."""
    l0: float
    """Active features per token."""
    entries: float
    """|S| per token, features that go through products included."""
    dense: int
    """Features that went through products."""


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
        share=dense.first_share(arch, p, sample),
    )
    if arch.controlled:
        state.control = Control(sparsity=arch.first_sparsity(p), l0=arch.setting.value)
    return state


def step(state: State, x: Tensor, lr: float, warmup: float, kernels: Kernels, watch: Watch | None = None) -> StepResult:
    """Train on one batch x [B, d]. lr: Adam's learning rate; warmup: the share of a fixed λ in force.

    watch: is shown every entry and its gradients, and changes nothing.
    Raises DivergedError, with the weights untouched, where the loss is not finite.
    """
    arch, p, tokens = state.arch, state.p, len(x)
    v, knobs, encoder = arch.derive(p), knobs_of(state, warmup), state.encoder_for(kernels)
    centred = kernels.centre(x, p["b_dec"])
    selection = arch.selection(p, v, knobs, training=True)
    sparse, blocks = dense.divide(selection, state, centred, v, knobs, kernels)
    found = select(centred, encoder, p["b_enc"], sparse, kernels)
    support = blocks.take(found.support)

    entries = Entries(support.pre, support.feature, support.part, support.token)
    values = arch.values(entries, p, v)
    counts = count(support, values[0] > 0, arch, kernels)
    totals = blocks.totals(counts)
    parts = arch.reconstructions[: len(values)]
    residuals = reconstruct(parts, values, totals.decoded, support, x, p, kernels)
    weights = arch.weights(x, residuals[0].error) if len(parts) > 1 else (1.0,)
    scales = tuple(float(2 * weight / tokens) for weight in weights)
    rule = arch.rule(entries, values, p, v, knobs, counts)

    result = StepResult(
        error=residuals[0].square / tokens,
        penalty=arch.penalty(arch.charge(entries, values, v).item() + totals.charge, counts, knobs),
        l0=counts.fired.sum(dtype=torch.float64).item() / tokens,
        entries=(len(support.pre) + totals.entries) / tokens,
        dense=totals.features,
    )
    loss = result.error + result.penalty
    if not loss < LARGEST:
        raise DivergedError(f"the loss is {loss:.3g}")

    state.t += 1
    adam = Adam(lr, arch.recipe.beta2, arch.recipe.adam_epsilon, state.t)
    update = row_update(arch, rule, values, parts, residuals, scales, centred, support, kernels)
    rows = kernels.rows(support, update, state, adam)
    sums = {name: kernels.sums(support, gradient.at(rows.projections)) for name, gradient in rule.vectors.items()}
    if watch is not None:
        watch(entries, values, rule, rows.projections)
    share = support.colptr.diff() / tokens
    pull = rows.pull + blocks.rows(update, sums, counts, share, adam, watch) if blocks else rows.pull

    d_bias = -pull
    for i, part in enumerate(parts):
        if part.live and part.bias:
            d_bias += scales[i] * residuals[i].error.sum(0)
    update_(p["b_dec"], state.v["b_dec"], d_bias, adam)
    for name, rate in arch.trained.items():
        update_(p[name], state.v[name], sums[name], adam, rate)
    if found.least is not None:
        arch.observe(p, found.least, lr)
    arch.constrain(p)
    state.share = share.float()
    remember(state, counts.fired, tokens, result.l0)
    if is_due(state):
        resample(state, centred, residuals[0].error, result.l0, kernels)
    return result


def count(support: Support, on: Tensor, arch: Architecture, kernels: Kernels) -> Counts:
    """What fired among the entries of the support. on bool [|S|]."""
    tokens, dtype = len(support.indptr) - 1, support.pre.dtype
    active = torch.bincount(support.token[on], minlength=tokens).to(dtype) if arch.uses_active else None
    return Counts(tokens, kernels.sums(support, on.to(dtype)), active)


def reconstruct(
    parts: tuple[Reconstruction, ...], values: tuple[Tensor, ...], decoded: tuple[Tensor, ...], support: Support,
    x: Tensor, p: Params, kernels: Kernels,
) -> list[Residual]:  # fmt: skip
    """The residual of every reconstruction; those of the residual have −(x̂ − x) of the first as their target.

    decoded: what the blocks add to each x̂, or nothing.
    """
    residuals: list[Residual] = []
    for i, (part, value) in enumerate(zip(parts, values, strict=True)):
        target, sign = (x, 1.0) if part.target == "input" else (residuals[0].error, -1.0)
        if decoded:
            target = target - sign * decoded[i]
        bias = p["b_dec"] if part.bias else torch.zeros_like(p["b_dec"])
        residuals.append(kernels.decode(support, value, p["W_dec"], bias, target, sign))
    return residuals


def row_update(
    arch: Architecture, rule: Gradients, values: tuple[Tensor, ...], parts: tuple[Reconstruction, ...],
    residuals: list[Residual], scales: tuple[float, ...], centred: Centred, support: Support, kernels: Kernels,
) -> RowUpdate:  # fmt: skip
    """The rule as step 5 wants it."""
    live = sum(part.live for part in parts)
    assert all(part.live for part in parts[:live]), "live reconstructions come first"
    nothing = torch.zeros(0, dtype=values[0].dtype)
    zero = torch.zeros_like(values[0]) if any(slope is None for slope in rule.pre.slopes) else nothing
    others = [gradient for gradient in rule.vectors.values() if gradient is not rule.pre]
    return RowUpdate(
        x=centred.x,
        slopes=tuple(zero if slope is None else slope for slope in rule.pre.slopes),
        constant=rule.pre.constant,
        values=values[:live],
        residuals=tuple(residual.error for residual in residuals),
        scales=scales,
        shrink=None if rule.shrink is None else kernels.sums(support, rule.shrink),
        unit=arch.decoder_norm == "unit",
        spare=tuple(all(gradient.slopes[r] is None for gradient in others) for r in range(len(parts))),
    )


def knobs_of(state: State, warmup: float) -> Knobs:
    """The step's λ and dead features."""
    arch = state.arch
    sparsity = arch.fixed_sparsity * warmup if state.control is None else state.control.sparsity
    dead = state.silent >= arch.recipe.dead_after if arch.uses_dead else None
    return Knobs(sparsity, dead if dead is not None and bool(dead.any()) else None)


def remember(state: State, fired: Tensor, tokens: int, l0: float) -> None:
    """Bookkeeping after a step: who fired, and the controller. fired [M]: tokens each feature fired on."""
    state.silent = torch.where(fired > 0, 0, state.silent + tokens)
    if state.t <= state.arch.recipe.revive_until:
        state.arch.revive(state.p, state.silent >= state.arch.recipe.dead_after)
    if state.control is not None:
        rules, target = state.arch.recipe, state.arch.setting.value
        state.control = state.control.after(l0, target, rules.control_gain)
        state.arch.steer(state.p, state.control.steering(target, rules.steering))
