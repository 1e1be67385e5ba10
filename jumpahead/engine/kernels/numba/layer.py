"""The kernel layer for the CPU, compiled with numba; it selects the same entries as `TorchKernels`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.interface import CentredInput, EncoderWeights, Item, Residual, RowUpdate, RowUpdateResult, State
from jumpahead.engine.kernels.base import MAX_RELATIVE_ROUNDING, cutoffs_above
from jumpahead.engine.kernels.numba import screen, sparse_ops
from jumpahead.engine.kernels.numba.arrays import array_or_empty, as_arrays, bf16_bits
from jumpahead.engine.kernels.numba.candidates import CandidateBuffer
from jumpahead.engine.kernels.numba.entries import FeatureMajorEntries, merge_entries, to_support
from jumpahead.engine.kernels.numba.entry_ops import NumbaEntryOps, reduce_per_feature
from jumpahead.engine.kernels.numba.matmul_backends import MatmulBackend, float32_backend, screening_backend
from jumpahead.engine.kernels.numba.simd import round_bounds_down
from jumpahead.engine.kernels.numba.threads import parallel_for, parallel_for_each
from jumpahead.engine.kernels.numba.topk_search import TopKSearch
from jumpahead.engine.kernels.numba.workspace import Workspace
from jumpahead.engine.lazy_adam import AdamStep
from jumpahead.engine.supports import Support
from jumpahead.sae.gradients import Affine
from jumpahead.sae.support import AboveThreshold, Entries, PerTokenSelection

BLOCK_ENTRIES = 2**20
"""Entries of one block of the encoder product, which a thread computes and screens while it is in its cache."""
MAX_IDLE_RATIO = 1.25
"""SAEs are trained concurrently, one thread each, if threads × turns is at most this multiple of their number. Beyond
it too many threads are idle in the last turn, and steps on all threads are faster."""
FEATURES_PER_SUM = 32
"""Features per partial sum of ∂L/∂b_dec: fixed, so that no sum depends on the number of threads."""

BlockCallback = Callable[[int, int, np.ndarray], None]
"""Takes the worker's number, the first feature, and the product [features, B]: floats, or bfloat16 bits as int16."""


