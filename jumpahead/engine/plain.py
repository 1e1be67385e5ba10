"""The kernels in plain torch: any device, any machine, no compiler. Also the second opinion of the compiled ones.

B tokens · d dimensions · M features · |S| entries. The encoder product runs in chunks of features, so that no B×M
tensor exists even here.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from jumpahead.engine.lazy_adam import Adam, update_rows_, without_radial
from jumpahead.engine.step import Centred, Residual, RowUpdate, State, Support
from jumpahead.sae.base import DEAD, MAIN, Above, Selection

CHUNK = 2**22  # entries of one block of the encoder product
GATHER = 2**22  # numbers of one block of gathered rows


def slack(x: Tensor, norms: Tensor) -> Tensor:
    """How far a product in x's own precision can be from the exact π: at most ‖x_i‖·slack_j. [M]

    A sum of d products in precision u is off by at most d·u·‖x‖·‖w‖ to first order, whatever the order of summation;
    1.05 covers higher orders and the norms' own rounding, + 4 the bias and the comparison.
    """
    d = x.shape[1]
    u = torch.finfo(x.dtype).eps / 2
    return norms * (1.05 * (d + 4) * u)


def bias_slack(b_enc: Tensor) -> Tensor:
    """The part of the slack that does not shrink with x: rounding of the bias. [M]"""
    return b_enc.abs() * (4 * torch.finfo(b_enc.dtype).eps)


def canonical(x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
    """π at entries: products and sum in float64, rounded once. Every kernel layer decides by these values."""
    out = torch.empty(len(token), dtype=x.dtype)
    size = max(1, GATHER // x.shape[1])
    for start in range(0, len(token), size):
        t, j = token[start : start + size], feature[start : start + size]
        product = (x.index_select(0, t).double() * w_enc.index_select(0, j).double()).sum(1)
        out[start : start + size] = (product + b_enc.index_select(0, j).double()).to(x.dtype)
    return out


def assemble(token: Tensor, feature: Tensor, pre: Tensor, part: Tensor | None, tokens: int, width: int) -> Support:
    """A Support from entries that are sorted by token, then by feature."""
    indptr = torch.zeros(tokens + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(token, minlength=tokens).cumsum(0)
    colptr = torch.zeros(width + 1, dtype=torch.int64)
    colptr[1:] = torch.bincount(feature, minlength=width).cumsum(0)
    order = torch.argsort(feature, stable=True)
    return Support(indptr, token.int(), feature.int(), pre, part, colptr, order)


def largest_of_each(token: Tensor, feature: Tensor, pre: Tensor, k: int, tokens: int) -> Tensor:
    """Mask of the k largest positive entries of each token; of equal ones the lower feature. Entries sorted by token,
    then by feature."""
    by_value = torch.argsort(pre, descending=True, stable=True)
    by_token = by_value[torch.argsort(token[by_value], stable=True)]
    first = torch.zeros(tokens, dtype=torch.int64)
    first[1:] = torch.bincount(token, minlength=tokens).cumsum(0)[:-1]
    rank = torch.arange(len(token)) - first[token[by_token].long()]
    keep = torch.zeros(len(token), dtype=torch.bool)
    keep[by_token] = rank < k
    return keep & (pre > 0)


@final
class Plain:
    """Step 1 to 5 with torch operations."""

    name = "plain torch"

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        out = x - bias
        return Centred(out, out.norm(dim=1))

    def support(self, x: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, selection: Selection) -> Support:
        tokens, width = len(x.x), len(w_enc)
        if isinstance(selection, Above):
            token, feature = self._above(x, w_enc, b_enc, norms, selection.lower)
            pre = canonical(x.x, w_enc, b_enc, token, feature)
            keep = pre > selection.lower[feature]
            return assemble(token[keep], feature[keep], pre[keep], None, tokens, width)
        token, feature, pre = self._largest(x, w_enc, b_enc, norms, selection.k)
        if selection.dead is None:
            return assemble(token, feature, pre, None, tokens, width)
        dead = selection.dead.nonzero()[:, 0]
        t2, j2, pre2 = self._largest(x, w_enc[dead], b_enc[dead], norms[dead], selection.k_dead)
        return union(token, feature, pre, t2, dead[j2], pre2, tokens, width)

    def _above(self, c: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates: every entry whose exact π can exceed lower."""
        x, row, column = c.x, c.norms, slack(c.x, norms)
        floor = lower - bias_slack(b_enc) - bias_slack(torch.nan_to_num(lower, neginf=0.0))
        found = []
        for chunk in chunks(len(w_enc), len(x)):
            pre = torch.addmm(b_enc[chunk], x, w_enc[chunk].T).addr_(row, column[chunk])
            token, feature = (pre > floor[chunk]).nonzero(as_tuple=True)
            found.append((token, feature + chunk.start))
        return in_order(found)

    def _largest(
        self, c: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest positive entries of each token, with their π."""
        x, row, column = c.x, c.norms, slack(c.x, norms)
        extra = bias_slack(b_enc)
        best = torch.full((len(x), k), -torch.inf, dtype=x.dtype)  # lower bounds of the k largest so far
        found = []
        for chunk in chunks(len(w_enc), len(x)):
            pre = torch.addmm(b_enc[chunk], x, w_enc[chunk].T)
            margin = torch.outer(row, column[chunk]) + extra[chunk]
            best = torch.topk(torch.cat([best, pre - margin], 1), k, sorted=True).values
            token, feature = (pre + margin > best[:, -1:].clamp_min(0)).nonzero(as_tuple=True)
            found.append((token, feature + chunk.start))
        token, feature = in_order(found)
        pre = canonical(x, w_enc, b_enc, token, feature)
        keep = largest_of_each(token, feature, pre, k, len(x))
        return token[keep], feature[keep], pre[keep]

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        x_hat = torch.nn.functional.embedding_bag(
            support.feature.long(), w_dec, support.indptr, mode="sum", per_sample_weights=values,
            include_last_offset=True,
        )  # fmt: skip
        residual = x_hat + (bias - sign * target)
        return Residual(residual, residual.double().square().sum().item())

    def project(self, support: Support, residual: Tensor, scale: float, w_dec: Tensor) -> Tensor:
        out = torch.empty_like(support.pre)
        size = max(1, GATHER // residual.shape[1])
        for start in range(0, len(out), size):
            some = slice(start, start + size)
            rows = residual.index_select(0, support.token[some])
            out[some] = (rows * w_dec.index_select(0, support.feature[some])).sum(1)
        return out * scale

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        width = len(support.colptr) - 1
        return torch.bincount(support.feature, weights=vector, minlength=width).to(vector.dtype)

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> None:
        width = len(support.colptr) - 1
        moved = update.d_pre != 0
        for value in update.values:
            moved = moved | (value != 0)
        touched = torch.zeros(width, dtype=torch.bool)
        touched[support.feature[moved].long()] = True
        for chunk in chunks(width, update.x.shape[1] * 4):
            rows = touched[chunk].nonzero()[:, 0] + chunk.start
            if len(rows):
                self._chunk(rows, chunk, support, update, state, adam)

    def _chunk(self, rows: Tensor, chunk: slice, support: Support, update: RowUpdate, state: State, adam: Adam) -> None:
        """Rows of one chunk of features; the only gradients that are ever materialised."""
        w_enc, w_dec = state.p["W_enc"], state.p["W_dec"]
        start, stop = int(support.colptr[chunk.start]), int(support.colptr[chunk.stop])
        order = support.order[start:stop]
        local = support.colptr[chunk.start : chunk.stop + 1] - start

        def transposed_times(vector: Tensor, dense: Tensor) -> Tensor:
            return torch.nn.functional.embedding_bag(
                support.token[order].long(), dense, local, mode="sum", per_sample_weights=vector[order],
                include_last_offset=True,
            )[rows - chunk.start]  # fmt: skip

        d_enc = transposed_times(update.d_pre, update.x)
        d_dec = torch.zeros_like(d_enc)
        for value, residual, scale in zip(update.values, update.residuals, update.scales, strict=True):
            d_dec += transposed_times(value * scale, residual)
        if update.shrink is not None:
            old = w_dec[rows]
            d_dec += update.shrink[rows, None] * old / old.norm(dim=1, keepdim=True)
        if update.unit:
            d_dec = without_radial(d_dec, w_dec[rows])
        skipped = adam.t - state.last[rows]
        update_rows_(w_enc, state.v["W_enc"], d_enc, rows, skipped, adam)
        update_rows_(w_dec, state.v["W_dec"], d_dec, rows, skipped, adam)
        if update.unit:
            new = w_dec[rows]
            w_dec[rows] = new / new.norm(dim=1, keepdim=True)
        state.last[rows] = adam.t
        state.norms[rows] = w_enc[rows].norm(dim=1)


def chunks(width: int, rows: int) -> list[slice]:
    """Blocks of features of at most CHUNK entries each, for `rows` entries per feature."""
    size = max(1, CHUNK // max(1, rows))
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def in_order(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(token, feature) of blocks of ascending features, sorted by token, then by feature."""
    token, feature = (torch.cat(column) for column in zip(*found, strict=True))
    order = torch.argsort(token, stable=True)
    return token[order], feature[order]


def union(
    token: Tensor, feature: Tensor, pre: Tensor, token2: Tensor, feature2: Tensor, pre2: Tensor, tokens: int, width: int
) -> Support:
    """One Support from main entries and entries among dead features; an entry of both has both bits."""
    key = torch.cat([token.long() * width + feature, token2.long() * width + feature2])
    bits = torch.cat([torch.full_like(token, MAIN), torch.full_like(token2, DEAD)]).to(torch.uint8)
    unique, inverse = torch.unique(key, sorted=True, return_inverse=True)
    part = torch.zeros(len(unique), dtype=torch.uint8).index_add_(0, inverse, bits)
    merged = torch.empty(len(unique), dtype=pre.dtype).index_copy_(0, inverse, torch.cat([pre, pre2]))
    return assemble(unique // width, unique % width, merged, part, tokens, width)
