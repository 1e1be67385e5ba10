"""The kernels compiled with numba for the CPU: same methods, same results as `plain.Plain`."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.cpu import loops
from jumpahead.engine.cpu.product import Product, choose
from jumpahead.engine.lazy_adam import Adam
from jumpahead.engine.plain import bias_slack, slack
from jumpahead.engine.step import Centred, Residual, RowUpdate, State, Support
from jumpahead.sae.base import DEAD, MAIN, Above, Selection

CHUNK = 2**23  # entries of one block of the encoder product: 32 MiB in float32


class Candidates(NamedTuple):
    """A superset of a support, token by token and by feature."""

    indptr: np.ndarray
    token: np.ndarray
    feature: np.ndarray
    pre: np.ndarray
    colptr: np.ndarray
    order: np.ndarray


@final
class Compiled:
    """Step 1 to 5 in numba; the encoder product in the fastest library that is exact enough here."""

    def __init__(self, product: Product | None = None):
        self.product = product or choose()
        self.name = f"numba, encoder product by {self.product.name}"
        self._slots: np.ndarray = np.empty((0, 0), np.int32)
        self._bounds: np.ndarray = np.empty((2, 0, 0), np.float32)
        self._block = torch.empty(0)

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        out, norms = torch.empty_like(x), torch.empty(len(x), dtype=x.dtype)
        loops.spread(loops.centre, len(x), x.numpy(), bias.numpy(), out.numpy(), norms.numpy())
        return Centred(out, norms)

    def support(self, x: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, selection: Selection) -> Support:
        if isinstance(selection, Above):
            return finished(self._above(x, w_enc, b_enc, norms, selection.lower))
        main = self._largest(x, w_enc, b_enc, norms, selection.k)
        if selection.dead is None:
            return finished(main)
        dead = selection.dead.nonzero()[:, 0]
        other = self._largest(x, w_enc[dead], b_enc[dead], norms[dead], selection.k_dead)
        return union(main, other, dead.numpy().astype(np.int32), len(w_enc))

    def _above(self, c: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, lower: Tensor) -> Candidates:
        x, row, column = c.x, c.norms, slack(c.x, norms)
        floor = lower - b_enc - bias_slack(b_enc) - bias_slack(torch.nan_to_num(lower, neginf=0.0))
        counts = np.zeros(len(x), np.int64)
        slots = self._room(len(x), 256)
        for start, block in self._blocks(x, w_enc):
            some = slice(start, start + block.shape[1])
            arguments = (floor[some].numpy(), row.numpy(), column[some].numpy())
            loops.spread(loops.append_above, len(x), block.numpy(), start, *arguments, slots, counts)
        if counts.max(initial=0) > slots.shape[1]:
            self._room(len(x), int(counts.max() * 1.25))
            return self._above(c, w_enc, b_enc, norms, lower)
        found = listed(slots, counts, x, w_enc, b_enc)
        keep = np.empty(len(found.pre), np.bool_)
        loops.spread(loops.mark_above, len(found.pre), found.pre, found.feature, lower.numpy(), keep)
        return compressed(found, keep)

    def _largest(self, c: Centred, w_enc: Tensor, b_enc: Tensor, norms: Tensor, k: int) -> Candidates:
        x, row, column = c.x, c.norms, slack(c.x, norms)
        extra = bias_slack(b_enc)
        counts, floors = np.zeros(len(x), np.int64), np.zeros(len(x), x.numpy().dtype)
        slots = self._room(len(x), max(4 * k, k + 64))
        lows, highs = self._margins(x, slots)
        for start, block in self._blocks(x, w_enc):
            some = slice(start, start + block.shape[1])
            arguments = (b_enc[some].numpy(), extra[some].numpy(), row.numpy(), column[some].numpy())
            found = (slots, lows, highs, counts, floors)
            loops.spread(loops.append_largest, len(x), block.numpy(), start, *arguments, k, *found)
        if counts.max(initial=0) > slots.shape[1]:
            self._room(len(x), 2 * slots.shape[1])
            return self._largest(c, w_enc, b_enc, norms, k)
        loops.spread(loops.prune_all, len(x), slots, lows, highs, counts, floors, k)
        found = listed(slots, counts, x, w_enc, b_enc)
        keep = np.empty(len(found.pre), np.bool_)
        loops.spread(loops.mark_largest, len(x), found.pre, found.indptr, k, keep)
        return compressed(found, keep)

    def _room(self, tokens: int, room: int) -> np.ndarray:
        """Slots [tokens, at least room]; kept from step to step, and never shrunk."""
        if self._slots.shape[0] < tokens or self._slots.shape[1] < room:
            self._slots = np.empty((tokens, max(room, self._slots.shape[1])), np.int32)
        return self._slots[:tokens]

    def _margins(self, x: Tensor, slots: np.ndarray) -> np.ndarray:
        """Lower and upper bounds beside the slots, [2, tokens, room]."""
        kind = x.numpy().dtype
        if self._bounds.shape[1] < len(slots) or self._bounds.shape[2] != slots.shape[1] or self._bounds.dtype != kind:
            self._bounds = np.empty((2, *slots.shape), kind)
        return self._bounds[:, : len(slots)]

    def _blocks(self, x: Tensor, w_enc: Tensor) -> Any:
        """The encoder product x·W_encᵀ in chunks of features: (first feature, [B, c])."""
        size = max(16, CHUNK // max(1, len(x)) // 16 * 16)
        if self._block.numel() < len(x) * min(size, len(w_enc)) or self._block.dtype != x.dtype:
            self._block = torch.empty(len(x) * min(size, len(w_enc)), dtype=x.dtype)
        with self.product.active():
            for start in range(0, len(w_enc), size):
                some = w_enc[start : start + size]
                block = self._block[: len(x) * len(some)].view(len(x), len(some))
                yield start, torch.mm(x, some.T, out=block)

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        out, squares = torch.empty_like(target), torch.empty(len(target), dtype=target.dtype)
        what = (support.indptr.numpy(), support.feature.numpy(), values.numpy(), w_dec.numpy(), bias.numpy())
        loops.spread(loops.decode, len(out), *what, target.numpy(), sign, out.numpy(), squares.numpy())
        return Residual(out, squares.double().sum().item())

    def project(self, support: Support, residual: Tensor, scale: float, w_dec: Tensor) -> Tensor:
        out = torch.empty_like(support.pre)
        where = (support.indptr.numpy(), support.feature.numpy())
        loops.spread(loops.project, len(residual), *where, residual.numpy(), w_dec.numpy(), scale, out.numpy())
        return out

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        out = torch.empty(len(support.colptr) - 1, dtype=vector.dtype)
        where = (support.colptr.numpy(), support.order.numpy())
        loops.spread(loops.sums, len(out), *where, vector.numpy(), out.numpy())
        return out

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> None:
        p, v = state.p, state.v
        shrink = update.shrink if update.shrink is not None else torch.empty(0, dtype=update.x.dtype)
        loops.spread(
            loops.rows, len(p["W_enc"]),
            support.colptr.numpy(), support.order.numpy(), support.token.numpy(),
            update.x.numpy(), update.d_pre.numpy(), stacked(update.values), stacked(update.residuals),
            np.array(update.scales, update.x.numpy().dtype),
            shrink.numpy(), update.unit,
            p["W_enc"].numpy(), p["W_dec"].numpy(), v["W_enc"].numpy(), v["W_dec"].numpy(),
            state.last.numpy(), state.norms.numpy(), adam.t, adam.lr, adam.beta2, adam.correction, adam.epsilon,
        )  # fmt: skip


def listed(slots: np.ndarray, counts: np.ndarray, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> Candidates:
    """Slots as vectors in both orders, with their canonical π."""
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    n = int(indptr[-1])
    token, feature = np.empty(n, np.int32), np.empty(n, np.int32)
    loops.spread(loops.flatten, len(x), slots, indptr, token, feature)
    colptr, order = np.empty(len(w_enc) + 1, np.int64), np.empty(n, np.int64)
    loops.by_feature(feature, colptr, order)
    pre = np.empty(n, x.numpy().dtype)
    loops.spread(loops.recompute, len(w_enc), x.numpy(), w_enc.numpy(), b_enc.numpy(), colptr, order, token, pre)
    return Candidates(indptr, token, feature, pre, colptr, order)


def compressed(found: Candidates, keep: np.ndarray) -> Candidates:
    """The candidates with `keep`."""
    if keep.all():
        return found
    n = loops.compress(keep, found.indptr, found.token, found.feature, found.pre, found.colptr, found.order)
    return found._replace(token=found.token[:n], feature=found.feature[:n], pre=found.pre[:n], order=found.order[:n])


def finished(found: Candidates, part: np.ndarray | None = None) -> Support:
    """As tensors, without copying."""
    t = torch.from_numpy
    return Support(
        t(found.indptr), t(found.token), t(found.feature), t(found.pre), None if part is None else t(part),
        t(found.colptr), t(found.order),
    )  # fmt: skip


def union(main: Candidates, other: Candidates, names: np.ndarray, width: int) -> Support:
    """One Support from main entries and entries among dead features (whose names are names[feature])."""
    most = len(main.pre) + len(other.pre)
    indptr = np.empty_like(main.indptr)
    token, feature = np.empty(most, np.int32), np.empty(most, np.int32)
    pre, part = np.empty(most, main.pre.dtype), np.empty(most, np.uint8)
    n = loops.merge(
        main.indptr, main.feature, main.pre, other.indptr, names[other.feature], other.pre, MAIN, DEAD,
        indptr, token, feature, pre, part,
    )  # fmt: skip
    colptr, order = np.empty(width + 1, np.int64), np.empty(n, np.int64)
    loops.by_feature(feature[:n], colptr, order)
    return finished(Candidates(indptr, token[:n], feature[:n], pre[:n], colptr, order), part[:n])


def stacked(tensors: tuple[Tensor, ...]) -> np.ndarray:
    """[r, …]; a view where there is one."""
    return tensors[0][None].numpy() if len(tensors) == 1 else torch.stack(tensors).numpy()
