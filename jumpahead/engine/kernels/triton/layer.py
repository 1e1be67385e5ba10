"""The kernel layer for a GPU, in Triton; it selects the same entries as `TorchKernels`.

In Triton's interpreter (TRITON_INTERPRET=1) the same kernels run on a CPU.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from jumpahead.engine.batch_topk import FIRST_GUESS_RATIO, GUESS_DECAY, MAX_GUESSES
from jumpahead.engine.error_bounds import is_within_error_bound
from jumpahead.engine.interface import (
    BufferDemand,
    CentredInput,
    EncoderWeights,
    Residual,
    RowUpdate,
    RowUpdateResult,
    SelectedSupport,
    State,
)
from jumpahead.engine.kernels.base import MAX_RELATIVE_ROUNDING, DefaultKernels
from jumpahead.engine.kernels.triton import screen, sparse_ops
from jumpahead.engine.kernels.triton.entries import to_support
from jumpahead.engine.kernels.triton.launch import (
    bf16_store_bytes,
    ceil_div,
    next_power_of_two,
    optional_int16,
    warps_for,
)
from jumpahead.engine.kernels.triton.selection import (
    full_precision,
    raise_to_kth_largest,
    select_above,
    select_topk,
    write_canonical,
)
from jumpahead.engine.lazy_adam import AdamStep
from jumpahead.engine.supports import PADDING, Support, trim_support
from jumpahead.sae.support import MAIN, AboveThreshold, Number, PerTokenSelection, TopKOfBatch

INITIAL_CAPACITY = 64
"""Initial candidates per token that the buffers can hold."""
CAPACITY_STEP = 2**10
"""Capacities are rounded up to a multiple of this."""
PIECE = 128
"""Entries of a feature that one program processes; features with more are cut into pieces."""
FEATURES_PER_PROGRAM = 8
"""Features per program of `sparse_ops.update_rows`."""
MAX_REGISTERS = 128
"""Registers per thread of the kernels that hold whole rows, 16 elements of a row per thread: at 2048 < d ≤ 4096 two
programs then fit on a multiprocessor. With three or more reconstructions the limit is the hardware's."""


