"""The kernels in plain torch: any device, any machine, no compiler. Also the second opinion of the compiled ones.

B tokens · d dimensions · M features · |S| entries. The encoder product runs in chunks of features, so that no B×M
tensor exists even here.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from jumpahead.engine.decide import GATHER, bias_slack, canonical, largest_of_each, slack
from jumpahead.engine.kernels.base import Ordinary
from jumpahead.engine.lazy_adam import Adam, update_rows_, without_radial
from jumpahead.engine.step import Centred, Encoder, Residual, Rows, RowUpdate, State
from jumpahead.engine.supports import Support, assemble, union
from jumpahead.sae.base import Above, Number, Simple

CHUNK = 2**22  # entries of one block of the encoder product


@final
class Plain(Ordinary):
    """Steps 1, 3 and 5 with torch operations."""

    late = False

    def __init__(self, why: str = ""):
        self.name = f"plain torch{why and f' ({why})'}"

    def encoder(self, w_enc: Tensor) -> Encoder:
        return Encoder(w_enc, w_enc.norm(dim=1), None, w_enc.new_empty(0), self.name)

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        out = x - bias
        return Centred(out, out.norm(dim=1))

    def support(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Simple) -> Support:
        tokens, width = len(x.x), len(encoder.w)
        if isinstance(selection, Above):
            feature, token = self._above(x, encoder, b_enc, selection.lower)
            pre = canonical(x.x, encoder.w, b_enc, token, feature)
            keep = pre > selection.lower[feature]
            return assemble(feature[keep], token[keep], pre[keep], None, tokens, width)
        feature, token, pre = self._largest(x, encoder, b_enc, selection.k)
        if selection.dead is None:
            return assemble(feature, token, pre, None, tokens, width)
        dead = selection.dead.nonzero()[:, 0]
        among = self.encoder(encoder.w[dead])
        feature2, token2, pre2 = self._largest(x, among, b_enc[dead], selection.k_dead)
        return union(feature, token, pre, dead[feature2], token2, pre2, tokens, width)

    def _above(self, c: Centred, encoder: Encoder, b_enc: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates: every entry whose exact π can exceed lower."""
        x, row, column = c.x, c.norms, slack(c.x, encoder.norms)
        floor = lower - bias_slack(b_enc) - bias_slack(torch.nan_to_num(lower, neginf=0.0, posinf=0.0))
        found = []
        for chunk in chunks(len(lower), len(x)):
            pre = torch.addmm(b_enc[chunk, None], encoder.w[chunk], x.T).addr_(column[chunk], row)
            feature, token = (pre > floor[chunk, None]).nonzero(as_tuple=True)
            found.append((feature + chunk.start, token))
        return joined(found)

    def _largest(self, c: Centred, encoder: Encoder, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest positive entries of each token, with their π."""
        x, row, column = c.x, c.norms, slack(c.x, encoder.norms)
        extra = bias_slack(b_enc)
        best = x.new_full((k, len(x)), -torch.inf)  # lower bounds of the k largest so far
        found = []
        for chunk in chunks(len(b_enc), len(x)):
            pre = torch.addmm(b_enc[chunk, None], encoder.w[chunk], x.T)
            margin = torch.outer(column[chunk], row) + extra[chunk, None]
            best = torch.topk(torch.cat([best, pre - margin]), k, dim=0).values
            feature, token = (pre + margin > best[-1:].clamp_min(0)).nonzero(as_tuple=True)
            found.append((feature + chunk.start, token))
        feature, token = joined(found)
        pre = canonical(x, encoder.w, b_enc, token, feature)
        keep = largest_of_each(token, pre, k, len(x))
        return feature[keep], token[keep], pre[keep]

    def canonical(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
        return canonical(x, w_enc, b_enc, token, feature)

    def settle(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        row, token = unsure.nonzero(as_tuple=True)
        pre[row, token] = canonical(x, w_enc, b_enc, token, group[row])

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def kth(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
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

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        width = len(support.colptr) - 1
        return torch.bincount(support.feature, weights=vector, minlength=width).to(vector.dtype)

    def active(self, support: Support, on: Tensor) -> Tensor:
        return torch.bincount(support.token[on], minlength=len(support.indptr) - 1).to(support.pre.dtype)

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> Rows:
        projections = tuple(
            self._project(support, residual, scale, state.p["W_dec"])
            for residual, scale in zip(update.residuals, update.scales, strict=True)
        )
        d_pre = update.constant if update.constant is not None else torch.zeros_like(support.pre)
        for slope, projection in zip(update.slopes, projections, strict=True):
            d_pre = d_pre + slope * projection
        pull = self.sums(support, d_pre) @ state.p["W_enc"]
        width = len(support.colptr) - 1
        moved = d_pre != 0
        for value in update.values:
            moved = moved | (value != 0)
        touched = torch.zeros(width, dtype=torch.bool, device=support.pre.device)
        touched[support.feature[moved].long()] = True
        for chunk in chunks(width, update.x.shape[1] * 4):
            features = touched[chunk].nonzero()[:, 0] + chunk.start
            if len(features):
                self._chunk(features, chunk, support, d_pre, update, state, adam)
        return Rows(projections, pull)

    def _project(self, support: Support, residual: Tensor, scale: Number, w_dec: Tensor) -> Tensor:
        """scale·residual_i·d_j at each entry."""
        out = torch.empty_like(support.pre)
        size = max(1, GATHER // residual.shape[1])
        for start in range(0, len(out), size):
            some = slice(start, start + size)
            rows = residual.index_select(0, support.token[some])
            out[some] = (rows * w_dec.index_select(0, support.feature[some])).sum(1)
        return out * scale

    def _chunk(self, features: Tensor, chunk: slice, support: Support, d_pre: Tensor, update: RowUpdate,
               state: State, adam: Adam) -> None:  # fmt: skip
        """Rows of one chunk of features; the only gradients that are ever materialised."""
        start, stop = int(support.colptr[chunk.start]), int(support.colptr[chunk.stop])
        token = support.token[start:stop].long()
        local = support.colptr[chunk.start : chunk.stop + 1] - start

        def transposed_times(vector: Tensor, rows: Tensor) -> Tensor:
            return torch.nn.functional.embedding_bag(
                token, rows, local, mode="sum", per_sample_weights=vector[start:stop], include_last_offset=True
            )[features - chunk.start]

        g_enc = transposed_times(d_pre, update.x)
        g_dec = torch.zeros_like(g_enc)
        live = zip(update.values, update.residuals, update.scales, strict=False)
        for value, residual, scale in live:
            g_dec += transposed_times(value * scale, residual)
        self.given_rows(features, g_enc, g_dec, torch.ones_like(features, dtype=torch.bool), update, state, adam)

    def given_rows(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: Adam) -> None:  # fmt: skip
        rows, g_enc, g_dec = features[touched], g_enc[touched], g_dec[touched]
        w_enc, w_dec, old = state.p["W_enc"], state.p["W_dec"], state.p["W_dec"][rows]
        if update.shrink is not None:
            g_dec = g_dec + update.shrink[rows, None] * old / old.norm(dim=1, keepdim=True)
        if update.unit:
            g_dec = without_radial(g_dec, old)
        skipped = adam.t - state.last[rows]
        update_rows_(w_enc, state.v["W_enc"], g_enc, rows, skipped, adam)
        update_rows_(w_dec, state.v["W_dec"], g_dec, rows, skipped, adam)
        if update.unit:
            new = w_dec[rows]
            w_dec[rows] = new / new.norm(dim=1, keepdim=True)
        state.last[rows] = adam.t
        state.encoder_for(self).norms[rows] = w_enc[rows].norm(dim=1)


def chunks(width: int, rows: int) -> list[slice]:
    """Blocks of features of at most CHUNK entries each, for `rows` entries per feature."""
    size = max(1, CHUNK // max(1, rows))
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def joined(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(feature, token) of blocks of ascending features."""
    feature, token = (torch.cat(column) for column in zip(*found, strict=True))
    return feature, token
