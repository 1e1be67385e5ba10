"""Interfaces of the engine's modules: the state of an SAE in training, the protocol of a kernel layer, and tuples.

B tokens · d activation dimensions · M features · |S| entries of the support. All tensors are float32 (float64 in
tests); x is in the unit E‖x‖² = 1. Imports no other module of the engine than `supports` and `lazy_adam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from jumpahead.engine.lazy_adam import AdamStep
from jumpahead.engine.supports import Support
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.controller import ControllerState
from jumpahead.sae.gradients import Affine, Gradients
from jumpahead.sae.parameters import Params
from jumpahead.sae.support import Entries, Number, PerTokenSelection, TopKOfBatch

Item = TypeVar("Item")


class EncoderWeights(NamedTuple):
    """W_enc with the norms and the low-precision copy that screening needs; `Kernels.update_rows` keeps it current."""

    w_enc: Tensor
    """[M, d] W_enc itself, not a copy."""
    norms: Tensor
    """[M] ‖w_j‖."""
    bf16: Tensor | None
    """[M, d] W_enc in bfloat16; None if the encoder product is computed in the dtype of W_enc."""
    rounding_norms: Tensor
    """[M] ‖w_j − bf16_j‖; empty if `bf16` is None."""
    layer_name: str
    """`Kernels.name` of the kernel layer that made it."""


class CentredInput(NamedTuple):
    """The input of the encoder product, x − b_dec."""

    x: Tensor
    """[B, d] x − b_dec."""
    norms: Tensor
    """[B] ‖x_i − b_dec‖."""
    bf16: Tensor | None = None
    """[B, d] x − b_dec in bfloat16; None if the encoder product is computed in the dtype of x."""
    max_rounding: Number = 0.0
    """The largest ‖row − bf16 row‖/‖row‖ of the batch."""

    def row_range(self, first: int, count: int) -> CentredInput:
        """Return rows first … first + count − 1, fewer at the end of the batch."""
        rows = slice(first, first + count)
        bf16 = None if self.bf16 is None else self.bf16[rows]
        return CentredInput(self.x[rows], self.norms[rows], bf16, self.max_rounding)


class SelectedSupport(NamedTuple):
    """The support of a step, and the selection threshold seen on the way."""

    support: Support
    smallest: Number | None
    """The smallest π that `TopKOfBatch` selected; None if it selected nothing, and for other selections. An
    asynchronous layer returns the guess instead of None if nothing was selected."""


class Residual(NamedTuple):
    """The residual of one reconstruction."""

    error: Tensor
    """[B, d] x̂ − target."""
    sum_of_squares: Tensor
    """Σ ‖x̂ − target‖² over the batch, accumulated in float64. 0-d."""


class RowUpdate(NamedTuple):
    """The inputs of step 5 (rows) besides the support."""

    x: Tensor
    """[B, d] x − b_dec."""
    slopes: tuple[Tensor, ...]
    """[|S|] per reconstruction: ∂L/∂π = Σ slope·projection + constant."""
    constant: Tensor | None
    """[|S|] the part of ∂L/∂π that does not depend on projections; None is 0."""
    values: tuple[Tensor, ...]
    """[|S|] per reconstruction with a live decoder; those come first."""
    residuals: tuple[Tensor, ...]
    """[B, d] per reconstruction: x̂ − target, or the sum that `step.accumulate_residual_gradients` makes of several."""
    scales: tuple[Number, ...]
    """Per reconstruction: ∂L/∂x̂ = scale·residual, projection = scale·residual·d_j."""
    decoder_norm_gradient: Tensor | None
    """[M] ∂L/∂‖d_j‖, from a penalty on decoder norms; None without one."""
    is_unit_norm: bool
    """True if the rows of W_dec are kept at norm one."""
    may_skip: tuple[bool, ...]
    """Per reconstruction: whether the projection may be left at 0 for entries whose value and slope are 0."""
    is_valid: Tensor | None
    """[1] int32 on the device: 0 if the step must not change the state. None: it is known to be valid."""


class RowUpdateResult(NamedTuple):
    """The results of step 5 (rows)."""

    projections: tuple[Tensor, ...]
    """[|S|] per reconstruction."""
    input_gradient_sum: Tensor
    """[d] ∂L/∂(x − b_dec) through the encoder, summed over the batch: Σ_j (Σ_i ∂L/∂π_ij)·W_enc,j, with W_enc before
    its update. Subtracted from the gradient of b_dec."""


class Kernels(Protocol):
    """A kernel layer: the tensor operations of a step, on one kind of device. Knows no architecture."""

    name: str
    """The library, the device and the precision of the encoder product."""
    is_async: bool
    """True if steps are launched without waiting for the device: `find_support` then returns padded arrays
    (`supports.py`), and `async_step.py` checks later whether its buffers were large enough."""

    def prepare_encoder(self, w_enc: Tensor) -> EncoderWeights:
        """Return W_enc [M, d] with norms and low-precision copy, computed from scratch."""
        ...

    def centre_input(self, x: Tensor, bias: Tensor) -> CentredInput:
        """Return x − bias with its row norms and low-precision copy. x [B, d]; bias [d]."""
        ...

    def find_support(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: PerTokenSelection
    ) -> Support:
        """Step 1: return the entries that the selection keeps, with canonical π. b_enc [M]."""
        ...

    def canonical_preactivations(
        self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor
    ) -> Tensor:
        """Return the canonical π [n] of the entries (token, feature), [n] each. x [B, d]; w_enc [M, d]; b_enc [M]."""
        ...

    def write_exact(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        """Overwrite pre [m, B] with the canonical π where unsure [m, B] bool is set, in place.

        group [m] int64: the feature of each row of pre. x [B, d]; w_enc [M, d]; b_enc [M].
        """
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the matrix product a·b in the dtype of a, by the fastest library that is accurate enough."""
        ...

    def max_concurrent(self, items: int) -> int:
        """Return how many of `items` items `run_concurrently` processes at the same time."""
        ...

    def run_concurrently(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        """Call work(item) for independent items (steps of several SAEs), concurrently if that is faster."""
        ...

    def kth_largest_bounds(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return bounds, lower and upper [B], of max(0, the k-th largest value) of each column of values [m, B]."""
        ...

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        """Step 3: return Σ_j value·d_j + bias − sign·target. values [|S|]; w_dec [M, d]; bias [d]; target [B, d]."""
        ...

    def support_entries(self, support: Support) -> Entries:
        """Return the support as the `Entries` that an architecture works on."""
        ...

    def sum_per_feature(self, support: Support, vector: Tensor) -> Tensor:
        """Return the per-feature sums [M] of a support vector [|S|], added in token order."""
        ...

    def count_active_per_feature(self, support: Support, values: Tensor) -> Tensor:
        """Return how many of `values` [|S|] are positive for each feature: [M], in the dtype of π."""
        ...

    def sum_gradient_per_feature(self, support: Support, gradient: Affine, projections: tuple[Tensor, ...]) -> Tensor:
        """Return the per-feature sums [M] of a gradient, given the projections [|S|] of every reconstruction."""
        ...

    def count_active_per_token(self, support: Support, on: Tensor) -> Tensor:
        """Return the per-token number of entries that are on, [B], in the dtype of π. on [|S|] bool."""
        ...

    def update_rows(self, support: Support, update: RowUpdate, state: State, adam: AdamStep) -> RowUpdateResult:
        """Step 5: update W_enc, W_dec, their moments, `State.last_touched` and `State.encoder`, in place, for every
        feature with a gradient; return the projections and the gradient of the encoder's input."""
        ...

    def apply_row_gradients(
        self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate, state: State,
        adam: AdamStep,
    ) -> None:  # fmt: skip
        """Apply the second half of step 5 to given gradient rows, in place: decoder norm, Adam, renormalisation.

        features [m] int64; g_enc, g_dec [m, d]; touched [m, 2] bool: whether the row of W_enc, and of W_dec, has a
        gradient. Features without either are left alone.
        """
        ...


class AsyncKernels(Kernels, Protocol):
    """A kernel layer that launches a step without waiting for its device."""

    buffer_demands: list[BufferDemand]
    """The demands of every support since the list was cleared."""

    def find_batch_topk(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: TopKOfBatch
    ) -> SelectedSupport:
        """Step 1 for selections over the whole batch, without waiting (`batch_topk.py` waits for its counts)."""
        ...

    def record_demand(self, w_enc: Tensor, needed: int, *, guess_too_high: bool) -> None:
        """Adapt the buffers of W_enc to what a support needed; lower its next guess if the last was too high."""
        ...


class StepObserver(Protocol):
    """Receives every entry of a step with its gradients, and changes nothing (`step_diagnostics.StepDiagnostics`)."""

    def reset(self) -> None:
        """Discard what was observed: the step is replayed."""
        ...

    def __call__(
        self, entries: Entries, values: tuple[Tensor, ...], gradients: Gradients, projections: tuple[Tensor, ...]
    ) -> None:
        """Observe the entries of a support or of a dense block; all entries of a feature come in one call."""
        ...


@dataclass
class State:
    """An SAE in training: everything that a checkpoint holds, and what is derived from it."""

    arch: Architecture
    params: Params
    """The parameters by name."""
    second_moments: Params
    """Adam's second moments, by the name of the trained parameter."""
    last_touched: Tensor
    """[M] int32: the step that last updated each feature's rows."""
    tokens_since_fired: Tensor
    """[M] int64: tokens since each feature last fired."""
    support_share: Tensor
    """[M] float32: the share of the last batch's tokens with an entry of each feature. Features above
    `dense_features.DENSE_SHARE` go through dense products."""
    first_moments: Params = field(default_factory=dict)
    """Adam's first moments, by the name of the trained parameter; empty without momentum (β₁ = 0)."""
    steps_done: int = 0
    controller: ControllerState | None = None
    """The state of λ's controller; None if λ is fixed or the architecture has none."""
    encoder: EncoderWeights | None = None
    """Made from W_enc when first needed; not in a checkpoint."""
    frequent: tuple[Tensor, Tensor] | None = None
    """(support_share, the frequent features by it), cached by `dense_features.py`; not in a checkpoint."""
    in_flight: InFlightState | None = None
    """The last asynchronous step, if it has not been checked yet (`async_step.py`); not in a checkpoint."""

    @property
    def sparsity_coefficient(self) -> Number:
        """Return the controlled λ."""
        assert self.controller is not None
        return self.controller.penalty_scale * self.arch.sparsity_coefficient_scale(self.params)

    def moment_tables(self) -> dict[str, Params]:
        """Return the tables of Adam's moments by their attribute name; the empty one is left out."""
        return {"second_moments": self.second_moments} | (
            {"first_moments": self.first_moments} if self.first_moments else {}
        )

    def encoder_for(self, kernels: Kernels) -> EncoderWeights:
        """Return the encoder weights in the form of this kernel layer; made anew if W_enc was replaced."""
        found = self.encoder
        if found is None or found.w_enc is not self.params["W_enc"] or found.layer_name != kernels.name:
            self.encoder = found = kernels.prepare_encoder(self.params["W_enc"])
        return found


class StepResult(NamedTuple):
    """The measurements of a step before its update; means over the batch.

    Floats, or 0-d tensors of an asynchronous layer. A replayed step corrects those in place: they are final when the
    next step, or `async_step.synchronize`, has returned.
    """

    squared_error: Number
    """‖x − x̂‖²."""
    penalty: Number
    """The sparsity term of the loss."""
    l0: Number
    """Active features per token."""
    support_size: Number
    """|S| per token, dense features included."""
    num_dense_features: int
    """Features that went through dense products."""

    def read(self) -> StepResult:
        """Return the same as floats; waits for the device."""
        squared_error, penalty, l0, support_size = map(float, self[:4])
        return StepResult(squared_error, penalty, l0, support_size, self.num_dense_features)


class CompletedStep(NamedTuple):
    """A step that was run, or launched, with what resampling and replaying need of it."""

    result: StepResult
    is_valid: Tensor | None
    """As in `RowUpdate`: 0 on the device if the step left the state unchanged."""
    centred: CentredInput
    error: Tensor
    """[B, d] x̂ − x."""


class BufferDemand(NamedTuple):
    """The buffer size that a support needed, known only on the device."""

    w_enc: Tensor
    """The encoder whose buffers these are."""
    capacity: int
    """Entries that the buffers could hold."""
    needed: Tensor
    """[1] int64: entries that were found."""
    guess_too_high: Tensor
    """[1] bool: fewer entries than requested were above the guess of `TopKOfBatch`."""


@dataclass
class PendingStep:
    """A launched step that has not been checked, and how to run it again."""

    run: Callable[[], CompletedStep]
    """Runs the step on the state as it is then."""
    observer: StepObserver | None
    done: CompletedStep
    demands: list[BufferDemand]
    report: Tensor
    """float64 on the host, once `arrived`: whether the step was valid, the loss; then two numbers per demand: entries
    needed, and whether the guess was too high."""
    arrived: Any
    """The CUDA event after which `report` can be read; None on the CPU."""

    def was_valid(self) -> bool:
        """Return whether the step changed the state; waits for the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.report[0])


class InFlightState:
    """The asynchronous part of a state."""

    def __init__(self, device: torch.device):
        self.is_valid = torch.ones(1, dtype=torch.int32, device=device)
        """0 from a failed step on, until the host has noticed: later steps then change nothing either."""
        self.last_step: PendingStep | None = None
        """The step that was launched last, until it is checked."""
