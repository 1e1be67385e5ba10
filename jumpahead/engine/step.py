"""One training step, as five calls. No tensor of B×M elements exists after the first.

    1  support   which entries (token, feature) can carry a value or a gradient, and π there      O(B·d·M), one product
    2  values    the architecture: what each entry adds to a reconstruction                       O(|S|)
    3  decode    x̂ = Σ values·d_j + b_dec, residual r = x̂ − target                                O(|S|·d)
    4  rule      the architecture, given what fired in the whole batch: every gradient as an
                 affine function of the projections r·d_j                                         O(|S|)
    5  rows      per touched feature: project, gradient rows, decoder norm, lazy Adam             O(|S|·d + touched·d)

`run_step` makes these calls, numbered as here. B tokens · d activation dimensions · M features · |S| entries of the
support. All tensors are float32 (float64 in tests); x is in the unit E‖x‖² = 1. Features that are active on a large
share of the tokens go through dense products instead of the support, block by block (`dense_features.py`), with the
same five calls and the same functions of the architecture.

On a GPU nothing is read back from the device within a step: buffers of a fixed size hold what only the device can
count, numbers stay 0-d tensors, and the validity of a step is checked after the next one is launched (`async_step.py`).
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor

from jumpahead.engine.async_step import step_async, synchronize
from jumpahead.engine.batch_topk import select_support
from jumpahead.engine.dense_features import (
    DenseTotals,
    force_dense_if_unbounded,
    is_share_update_step,
    split_dense_sparse,
)
from jumpahead.engine.interface import (
    AsyncKernels,
    CentredInput,
    CompletedStep,
    Kernels,
    Residual,
    RowUpdate,
    State,
    StepObserver,
    StepResult,
)
from jumpahead.engine.lazy_adam import AdamStep, adam_update_
from jumpahead.engine.resample import is_resampling_step, resample_dead_features
from jumpahead.engine.rollback import MAX_LOSS, Snapshot, check_validity, restore_if_failed, take_snapshot
from jumpahead.engine.state import make_step_inputs, update_counters_and_controller
from jumpahead.engine.supports import Support
from jumpahead.errors import DivergedError
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.gradients import Affine, Counts, Gradients, Reconstruction
from jumpahead.sae.parameters import Params
from jumpahead.sae.support import Entries, Number


def train_step(
    state: State, x: Tensor, lr: float, warmup: float, kernels: Kernels, observer: StepObserver | None = None
) -> StepResult:
    """Train on one batch x [B, d], in place, and return its measurements before the update.

    lr: Adam's learning rate. warmup: the share of a fixed λ in force, 0 to 1. observer: sees every entry and its
    gradients, and changes nothing.
    Raises DivergedError, with the weights unchanged, if the loss is not finite. An asynchronous layer raises it for the
    step before; `async_step.synchronize` checks the last one.
    """
    run = partial(run_step, state, x, lr, warmup, kernels, observer)
    done = step_async(run, state, cast(AsyncKernels, kernels), observer) if kernels.is_async else run()
    if is_resampling_step(state):
        synchronize(state, kernels)
        resample_dead_features(state, done.centred, done.error, float(done.result.l0), kernels)
    return done.result


def run_step(
    state: State, x: Tensor, lr: float, warmup: float, kernels: Kernels, observer: StepObserver | None = None
) -> CompletedStep:
    """Run the five calls of a step on the state, in place; no resampling. Arguments as for `train_step`."""
    arch, p, tokens = state.arch, state.params, len(x)
    derived, step_inputs = arch.derive(p), make_step_inputs(state, warmup, kernels)
    encoder = state.encoder_for(kernels)

    # 1. Support: the entries that can carry a value or a gradient, and their canonical π. The encoder product is here.
    centred = kernels.centre_input(x, p["b_dec"])
    selection = arch.selection(p, derived, step_inputs, training=True)
    sparse, dense = split_dense_sparse(selection, state, centred, derived, step_inputs, kernels)
    selected = select_support(centred, encoder, p["b_enc"], sparse, kernels)
    support = dense.take_entries(selected.support)

    # 2. Values: the coefficient of d_j at each entry, one vector per reconstruction.
    entries = kernels.support_entries(support)
    values = arch.values(entries, p, derived)
    counts = count_active(support, arch.features(values), arch, kernels)
    totals = dense.forward(counts)

    # 3. Decode: x̂ = Σ values·d_j + b_dec, and the residual of every reconstruction.
    parts = arch.reconstructions[: len(values)]
    residuals = decode_reconstructions(parts, values, totals.decoded, support, x, p, kernels)
    full = residuals[full_reconstruction_index(parts)]

    # 4. Rule: every gradient at each entry, θ's too, as a function of the projections r·d_j. It stands beside the
    #    architecture's equation: `entry_gradients` in sae/architectures/jumprelu.py and its siblings.
    rule = arch.entry_gradients(entries, values, p, derived, step_inputs, counts)

    # The loss is checked before anything changes.
    weights = arch.error_weights(x, full.error) if len(parts) > 1 else (1.0,)
    scales = tuple(2 * weight / tokens for weight in weights[: len(parts)])
    sparsity_sum = arch.sparsity_sum(entries, values, derived).double() + totals.sparsity_sum
    penalty = arch.penalty(sparsity_sum, counts, step_inputs)
    result = measure_step(full, penalty, counts, support, totals)
    result, scales, is_valid, snapshot = check_loss(state, result, scales, kernels)
    state.steps_done += 1
    adam = AdamStep(lr, arch.recipe.beta1, arch.recipe.beta2, arch.recipe.adam_epsilon, state.steps_done)

    # 5. Rows: per touched feature project, form the gradients of w_j and d_j, apply decoder norm and lazy Adam.
    errors, scales = accumulate_residual_gradients(parts, residuals, scales)
    update = make_row_update(arch, rule, values, parts, errors, scales, centred, support, is_valid, kernels)
    rows = kernels.update_rows(support, update, state, adam)

    # The vectors: b_dec and the trained [M] vectors (θ, b_enc, …). Here θ gets its gradient, summed per feature.
    vector_gradients = {
        name: kernels.sum_gradient_per_feature(support, gradient, rows.projections)
        for name, gradient in rule.vectors.items()
    }
    if observer is not None:
        observer(*trim_padding(support, entries, values, rule, rows.projections))
    support_share, input_gradient = support.colptr.diff() / tokens, rows.input_gradient_sum
    if dense:
        dense_gradient = dense.update_rows(update, vector_gradients, counts, support_share, adam, observer)
        input_gradient = input_gradient + dense_gradient
    bias_gradient = decoder_bias_gradient(parts, errors, scales, input_gradient)
    m, v = state.first_moments, state.second_moments
    adam_update_(p["b_dec"], m.get("b_dec"), v["b_dec"], bias_gradient, adam, arch.lr_multiplier("b_dec"))
    for name, rate in arch.trained_vectors.items():
        adam_update_(p[name], m.get(name), v[name], vector_gradients[name], adam, rate)

    if selected.smallest is not None:
        arch.update_inference_threshold(p, selected.smallest, lr)
    arch.decay_thresholds(p, lr, counts)
    arch.constrain(p)
    if is_share_update_step(state.steps_done, kernels):
        state.support_share = force_dense_if_unbounded(support_share.float(), selection, kernels)
    update_counters_and_controller(state, counts.fired, tokens, result.l0)
    if snapshot is not None:
        restore_if_failed(state, snapshot, is_valid)
    return CompletedStep(result, is_valid, centred, full.error)


def measure_step(full: Residual, penalty: Number, counts: Counts, support: Support, totals: DenseTotals) -> StepResult:
    """Return the measurements of a step: sums over the batch divided by its tokens. full: residual of all features."""
    return StepResult(
        squared_error=full.sum_of_squares / counts.tokens,
        penalty=penalty,
        l0=counts.fired.sum(dtype=torch.float64) / counts.tokens,
        support_size=(support.colptr[-1] + totals.entries).double() / counts.tokens,
        num_dense_features=totals.features,
    )


def check_loss(
    state: State, result: StepResult, scales: tuple[Number, ...], kernels: Kernels
) -> tuple[StepResult, tuple[Number, ...], Tensor | None, Snapshot | None]:
    """Return the result and scales to continue with, the validity flag of the step, and a snapshot to restore.

    A synchronous layer gets floats, no flag and no snapshot; raises DivergedError if the loss is not finite or huge.
    """
    if kernels.is_async:
        return result, scales, check_validity(state, result, cast(AsyncKernels, kernels)), take_snapshot(state)
    result, scales = result.read(), tuple(map(float, scales))
    if not result.squared_error + result.penalty < MAX_LOSS:
        raise DivergedError(f"the loss is {result.squared_error + result.penalty:.3g}")
    return result, scales, None, None


def trim_padding(
    support: Support, entries: Entries, values: tuple[Tensor, ...], rule: Gradients, projections: tuple[Tensor, ...]
) -> tuple[Entries, tuple[Tensor, ...], Gradients, tuple[Tensor, ...]]:
    """Return entries, values, gradients and projections without the padding of the support; waits for the device."""
    n = int(support.colptr[-1])
    if n == len(support.pre):
        return entries, values, rule, projections

    def trimmed(gradient: Affine) -> Affine:
        slopes = tuple(None if slope is None else slope[:n] for slope in gradient.slopes)
        return Affine(slopes, None if gradient.constant is None else gradient.constant[:n])

    vectors = {name: trimmed(gradient) for name, gradient in rule.vectors.items()}
    part = None if support.part is None else support.part[:n]
    return (
        Entries(support.pre[:n], support.feature[:n], part),
        tuple(value[:n] for value in values),
        Gradients(trimmed(rule.pre), vectors, None),
        tuple(projection[:n] for projection in projections),
    )


def count_active(support: Support, values: Tensor, arch: Architecture, kernels: Kernels) -> Counts:
    """Return what fired among the entries of the support. values [|S|]: the features f."""
    active = kernels.count_active_per_token(support, values > 0) if arch.needs_token_counts else None
    return Counts(len(support.indptr) - 1, kernels.count_active_per_feature(support, values), active)


def decode_reconstructions(
    parts: tuple[Reconstruction, ...], values: tuple[Tensor, ...], decoded: tuple[Tensor, ...], support: Support,
    x: Tensor, p: Params, kernels: Kernels,
) -> list[Residual]:  # fmt: skip
    """Return the residual of every reconstruction.

    One whose target is the residual has −(x̂ − x) of the first as its target; one that continues another adds to that
    one's x̂ − x. decoded: [B, d] per reconstruction, what the dense features add to x̂; empty without any.
    """
    residuals: list[Residual] = []
    for i, (part, value) in enumerate(zip(parts, values, strict=True)):
        target, sign = x, 1.0
        if part.extends_previous or part.target == "residual":
            target, sign = residuals[i - 1 if part.extends_previous else full_reconstruction_index(parts)].error, -1.0
        if decoded:
            target = target - sign * decoded[i]
        bias = p["b_dec"] if part.adds_bias else torch.zeros_like(p["b_dec"])
        residuals.append(kernels.decode(support, value, p["W_dec"], bias, target, sign))
    return residuals


def full_reconstruction_index(parts: tuple[Reconstruction, ...]) -> int:
    """Return the index of the reconstruction with all features: the last of those that continue the first."""
    return next((i for i, part in enumerate(parts[1:]) if not part.extends_previous), len(parts) - 1)


def accumulate_residual_gradients(
    parts: tuple[Reconstruction, ...], residuals: list[Residual], scales: tuple[Number, ...]
) -> tuple[tuple[Tensor, ...], tuple[Number, ...]]:
    """Return errors [B, d] and scales of all reconstructions, so that ∂L/∂x̂ = scale·error.

    If another continues a reconstruction, the error holds the gradient that arrives through that one too.
    """
    found = [(residual.error, scale) for residual, scale in zip(residuals, scales, strict=True)]
    for i in reversed(range(len(parts) - 1)):
        if parts[i + 1].extends_previous:
            (error, scale), (next_error, next_scale) = found[i], found[i + 1]
            found[i] = scale * error + next_scale * next_error, 1.0
    errors, scales = zip(*found, strict=True)
    return errors, scales


def decoder_bias_gradient(
    parts: tuple[Reconstruction, ...], errors: tuple[Tensor, ...], scales: tuple[Number, ...], input_gradient: Tensor
) -> Tensor:
    """Return ∂L/∂b_dec, [d]: from the reconstructions that add b_dec, minus ∂L/∂(x − b_dec) through the encoder."""
    gradient = -input_gradient
    for i, part in enumerate(parts):
        if part.trains_decoder and part.adds_bias:
            gradient += scales[i] * errors[i].sum(0)
    return gradient


def make_row_update(
    arch: Architecture, rule: Gradients, values: tuple[Tensor, ...], parts: tuple[Reconstruction, ...],
    errors: tuple[Tensor, ...], scales: tuple[Number, ...], centred: CentredInput, support: Support,
    is_valid: Tensor | None, kernels: Kernels,
) -> RowUpdate:  # fmt: skip
    """Return the gradients of the rule in the form that `Kernels.update_rows` takes."""
    live = sum(part.trains_decoder for part in parts)
    assert all(part.trains_decoder for part in parts[:live]), "live reconstructions come first"
    empty = values[0].new_zeros(0)
    zero = torch.zeros_like(values[0]) if any(slope is None for slope in rule.pre.slopes) else empty
    others = [gradient for gradient in rule.vectors.values() if gradient is not rule.pre]
    return RowUpdate(
        x=centred.x,
        slopes=tuple(zero if slope is None else slope for slope in rule.pre.slopes),
        constant=rule.pre.constant,
        values=values[:live],
        residuals=errors,
        scales=scales,
        decoder_norm_gradient=None if rule.shrink is None else kernels.sum_per_feature(support, rule.shrink),
        is_unit_norm=arch.decoder_norm == "unit",
        may_skip=tuple(all(gradient.slopes[r] is None for gradient in others) for r in range(len(parts))),
        is_valid=is_valid,
    )
