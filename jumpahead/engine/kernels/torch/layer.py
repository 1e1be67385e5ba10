"""The kernel layer in torch operations: runs on any device without a compiler. Compiled layers are tested against it.

B tokens · d dimensions · M features · |S| entries. The encoder product is computed in blocks of features, so that no
B×M tensor is allocated.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from jumpahead.engine.canonical import GATHER_ENTRIES, canonical_preactivations, topk_per_token
from jumpahead.engine.error_bounds import bias_error_bound, product_error_bound
from jumpahead.engine.interface import CentredInput, EncoderWeights, Residual, RowUpdate, RowUpdateResult, State
from jumpahead.engine.kernels.base import DefaultKernels
from jumpahead.engine.lazy_adam import AdamStep, lazy_adam_update_, remove_radial_component
from jumpahead.engine.supports import Support, merge_supports, support_from_entries
from jumpahead.sae.support import AboveThreshold, Number, PerTokenSelection

BLOCK_ENTRIES = 2**22
"""Entries of one block of the encoder product."""


@final
class TorchKernels(DefaultKernels):
    """Steps 1, 3 and 5 in torch operations."""

    is_async = False

    def __init__(self, note: str = ""):
        self.name = f"plain torch{note and f' ({note})'}"

    def prepare_encoder(self, w_enc: Tensor) -> EncoderWeights:
        return EncoderWeights(w_enc, w_enc.norm(dim=1), None, w_enc.new_empty(0), self.name)

    def centre_input(self, x: Tensor, bias: Tensor) -> CentredInput:
        out = x - bias
        return CentredInput(out, out.norm(dim=1))

    def find_support(
        self, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: PerTokenSelection
    ) -> Support:
        tokens, width = len(x.x), len(encoder.w_enc)
        if isinstance(selection, AboveThreshold):
            feature, token = self._candidates_above(x, encoder, b_enc, selection.lower)
            pre = canonical_preactivations(x.x, encoder.w_enc, b_enc, token, feature)
            keep = pre > selection.lower[feature]
            return support_from_entries(feature[keep], token[keep], pre[keep], None, tokens, width)
        feature, token, pre = self._topk(x, encoder, b_enc, selection.k)
        if selection.dead is None:
            return support_from_entries(feature, token, pre, None, tokens, width)
        dead = selection.dead.nonzero()[:, 0]
        dead_encoder = self.prepare_encoder(encoder.w_enc[dead])
        feature2, token2, pre2 = self._topk(x, dead_encoder, b_enc[dead], selection.k_dead)
        return merge_supports(feature, token, pre, dead[feature2], token2, pre2, tokens, width)

    def _candidates_above(
        self, centred: CentredInput, encoder: EncoderWeights, b_enc: Tensor, lower: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the (feature, token) of every entry whose exact π may exceed lower. lower [M]."""
        x, x_norm, error_slope = centred.x, centred.norms, product_error_bound(centred.x, encoder.norms)
        cutoff = lower - bias_error_bound(b_enc) - bias_error_bound(torch.nan_to_num(lower, neginf=0.0, posinf=0.0))
        found = []
        for block in feature_blocks(len(lower), len(x)):
            pre = torch.addmm(b_enc[block, None], encoder.w_enc[block], x.T).addr_(error_slope[block], x_norm)
            feature, token = (pre > cutoff[block, None]).nonzero(as_tuple=True)
            found.append((feature + block.start, token))
        return concatenate_blocks(found)

    def _topk(
        self, centred: CentredInput, encoder: EncoderWeights, b_enc: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (feature, token, π) of the k largest positive entries of each token."""
        x, x_norm, error_slope = centred.x, centred.norms, product_error_bound(centred.x, encoder.norms)
        bias_error = bias_error_bound(b_enc)
        best = x.new_full((k, len(x)), -torch.inf)  # lower bounds of each token's k largest so far
        found = []
        for block in feature_blocks(len(b_enc), len(x)):
            pre = torch.addmm(b_enc[block, None], encoder.w_enc[block], x.T)
            margin = torch.outer(error_slope[block], x_norm) + bias_error[block, None]
            best = torch.topk(torch.cat([best, pre - margin]), k, dim=0).values
            feature, token = (pre + margin > best[-1:].clamp_min(0)).nonzero(as_tuple=True)
            found.append((feature + block.start, token))
        feature, token = concatenate_blocks(found)
        pre = canonical_preactivations(x, encoder.w_enc, b_enc, token, feature)
        keep = topk_per_token(token, pre, k, len(x))
        return feature[keep], token[keep], pre[keep]

    def canonical_preactivations(
        self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor
    ) -> Tensor:
        return canonical_preactivations(x, w_enc, b_enc, token, feature)

    def write_exact(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        row, token = unsure.nonzero(as_tuple=True)
        pre[row, token] = canonical_preactivations(x, w_enc, b_enc, token, group[row])

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def kth_largest_bounds(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        bound = torch.topk(values, k, dim=0).values[-1].clamp_min(0.0)
        return bound, bound

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        order = support.order.long()
        x_hat = torch.nn.functional.embedding_bag(
            support.feature[order].long(), w_dec, support.indptr, mode="sum", per_sample_weights=values[order],
            include_last_offset=True,
        )  # fmt: skip
        residual = x_hat + (bias - sign * target)
        return Residual(residual, residual.double().square().sum())

    def sum_per_feature(self, support: Support, vector: Tensor) -> Tensor:
        width = len(support.colptr) - 1
        return torch.bincount(support.feature, weights=vector, minlength=width).to(vector.dtype)

    def count_active_per_token(self, support: Support, on: Tensor) -> Tensor:
        return torch.bincount(support.token[on], minlength=len(support.indptr) - 1).to(support.pre.dtype)

    def update_rows(self, support: Support, update: RowUpdate, state: State, adam: AdamStep) -> RowUpdateResult:
        projections = tuple(
            self._project(support, residual, scale, state.params["W_dec"])
            for residual, scale in zip(update.residuals, update.scales, strict=True)
        )
        d_pre = update.constant if update.constant is not None else torch.zeros_like(support.pre)
        for slope, projection in zip(update.slopes, projections, strict=True):
            d_pre = d_pre + slope * projection
        input_gradient_sum = self.sum_per_feature(support, d_pre) @ state.params["W_enc"]
        width = len(support.colptr) - 1
        has_value = torch.zeros_like(d_pre, dtype=torch.bool)
        for value, scale in zip(update.values, update.scales, strict=False):
            has_value = has_value | (value * scale != 0)
        touched = torch.zeros(width, 2, dtype=torch.bool, device=support.pre.device)
        touched[support.feature[d_pre != 0].long(), 0] = True
        touched[support.feature[has_value].long(), 1] = True
        if update.decoder_norm_gradient is not None:
            touched[:, 1] |= update.decoder_norm_gradient != 0
        for block in feature_blocks(width, update.x.shape[1] * 4):
            features = touched[block].any(1).nonzero()[:, 0] + block.start
            if len(features):
                self._update_block(features, block, support, d_pre, touched, update, state, adam)
        return RowUpdateResult(projections, input_gradient_sum)

    def _project(self, support: Support, residual: Tensor, scale: Number, w_dec: Tensor) -> Tensor:
        """Return scale·residual_i·d_j at each entry, [|S|]."""
        out = torch.empty_like(support.pre)
        size = max(1, GATHER_ENTRIES // residual.shape[1])
        for start in range(0, len(out), size):
            part = slice(start, start + size)
            rows = residual.index_select(0, support.token[part])
            out[part] = (rows * w_dec.index_select(0, support.feature[part])).sum(1)
        return out * scale

    def _update_block(
        self, features: Tensor, block: slice, support: Support, d_pre: Tensor, touched: Tensor, update: RowUpdate,
        state: State, adam: AdamStep,
    ) -> None:  # fmt: skip
        """Compute and apply the gradient rows of one block of features. touched [M, 2]."""
        start, stop = int(support.colptr[block.start]), int(support.colptr[block.stop])
        token = support.token[start:stop].long()
        offsets = support.colptr[block.start : block.stop + 1] - start

        def sum_rows_per_feature(vector: Tensor, rows: Tensor) -> Tensor:
            return torch.nn.functional.embedding_bag(
                token, rows, offsets, mode="sum", per_sample_weights=vector[start:stop], include_last_offset=True
            )[features - block.start]

        g_enc = sum_rows_per_feature(d_pre, update.x)
        g_dec = torch.zeros_like(g_enc)
        for value, residual, scale in zip(update.values, update.residuals, update.scales, strict=False):
            g_dec += sum_rows_per_feature(value * scale, residual)
        self.apply_row_gradients(features, g_enc, g_dec, touched[features], update, state, adam)

    def apply_row_gradients(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: AdamStep) -> None:  # fmt: skip
        either = touched.any(1)
        rows, g_enc, g_dec, touched = features[either], g_enc[either], g_dec[either], touched[either]
        w_enc, w_dec, old = state.params["W_enc"], state.params["W_dec"], state.params["W_dec"][rows]
        if update.decoder_norm_gradient is not None:
            g_dec = g_dec + update.decoder_norm_gradient[rows, None] * old / old.norm(dim=1, keepdim=True)
        if update.is_unit_norm:
            g_dec = remove_radial_component(g_dec, old)
        skipped = adam.step - state.last_touched[rows]
        m, v = state.first_moments, state.second_moments
        lazy_adam_update_(w_enc, m.get("W_enc"), v["W_enc"], g_enc, rows, skipped, touched[:, 0], adam)
        lazy_adam_update_(w_dec, m.get("W_dec"), v["W_dec"], g_dec, rows, skipped, touched[:, 1], adam)
        if update.is_unit_norm:
            new = w_dec[rows]
            w_dec[rows] = new / new.norm(dim=1, keepdim=True)
        state.last_touched[rows] = adam.step
        state.encoder_for(self).norms[rows] = w_enc[rows].norm(dim=1)


def feature_blocks(width: int, entries_per_feature: int) -> list[slice]:
    """Split 0 … width − 1 into blocks of at most BLOCK_ENTRIES entries, at `entries_per_feature` entries each."""
    size = max(1, BLOCK_ENTRIES // max(1, entries_per_feature))
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def concatenate_blocks(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate the (feature, token) of all blocks."""
    feature, token = (torch.cat(column) for column in zip(*found, strict=True))
    return feature, token