@final
class TritonKernels(DefaultKernels):
    """Steps 1, 3 and 5 in Triton; matrix products by the vendor's library.

    is_async: whether steps are launched without waiting for the device (`async_step.py`). If not, `find_support` grows
    its buffers at once and returns no padding.
    """

    def __init__(self, device: torch.device | str = "cuda", *, is_async: bool = False):
        self.device, self.is_async = torch.device(device), is_async
        self.screens_in_bf16 = is_within_error_bound(torch.mm, torch.bfloat16, self.device)
        """True if the encoder product of float32 tensors is computed in bfloat16."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "an interpreter"
        dtype = "bfloat16" if self.screens_in_bf16 else "float32"
        self.name = f"Triton on {where}, encoder product in {dtype}"
        self.buffer_demands: list[BufferDemand] = []
        self._capacities: Any = WeakTensorKeyDictionary()
        """Capacity for candidates, by W_enc."""
        self._failed_guesses: Any = WeakTensorKeyDictionary()
        """Number of consecutive guesses for `TopKOfBatch` that were too high, by W_enc."""
        self._always_valid = torch.ones(1, dtype=torch.int32, device=self.device)
        self._adam_constants: tuple[AdamStep, torch.dtype, Tensor] | None = None

    # ------------------------------------------------------------------------------------------ inputs

    def prepare_encoder(self, w_enc: Tensor) -> EncoderWeights:
        norms, bf16, rounding_norms = self._rounding_buffers(w_enc)
        block = next_power_of_two(w_enc.shape[1])
        if len(w_enc):
            sparse_ops.round_rows_to_bf16[(len(w_enc),)](
                w_enc, norms, optional_int16(bf16), rounding_norms, w_enc.shape[1], BF16_BYTES=bf16_store_bytes(bf16),
                BLOCK=block, num_warps=warps_for(block),
            )  # fmt: skip
        return EncoderWeights(w_enc, norms, bf16, rounding_norms, self.name)

    def centre_input(self, x: Tensor, bias: Tensor) -> CentredInput:
        out, block = torch.empty_like(x), next_power_of_two(x.shape[1])
        norms, bf16, rounding_norms = self._rounding_buffers(x)
        if len(x):
            sparse_ops.subtract_bias[(len(x),)](
                x.contiguous(), bias, out, norms, optional_int16(bf16), rounding_norms, x.shape[1],
                BF16_BYTES=bf16_store_bytes(bf16), BLOCK=block, num_warps=warps_for(block),
            )  # fmt: skip
        if bf16 is None or not len(x):
            return CentredInput(out, norms, bf16)
        largest = (rounding_norms / norms.clamp_min(1e-30)).amax()
        return CentredInput(
            out, norms, bf16, torch.where(largest < MAX_RELATIVE_ROUNDING, largest, MAX_RELATIVE_ROUNDING)
        )

    def _rounding_buffers(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return uninitialised norms [n], bfloat16 copies [n, d] or None, and rounding norms [n] or []."""
        is_bf16 = self.screens_in_bf16 and rows.dtype == torch.float32
        layout = torch.contiguous_format
        bf16 = torch.empty_like(rows, dtype=torch.bfloat16, memory_format=layout) if is_bf16 else None
        return rows.new_empty(len(rows)), bf16, rows.new_empty(len(rows) if is_bf16 else 0)

    # ------------------------------------------------------------------------------------------ step 1

    def find_support(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: PerTokenSelection
    ) -> Support:
        while True:
            capacity = self._capacity(encoder.w_enc, x)
            if isinstance(selection, AboveThreshold):
                selected = select_above(x, encoder, b_enc, selection.lower, capacity)
            else:
                selected = select_topk(x, encoder, b_enc, selection, capacity)
            if self.is_async:
                guess_too_high = torch.zeros_like(selected.needed, dtype=torch.bool)
                self.buffer_demands.append(BufferDemand(encoder.w_enc, capacity, selected.needed, guess_too_high))
                return to_support(selected.entries, selected.part, len(x.x))
            needed = int(selected.needed)
            self.record_demand(encoder.w_enc, needed, guess_too_high=False)
            if needed <= capacity:
                return trim_support(to_support(selected.entries, selected.part, len(x.x)))

    def find_batch_topk(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: TopKOfBatch
    ) -> SelectedSupport:
        capacity, failed = self._capacity(encoder.w_enc, x), self._failed_guesses.get(encoder.w_enc, 0)
        guess = torch.as_tensor(selection.guess, dtype=b_enc.dtype, device=self.device)
        is_usable = (guess > 0) & (guess < torch.inf) & (failed < MAX_GUESSES)
        minimum = torch.where(is_usable, guess * (FIRST_GUESS_RATIO * GUESS_DECAY**failed), 0.0)
        found = select_topk(x, encoder, b_enc, selection, capacity, minimum)
        is_enough = (found.candidate_pre >= minimum).sum().reshape(1) >= selection.count(len(x.x))
        demand = BufferDemand(encoder.w_enc, capacity, found.needed, ~is_enough & (minimum > 0))
        self.buffer_demands.append(demand)
        pre, part = found.entries.pre, found.part
        main_pre = pre if part is None else torch.where((part & MAIN) != 0, pre, PADDING)
        smallest = torch.where(main_pre > PADDING, main_pre, torch.inf).amin().double()
        support = to_support(found.entries, part, len(x.x))
        return SelectedSupport(support, torch.where(smallest < torch.inf, smallest, guess.double()))

    def record_demand(self, w_enc: Tensor, needed: int, *, guess_too_high: bool) -> None:
        self._failed_guesses[w_enc] = self._failed_guesses.get(w_enc, 0) + 1 if guess_too_high else 0
        capacity = self._capacities.get(w_enc, 0)
        if needed > capacity or 4 * needed < capacity:
            self._capacities[w_enc] = -(-needed * 5 // 4 // CAPACITY_STEP) * CAPACITY_STEP + CAPACITY_STEP

    def _capacity(self, w_enc: Tensor, x: CentredInput) -> int:
        """Return the capacity of the buffers for candidates."""
        return self._capacities.setdefault(w_enc, INITIAL_CAPACITY * max(1, len(x.x)))

    def canonical_preactivations(
        self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor
    ) -> Tensor:
        pre = x.new_empty(len(token))
        count = torch.full((1,), len(token), device=self.device)
        write_canonical(x, w_enc, b_enc, token.contiguous(), feature.contiguous(), count, pre)
        return pre

    def write_exact(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        tile = 32
        screen.write_exact[(len(pre), ceil_div(pre.shape[1], tile))](
            pre, unsure.view(torch.uint8), group, x, w_enc, b_enc, pre.shape[1], x.shape[1],
            TILE=tile, BLOCK=min(128, next_power_of_two(x.shape[1])),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ products

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        with full_precision():
            return torch.mm(a, b)

    def kth_largest_bounds(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        low = values.new_zeros(values.shape[1])
        return low, raise_to_kth_largest(values, k, low)

    # ------------------------------------------------------------------------------------------ steps 3 and 5

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        out, d = torch.empty_like(target, memory_format=torch.contiguous_format), target.shape[1]
        block = min(1024, next_power_of_two(d))
        squares = torch.zeros(len(out), ceil_div(d, block), dtype=torch.float64, device=self.device)
        if len(out):
            entries = max(1, 4096 // block) if block < 1024 else 4
            entries = min(16, entries)
            sparse_ops.decode[(len(out), ceil_div(d, block))](
                support.indptr, support.order, support.feature, values, w_dec, bias, target.contiguous(), out, squares,
                d, SIGN=sign, ENTRIES=entries, BLOCK=block, num_warps=warps_for(block * entries),
            )  # fmt: skip
        return Residual(out, squares.sum())

    def sum_per_feature(self, support: Support, vector: Tensor) -> Tensor:
        return self._sum_segments(support.colptr, vector)

    def count_active_per_token(self, support: Support, on: Tensor) -> Tensor:
        return self._sum_segments(support.indptr, on.to(support.pre.dtype)[support.order])

    def _sum_segments(self, starts: Tensor, vector: Tensor) -> Tensor:
        """Return the sums of vector[starts[j] : starts[j + 1]], [len(starts) − 1]."""
        out = torch.empty(len(starts) - 1, dtype=vector.dtype, device=self.device)
        sparse_ops.sum_segments[(ceil_div(len(out), 8),)](
            starts, vector.contiguous(), out, len(out), SEGMENTS=8, TILE=32, num_warps=2
        )
        return out

    def update_rows(self, support: Support, update: RowUpdate, state: State, adam: AdamStep) -> RowUpdateResult:
        width, d = state.params["W_enc"].shape
        block, dtype = next_power_of_two(d), update.x.dtype
        projections = tuple(torch.zeros_like(support.pre) for _ in update.residuals)
        parts, live = len(update.residuals), len(update.values)
        registers = MAX_REGISTERS if parts < 3 else 2 * MAX_REGISTERS - 1
        launch = {"num_warps": warps_for(2 * block), "maxnreg": registers}
        unused = support.pre
        constant = unused if update.constant is None else update.constant.contiguous()
        values = (*update.values, *[unused] * (parts - live))
        scales = torch.cat([self._on_device(scale, dtype) for scale in update.scales])
        entries = (
            support.token, update.x, constant, update.slopes, values, update.residuals, scales, projections,
        )  # fmt: skip
        entry_options = {
            "PARTS": parts, "LIVE": live, "MAY_SKIP": sum(skip << r for r, skip in enumerate(update.may_skip)),
            "CONSTANT": update.constant is not None, "PIECE": PIECE, "BLOCK": block,
        }  # fmt: skip
        row_state, row_options = self._row_state(update, state, adam)
        is_valid = self._always_valid if update.is_valid is None else update.is_valid
        programs = ceil_div(width, FEATURES_PER_PROGRAM)
        features, numbers = self._pieces(support.colptr, len(support.pre))
        pieces = len(features)
        input_gradient = torch.empty(programs + pieces, d, dtype=dtype, device=self.device)
        if pieces:
            partial_sums = [torch.empty(pieces, d, dtype=dtype, device=self.device) for _ in range(2)]
            partial_sums.append(torch.empty(pieces, dtype=torch.float64, device=self.device))
            partial_sums.append(torch.empty(pieces, dtype=torch.int32, device=self.device))
            sparse_ops.piece_gradients[(pieces,)](
                features, numbers, support.colptr, *entries, *partial_sums, state.params["W_dec"], is_valid, d, width,
                **entry_options, **launch,
            )  # fmt: skip
            sparse_ops.update_rows_from_pieces[(pieces,)](
                features, numbers, *partial_sums, input_gradient[programs:], support.colptr, *row_state, is_valid, d,
                width, **row_options, PIECE=PIECE, BLOCK=block, **launch,
            )  # fmt: skip
        sparse_ops.update_rows[(programs,)](
            support.colptr, *entries, input_gradient, *row_state, is_valid, d, width, **entry_options, **row_options,
            FEATURES=FEATURES_PER_PROGRAM, **launch,
        )  # fmt: skip
        return RowUpdateResult(projections, input_gradient.sum(0))

    def _pieces(self, colptr: Tensor, entries: int) -> tuple[Tensor, Tensor]:
        """Return the pieces of features with more than PIECE entries: (feature, number within the feature), [pieces].

        The number of pieces is an upper bound that needs no synchronization; unused pieces have feature M.
        """
        counts = colptr.diff()
        per_feature = torch.where(counts > PIECE, (counts + PIECE - 1) // PIECE, 0)
        ends = per_feature.cumsum(0)
        pieces = torch.arange(2 * entries // PIECE, device=self.device)
        feature = torch.searchsorted(ends, pieces, right=True)
        starts = torch.cat([ends - per_feature, ends.new_zeros(1)])
        return feature, pieces - starts[feature]

    def apply_row_gradients(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: AdamStep) -> None:  # fmt: skip
        d = g_enc.shape[1]
        row_state, row_options = self._row_state(update, state, adam)
        block = next_power_of_two(d)
        sparse_ops.apply_row_gradients[(len(features),)](
            features, g_enc.contiguous(), g_dec.contiguous(), touched.contiguous().view(torch.uint8), *row_state,
            self._always_valid if update.is_valid is None else update.is_valid, d, **row_options, BLOCK=block,
            num_warps=warps_for(2 * block), maxnreg=MAX_REGISTERS,
        )  # fmt: skip

    def _row_state(self, update: RowUpdate, state: State, adam: AdamStep) -> tuple[tuple[Any, ...], dict[str, int]]:
        """Return the arguments of `sparse_ops._update_row` from `norm_gradient` to `step`, and its options."""
        p, v, encoder = state.params, state.second_moments, state.encoder_for(self)
        m = state.first_moments or v  # without momentum they are not read
        skipped = (adam.step - state.last_touched).double()
        decays = torch.full_like(skipped, adam.beta2).pow_(skipped).to(p["W_enc"].dtype)
        norm_gradient = update.decoder_norm_gradient
        arguments = (
            encoder.norms if norm_gradient is None else norm_gradient,
            p["W_enc"], p["W_dec"], m["W_enc"], m["W_dec"], v["W_enc"], v["W_dec"], state.last_touched, decays,
            encoder.norms, optional_int16(encoder.bf16), encoder.rounding_norms,
            self._adam_on_device(adam, p["W_enc"].dtype), adam.step,
        )  # fmt: skip
        options = {
            "NORM_GRADIENT": norm_gradient is not None, "UNIT_NORM": update.is_unit_norm,
            "BF16_BYTES": bf16_store_bytes(encoder.bf16), "MOMENTUM": bool(state.first_moments),
        }  # fmt: skip
        return arguments, options

    def _adam_on_device(self, adam: AdamStep, dtype: torch.dtype) -> Tensor:
        """Return lr, 1 − β₂, the correction of √v, ε, β₁, 1 − β₁ and the correction of m on the device, [7].

        As kernel arguments they would be rounded to float32.
        """
        if self._adam_constants is None or self._adam_constants[:2] != (adam, dtype):
            numbers = (
                adam.lr, 1 - adam.beta2, adam.correction, adam.epsilon, adam.beta1, 1 - adam.beta1,
                adam.momentum_correction,
            )  # fmt: skip
            self._adam_constants = (adam, dtype, torch.cat([self._on_device(number, dtype) for number in numbers]))
        return self._adam_constants[2]

    def _on_device(self, number: Number, dtype: torch.dtype) -> Tensor:
        """Return a number as [1] on the device. `torch.full` does not synchronize; a copy from the host would."""
        if isinstance(number, Tensor):
            return number.to(dtype).reshape(1)
        return torch.full((1,), number, dtype=dtype, device=self.device)