@final
class NumbaKernels:
    """Steps 1, 3 and 5 in numba; matrix products by torch."""

    def __init__(self, encoder_backend: MatmulBackend | None = None):
        self.encoder_backend = encoder_backend or screening_backend()
        """Computes the encoder product."""
        self.exact_backend = float32_backend()
        """Computes all other products: their bits do not depend on `encoder_backend`."""
        self.is_async = False
        self.name = f"numba, encoder product by {self.encoder_backend.name}"
        self._workspace = Workspace()

    # ------------------------------------------------------------------------------------------ inputs

    def _screens_in_bf16(self, dtype: torch.dtype) -> bool:
        """Return whether the encoder product of tensors of this dtype is computed in bfloat16."""
        return self.encoder_backend.dtype == torch.bfloat16 and dtype == torch.float32

    def prepare_encoder(self, w_enc: Tensor) -> EncoderWeights:
        bf16, rounding_norms = None, w_enc.new_empty(0)
        if self._screens_in_bf16(w_enc.dtype):
            bf16, rounding_norms = torch.empty_like(w_enc, dtype=torch.bfloat16), w_enc.new_empty(len(w_enc))
            arrays = (w_enc.numpy(), bf16_bits(bf16), rounding_norms.numpy())
            parallel_for(sparse_ops.round_rows_to_bf16, len(w_enc), *arrays)
        return EncoderWeights(w_enc, w_enc.norm(dim=1), bf16, rounding_norms, self.name)

    def centre_input(self, x: Tensor, bias: Tensor) -> CentredInput:
        is_bf16, out, norms = self._screens_in_bf16(x.dtype), torch.empty_like(x), x.new_empty(len(x))
        bf16 = x.new_empty(x.shape if is_bf16 else (0, 0), dtype=torch.bfloat16)
        rounding_norms = torch.empty_like(norms if is_bf16 else norms[:0])
        arrays = as_arrays((x, bias, out, norms))
        parallel_for(sparse_ops.subtract_bias, len(x), *arrays, bf16_bits(bf16), rounding_norms.numpy())
        if not is_bf16:
            return CentredInput(out, norms)
        largest = (rounding_norms / norms.clamp_min(1e-30)).amax().item() if len(x) else 0.0
        return CentredInput(out, norms, bf16, largest if largest < MAX_RELATIVE_ROUNDING else MAX_RELATIVE_ROUNDING)

    # ------------------------------------------------------------------------------------------ step 1

    def find_support(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: PerTokenSelection
    ) -> Support:
        if isinstance(selection, AboveThreshold):
            return to_support(self._entries_above(x, encoder, b_enc, selection.lower), len(x.x))
        searches = [TopKSearch(self._workspace, "main", selection.k, None, x, encoder, b_enc)]
        if selection.dead is not None:
            dead = TopKSearch(self._workspace, "dead", selection.k_dead, selection.dead, x, encoder, b_enc)
            searches.append(dead)

        def screen_block(worker: int, start: int, block: np.ndarray) -> None:
            for search in searches:
                search.screen_block(worker, start, block)

        self._for_each_product_block(x, encoder, screen_block)
        main, *others = [search.result() for search in searches]
        return merge_entries(main, others[0], len(x.x)) if others else to_support(main, len(x.x))

    def _entries_above(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, lower: Tensor
    ) -> FeatureMajorEntries:
        """Return the entries with π > lower. lower [M]."""
        cutoff, error_slope = cutoffs_above(x, encoder, b_enc, lower)
        lowest = cutoff - (x.norms.max() if len(x.norms) else 0.0) * error_slope
        never_active = (lower == torch.inf).numpy()
        candidates = CandidateBuffer(self._workspace, x.x.numpy().dtype, len(lower))
        bounds = as_arrays((cutoff, error_slope, x.norms))
        weights = as_arrays((x.x, encoder.w_enc, b_enc, lower))

        def screen_block(_: int, start: int, block: np.ndarray) -> None:
            coarse_cutoff = round_bounds_down(lowest[start : start + len(block)].numpy(), block.dtype)
            candidates.fill(screen.screen_above, block, start, coarse_cutoff, *bounds, *weights)

        self._for_each_product_block(x, encoder, screen_block, never_active)
        return candidates.entries()

    def _for_each_product_block(
        self, x: CentredInput, encoder: EncoderWeights, callback: BlockCallback, skipped: np.ndarray | None = None
    ) -> None:
        """Call `callback` with each block of features of the product W_enc·xᵀ, on the thread that computes the block.

        skipped: bool [M]; blocks in which it is True for all features are left out.
        """
        width, tokens = len(encoder.w_enc), len(x.x)
        per_thread = -(-width // torch.get_num_threads())
        size = max(64, min(BLOCK_ENTRIES // max(1, tokens), per_thread) // 64 * 64)
        starts = [s for s in range(0, width, size) if skipped is None or not skipped[s : s + size].all()]
        rows, columns = (encoder.w_enc, x.x.T) if encoder.bf16 is None or x.bf16 is None else (encoder.bf16, x.bf16.T)
        dtype = np.int16 if rows.dtype == torch.bfloat16 else x.x.numpy().dtype

        def compute_block(worker: int, start: int) -> None:
            block_rows = rows[start : start + size]
            block = self._workspace.array("product", (len(block_rows), tokens), dtype)
            out = torch.from_numpy(block)
            torch.mm(block_rows, columns, out=out.view(torch.bfloat16) if dtype == np.int16 else out)
            callback(worker, start, block)

        with self.encoder_backend.enabled():
            parallel_for_each(starts, compute_block)

    def canonical_preactivations(
        self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor
    ) -> Tensor:
        out = torch.empty(len(token), dtype=x.dtype)
        parallel_for(screen.canonical_preactivations, len(token), *as_arrays((x, w_enc, b_enc, token, feature, out)))
        return out

    def write_exact(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        row, token = unsure.nonzero(as_tuple=True)
        pre[row, token] = self.canonical_preactivations(x, w_enc, b_enc, token, group[row])

    # ------------------------------------------------------------------------------------------ products, concurrency

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        with self.exact_backend.enabled():
            return torch.mm(a, b)

    def max_concurrent(self, items: int) -> int:
        threads = torch.get_num_threads()
        # Concurrent steps need one matmul precision, because that setting is process-wide.
        is_one_precision = self.encoder_backend.precision in (None, self.exact_backend.precision)
        return threads if is_one_precision and threads * -(-items // threads) <= MAX_IDLE_RATIO * items else 1

    def run_concurrently(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        if self.max_concurrent(len(items)) == 1:
            for item in items:
                work(item)
            return
        with self.exact_backend.enabled():
            parallel_for_each(items, lambda _, item: work(item))

    def kth_largest_bounds(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        low, high = torch.zeros(values.shape[1], dtype=values.dtype), torch.empty(values.shape[1], dtype=values.dtype)
        parallel_for(screen.kth_largest_bounds, values.shape[1], values.numpy(), k, low.numpy(), high.numpy())
        return low, high

    # ------------------------------------------------------------------------------------------ steps 3 and 5

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        out, squares = torch.empty_like(target), np.empty(len(target))
        arrays = as_arrays((support.indptr, support.order, support.feature, values, w_dec, bias, target))
        parallel_for(sparse_ops.decode, len(out), *arrays, sign, out.numpy(), squares)
        return Residual(out, torch.tensor(squares.sum()))

    def support_entries(self, support: Support) -> Entries:
        return Entries(support.pre, support.feature, support.part, support.token, NumbaEntryOps(support))

    def sum_per_feature(self, support: Support, vector: Tensor) -> Tensor:
        return reduce_per_feature(sparse_ops.sum_per_feature, support, vector.numpy())

    def count_active_per_feature(self, support: Support, values: Tensor) -> Tensor:
        return reduce_per_feature(sparse_ops.count_positive_per_feature, support, values.numpy())

    def sum_gradient_per_feature(self, support: Support, gradient: Affine, projections: tuple[Tensor, ...]) -> Tensor:
        terms = [(s, p) for s, p in zip(gradient.slopes, projections, strict=True) if s is not None]
        if not terms:
            assert gradient.constant is not None, "a gradient without terms"
            return self.sum_per_feature(support, gradient.constant)
        slopes, used = (as_arrays(column) for column in zip(*terms, strict=True))
        constant = array_or_empty(gradient.constant, used[0].dtype)
        return reduce_per_feature(sparse_ops.sum_gradient_per_feature, support, slopes, used, constant)

    def count_active_per_token(self, support: Support, on: Tensor) -> Tensor:
        return torch.bincount(support.token[on], minlength=len(support.indptr) - 1).to(support.pre.dtype)

    def update_rows(self, support: Support, update: RowUpdate, state: State, adam: AdamStep) -> RowUpdateResult:
        width, dtype = len(support.colptr) - 1, update.x.numpy().dtype
        projections = tuple(torch.empty_like(support.pre) for _ in update.residuals)
        blocks = -(-width // FEATURES_PER_SUM)
        input_gradient = self._workspace.array("input gradient", (blocks, update.x.shape[1]), dtype)
        input_gradient[:] = 0
        frozen = (np.empty(0, dtype),) * (len(update.residuals) - len(update.values))
        values = (*as_arrays(update.values), *frozen)
        parallel_for(
            sparse_ops.update_rows, blocks, FEATURES_PER_SUM, support.colptr.numpy(), support.token.numpy(),
            update.x.numpy(), as_arrays(update.slopes), array_or_empty(update.constant, dtype), values,
            len(update.values), as_arrays(update.residuals), np.array(update.scales, dtype),
            np.array(update.may_skip), *self._row_state(update, state, adam), as_arrays(projections), input_gradient,
        )  # fmt: skip
        return RowUpdateResult(projections, torch.from_numpy(input_gradient.sum(0)))

    def apply_row_gradients(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: AdamStep) -> None:  # fmt: skip
        gradients = as_arrays((features, g_enc, g_dec, touched))
        arguments = self._row_state(update, state, adam)
        parallel_for(sparse_ops.apply_row_gradients, len(features), *gradients, *arguments)

    def _row_state(self, update: RowUpdate, state: State, adam: AdamStep) -> tuple[Any, ...]:
        """Return the arguments of `sparse_ops._update_row` from `norm_gradient` to `adam`."""
        p, v, encoder = state.params, state.second_moments, state.encoder_for(self)
        dtype = update.x.numpy().dtype
        no_moments = np.empty((0, 0), dtype)
        m = {name: tensor.numpy() for name, tensor in state.first_moments.items() if tensor.dim() == 2}
        bf16 = np.empty((0, 0), np.int16) if encoder.bf16 is None else bf16_bits(encoder.bf16)
        return (
            array_or_empty(update.decoder_norm_gradient, dtype), update.is_unit_norm,
            p["W_enc"].numpy(), p["W_dec"].numpy(), m.get("W_enc", no_moments), m.get("W_dec", no_moments),
            v["W_enc"].numpy(), v["W_dec"].numpy(), state.last_touched.numpy(), encoder.norms.numpy(), bf16,
            encoder.rounding_norms.numpy(),
            (adam.step, adam.lr, adam.beta1, adam.beta2, adam.momentum_correction, adam.correction, adam.epsilon),
        )  # fmt: skip
