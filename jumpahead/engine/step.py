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

On a GPU nothing is read back from the device within a step: sizes that only the device knows are bounded by room that
was made before, numbers stay 0-d tensors, and whether the step was fine is seen when the next one is on its way
(`late.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from jumpahead.engine import async_step, dense_features
from jumpahead.engine.batch_topk import select
from jumpahead.engine.lazy_adam import Adam, update_
from jumpahead.engine.resample import is_due, resample
from jumpahead.engine.supports import Support
from jumpahead.errors import DivergedError
from jumpahead.sae.base import (
    Affine,
    Architecture,
    Counts,
    Entries,
    Gradients,
    Knobs,
    LargestOfBatch,
    Number,
    Params,
    Reconstruction,
    Simple,
)
from jumpahead.sae.controller import Control
from jumpahead.sae.recipe import wanted_l0

if TYPE_CHECKING:
    from jumpahead.engine.batch_topk import Selected
    from jumpahead.engine.step_diagnostics import Watch

Item = TypeVar("Item")


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
    gap: Number = 0.0
    """The largest ‖row − low row‖/‖row‖."""

    def some(self, first: int, count: int) -> Centred:
        """Rows first … first + count − 1, as far as there are."""
        rows = slice(first, first + count)
        return Centred(self.x[rows], self.norms[rows], None if self.low is None else self.low[rows], self.gap)


class Residual(NamedTuple):
    """One reconstruction's error."""

    error: Tensor
    """[B, d] x̂ − target."""
    square: Tensor
    """Σ ‖x̂ − target‖² over the batch, summed in float64. 0-d."""


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
    """[B, d] per reconstruction: x̂ − target, or what `passed_on` makes of several."""
    scales: tuple[Number, ...]
    """Per reconstruction: ∂L/∂x̂ = scale·residual, projection = scale·residual·d_j."""
    shrink: Tensor | None
    """[M] c: ∂L/∂d_j gets c·d_j/‖d_j‖."""
    unit: bool
    """Whether rows of W_dec have norm one."""
    spare: tuple[bool, ...]
    """Per reconstruction: whether a projection may be left at 0 where value and slope are 0."""
    fine: Tensor | None
    """[1] int32 on the device: 0 where nothing may be touched; None where that is known not to be so."""


class Rows(NamedTuple):
    """What step 5 hands back."""

    projections: tuple[Tensor, ...]
    """[|S|] per reconstruction."""
    pull: Tensor
    """[d] Σ_j (∂L/∂π summed over j's entries)·W_enc,j, with W_enc as it was: −∂L/∂b_dec through x − b_dec."""


class Kernels(Protocol):
    """A kernel layer."""

    name: str
    async_step: bool
    """Whether it never waits for its device within a step: `support` may then leave room to spare (supports.py), and
    `late.py` sees afterwards what went wrong."""

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

    def settle(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        """Put the canonical π into pre [m, B], of features `group` [m], where unsure (bool) says so."""
        ...

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product a·b in a's own precision, by the fastest library that is exact enough."""
        ...

    def at_once(self, items: int) -> int:
        """How many of so many items `side_by_side` works on at the same time."""
        ...

    def side_by_side(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        """Run work(item) for items that share nothing, steps of several SAEs: at the same time where that is faster."""
        ...

    def kth(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Bounds of the k-th largest of every column of values [m, B], or of 0 where that is larger: [B] each."""
        ...

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        """Step 3: Σ_j value·d_j + bias − sign·target. values [|S|]; bias [d]; target [B, d]."""
        ...

    def entries(self, support: Support) -> Entries:
        """What an architecture sees of a support."""
        ...

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        """Per-feature sums of a support vector, [M], added in token order."""
        ...

    def fired(self, support: Support, values: Tensor) -> Tensor:
        """How many values [|S|] of each feature are positive: [M], in π's dtype."""
        ...

    def summed(self, support: Support, gradient: Affine, projections: tuple[Tensor, ...]) -> Tensor:
        """`sums` of a gradient."""
        ...

    def active(self, support: Support, on: Tensor) -> Tensor:
        """How many entries of each token are on, [B], in π's dtype. on bool [|S|]."""
        ...

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> Rows:
        """Step 5: update W_enc, W_dec, their second moments, `last` and the encoder of every touched feature."""
        ...

    def given_rows(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: Adam) -> None:  # fmt: skip
        """The end of step 5 for features [m] whose gradient rows [m, d] are there. touched [m] bool."""
        ...


class LateKernels(Kernels, Protocol):
    """A kernel layer that does not wait for its device."""

    demands: list[async_step.Demand]
    """Of every support since the list was cleared."""

    def largest_of_batch(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: LargestOfBatch) -> Selected:
        """Step 1 for this selection: others are led there by `select.py`, which counts what it gets."""
        ...

    def note(self, w: Tensor, needed: int, *, short: bool) -> None:
        """What a support of this W_enc would have needed; short: its guess was too high."""
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
    popular: tuple[Tensor, Tensor] | None = None
    """(share, who goes through products by it), where that is kept (dense.py): not in a checkpoint."""
    flight: async_step.Flight | None = None
    """The last step, where it may still be on its way (late.py): not in a checkpoint."""

    @property
    def sparsity(self) -> Number:
        """λ, where it is controlled."""
        assert self.control is not None
        return self.control.price * self.arch.sparsity_unit(self.p)

    def encoder_for(self, kernels: Kernels) -> Encoder:
        """The encoder in the form of this kernel layer."""
        found = self.encoder
        if found is None or found.w is not self.p["W_enc"] or found.layer != kernels.name:
            self.encoder = found = kernels.encoder(self.p["W_enc"])
        return found


class StepResult(NamedTuple):
    """What a step measured, before its update; means over the batch. Floats, or 0-d tensors where the layer is late: a
    step that has to be done again corrects them, so they are final when the next step, or `late.settle`, has returned.
    """

    error: Number
    """‖x − x̂‖²."""
    penalty: Number
    """The sparsity term."""
    l0: Number
    """Active features per token."""
    entries: Number
    """|S| per token, features that go through products included."""
    dense: int
    """Features that went through products."""

    def read(self) -> StepResult:
        """As floats: waits for the device."""
        error, penalty, l0, entries = map(float, self[:4])
        return StepResult(error, penalty, l0, entries, self.dense)


def fresh_state(arch: Architecture, d: int, width: int, seed: int, sample: Tensor) -> State:
    """An untrained SAE, on the device of sample [n, d]: activations in the unit E‖x‖² = 1. It starts with the same
    numbers on every device: they are drawn on the CPU."""
    return begun(arch, arch.initialise(d, width, torch.Generator().manual_seed(seed), sample.float().cpu()), sample)


def begun(arch: Architecture, p: Params, sample: Tensor) -> State:
    """A state around these parameters, before its first step, on the device and in the dtype of sample [n, d]."""
    width = len(p["W_dec"])
    p = {name: tensor.to(sample.device, sample.dtype).contiguous() for name, tensor in p.items()}
    p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
    trained = ("W_enc", "W_dec", "b_dec", *arch.trained)
    state = State(
        arch=arch,
        p=p,
        v={name: torch.zeros_like(p[name]) for name in trained},
        last=torch.zeros(width, dtype=torch.int32, device=sample.device),
        silent=torch.zeros(width, dtype=torch.int64, device=sample.device),
        share=dense_features.first_share(arch, p, sample),
    )
    if arch.controlled:
        state.control = Control(price=arch.first_price, l0=wanted_l0(arch.recipe, arch.setting, 0))
    return state


class Done(NamedTuple):
    """One step, as it was done."""

    result: StepResult
    fine: Tensor | None
    """As in `RowUpdate`: whether the state was touched."""
    centred: Centred
    error: Tensor
    """[B, d] x̂ − x."""


def step(state: State, x: Tensor, lr: float, warmup: float, kernels: Kernels, watch: Watch | None = None) -> StepResult:
    """Train on one batch x [B, d]. lr: Adam's learning rate; warmup: the share of a fixed λ in force.

    watch: is shown every entry and its gradients, and changes nothing.
    Raises DivergedError, with the weights untouched, where the loss is not finite; a late layer's is that of the step
    before (`late.settle` asks for the last).
    """
    if kernels.late:
        done = async_step.step(state, x, lr, warmup, cast(LateKernels, kernels), watch)
    else:
        done = once(state, x, lr, warmup, kernels, watch)
    if is_due(state):
        async_step.settle(state, kernels)
        resample(state, done.centred, done.error, float(done.result.l0), kernels)
    return done.result


def once(state: State, x: Tensor, lr: float, warmup: float, kernels: Kernels, watch: Watch | None = None) -> Done:
    """The step without what comes after some of them."""
    arch, p, tokens = state.arch, state.p, len(x)
    v, knobs, encoder = arch.derive(p), knobs_of(state, warmup, kernels), state.encoder_for(kernels)
    centred = kernels.centre(x, p["b_dec"])
    selection = arch.selection(p, v, knobs, training=True)
    sparse, blocks = dense_features.divide(selection, state, centred, v, knobs, kernels)
    found = select(centred, encoder, p["b_enc"], sparse, kernels)
    support = blocks.take(found.support)

    entries = kernels.entries(support)
    values = arch.values(entries, p, v)
    counts = count(support, arch.features(values), arch, kernels)
    totals = blocks.totals(counts)
    parts = arch.reconstructions[: len(values)]
    residuals = reconstruct(parts, values, totals.decoded, support, x, p, kernels)
    whole = residuals[last_of_first(parts)]
    weights = arch.weights(x, whole.error) if len(parts) > 1 else (1.0,)
    scales = tuple(2 * weight / tokens for weight in weights[: len(parts)])
    rule = arch.rule(entries, values, p, v, knobs, counts)

    result = StepResult(
        error=whole.square / tokens,
        penalty=arch.penalty(arch.charge(entries, values, v).double() + totals.charge, counts, knobs),
        l0=counts.fired.sum(dtype=torch.float64) / tokens,
        entries=(support.colptr[-1] + totals.entries).double() / tokens,
        dense=totals.features,
    )
    if kernels.late:
        fine, before = async_step.judge(state, result, cast(LateKernels, kernels)), async_step.small(state)
    else:
        result, scales, fine, before = result.read(), tuple(map(float, scales)), None, None
        if not result.error + result.penalty < async_step.LARGEST:
            raise DivergedError(f"the loss is {result.error + result.penalty:.3g}")

    state.t += 1
    adam = Adam(lr, arch.recipe.beta2, arch.recipe.adam_epsilon, state.t)
    errors, scales = passed_on(parts, residuals, scales)
    update = row_update(arch, rule, values, parts, errors, scales, centred, support, fine, kernels)
    rows = kernels.rows(support, update, state, adam)
    sums = {name: kernels.summed(support, gradient, rows.projections) for name, gradient in rule.vectors.items()}
    if watch is not None:
        watch(*taken(support, entries, values, rule, rows.projections))
    share = support.colptr.diff() / tokens
    pull = rows.pull + blocks.rows(update, sums, counts, share, adam, watch) if blocks else rows.pull

    d_bias = -pull
    for i, part in enumerate(parts):
        if part.live and part.bias:
            d_bias += scales[i] * errors[i].sum(0)
    update_(p["b_dec"], state.v["b_dec"], d_bias, adam)
    for name, rate in arch.trained.items():
        update_(p[name], state.v[name], sums[name], adam, rate)
    if found.least is not None:
        arch.observe(p, found.least, lr)
    arch.decay(p, lr, counts)
    arch.constrain(p)
    if dense_features.is_decided(state.t, kernels):
        state.share = dense_features.with_endless(share.float(), selection, kernels)
    remember(state, counts.fired, tokens, result.l0)
    if before is not None:
        async_step.keep(state, before, fine)
    return Done(result, fine, centred, whole.error)


def taken(
    support: Support, entries: Entries, values: tuple[Tensor, ...], rule: Gradients, projections: tuple[Tensor, ...]
) -> tuple[Entries, tuple[Tensor, ...], Gradients, tuple[Tensor, ...]]:
    """What a watch is shown: all of these without padding."""
    n = int(support.colptr[-1])
    if n == len(support.pre):
        return entries, values, rule, projections

    def cut(gradient: Affine) -> Affine:
        slopes = tuple(None if slope is None else slope[:n] for slope in gradient.slopes)
        return Affine(slopes, None if gradient.constant is None else gradient.constant[:n])

    vectors = {name: cut(gradient) for name, gradient in rule.vectors.items()}
    some = Entries(support.pre[:n], support.feature[:n], None if support.part is None else support.part[:n])
    return (
        some,
        tuple(v[:n] for v in values),
        Gradients(cut(rule.pre), vectors, None),
        tuple(p[:n] for p in projections),
    )


def count(support: Support, values: Tensor, arch: Architecture, kernels: Kernels) -> Counts:
    """What fired among the entries of the support. values [|S|]."""
    active = kernels.active(support, values > 0) if arch.uses_active else None
    return Counts(len(support.indptr) - 1, kernels.fired(support, values), active)


def reconstruct(
    parts: tuple[Reconstruction, ...], values: tuple[Tensor, ...], decoded: tuple[Tensor, ...], support: Support,
    x: Tensor, p: Params, kernels: Kernels,
) -> list[Residual]:  # fmt: skip
    """The residual of every reconstruction; those of the residual have −(x̂ − x) of the first as their target, and what
    continues another adds to its x̂ − x.

    decoded: what the blocks add to each x̂, or nothing.
    """
    residuals: list[Residual] = []
    for i, (part, value) in enumerate(zip(parts, values, strict=True)):
        target, sign = x, 1.0
        if part.continues or part.target == "residual":
            target, sign = residuals[i - 1 if part.continues else last_of_first(parts)].error, -1.0
        if decoded:
            target = target - sign * decoded[i]
        bias = p["b_dec"] if part.bias else torch.zeros_like(p["b_dec"])
        residuals.append(kernels.decode(support, value, p["W_dec"], bias, target, sign))
    return residuals


def last_of_first(parts: tuple[Reconstruction, ...]) -> int:
    """The reconstruction that has all features: the last of those that continue the first."""
    return next((i for i, part in enumerate(parts[1:]) if not part.continues), len(parts) - 1)


def passed_on(
    parts: tuple[Reconstruction, ...], residuals: list[Residual], scales: tuple[Number, ...]
) -> tuple[tuple[Tensor, ...], tuple[Number, ...]]:
    """errors [B, d] and scales of all reconstructions: ∂L/∂x̂ = scale·error, through what continues it as well."""
    found = [(residual.error, scale) for residual, scale in zip(residuals, scales, strict=True)]
    for i in reversed(range(len(parts) - 1)):
        if parts[i + 1].continues:
            (error, scale), (later, its_scale) = found[i], found[i + 1]
            found[i] = scale * error + its_scale * later, 1.0
    errors, scales = zip(*found, strict=True)
    return errors, scales


def row_update(
    arch: Architecture, rule: Gradients, values: tuple[Tensor, ...], parts: tuple[Reconstruction, ...],
    errors: tuple[Tensor, ...], scales: tuple[Number, ...], centred: Centred, support: Support, fine: Tensor | None,
    kernels: Kernels,
) -> RowUpdate:  # fmt: skip
    """The rule as step 5 wants it."""
    live = sum(part.live for part in parts)
    assert all(part.live for part in parts[:live]), "live reconstructions come first"
    nothing = values[0].new_zeros(0)
    zero = torch.zeros_like(values[0]) if any(slope is None for slope in rule.pre.slopes) else nothing
    others = [gradient for gradient in rule.vectors.values() if gradient is not rule.pre]
    return RowUpdate(
        x=centred.x,
        slopes=tuple(zero if slope is None else slope for slope in rule.pre.slopes),
        constant=rule.pre.constant,
        values=values[:live],
        residuals=errors,
        scales=scales,
        shrink=None if rule.shrink is None else kernels.sums(support, rule.shrink),
        unit=arch.decoder_norm == "unit",
        spare=tuple(all(gradient.slopes[r] is None for gradient in others) for r in range(len(parts))),
        fine=fine,
    )


def knobs_of(state: State, warmup: float, kernels: Kernels | None = None) -> Knobs:
    """The step's λ, dead features, and the L0 asked for."""
    arch = state.arch
    sparsity = state.sparsity if state.control is not None else arch.fixed_sparsity * warmup
    dead = state.silent >= arch.recipe.dead_after if arch.uses_dead else None
    l0 = None if arch.setting.kind == "lambda" else wanted_l0(arch.recipe, arch.setting, state.t)
    if kernels is not None and kernels.late:  # none may be dead: asking would wait, and none is a case like another
        return Knobs(sparsity, dead, l0)
    return Knobs(sparsity, dead if dead is not None and bool(dead.any()) else None, l0)


def remember(state: State, fired: Tensor, tokens: int, l0: Number) -> None:
    """Bookkeeping after a step: who fired, and the controller. fired [M]: tokens each feature fired on."""
    state.silent = torch.where(fired > 0, 0, state.silent + tokens)
    if state.t <= state.arch.recipe.revive_until:
        state.arch.revive(state.p, state.silent >= state.arch.recipe.dead_after)
    if state.control is not None:
        rules = state.arch.recipe
        target = wanted_l0(rules, state.arch.setting, state.t)
        state.control = state.control.after(l0, target, rules.control_gain)
        state.arch.steer(state.p, state.control.steering(target, rules.steering))
