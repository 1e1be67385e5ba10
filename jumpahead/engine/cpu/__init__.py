"""The kernels compiled with numba for the CPU: same methods, same decisions as `plain.Plain`.

    product.py   which library and precision computes the encoder product
    screen.py    step 1's loops: from a block of the product to the support
    walk.py      the loops of steps 3 and 5
    lanes.py     vector instructions that numba does not find by itself
    threads.py   running a loop over all cores

No loop knows an architecture.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.cpu import screen, walk
from jumpahead.engine.cpu.lanes import coarse
from jumpahead.engine.cpu.product import Product, choose, float32
from jumpahead.engine.cpu.threads import cuts, spread
from jumpahead.engine.decide import LOW_OUTPUT, bias_slack, low_slack, slack
from jumpahead.engine.lazy_adam import Adam
from jumpahead.engine.step import Centred, Encoder, Residual, Rows, RowUpdate, State
from jumpahead.engine.supports import Support
from jumpahead.sae.base import DEAD, MAIN, Above, Simple

CHUNK = 2**22
"""Entries of one block of the encoder product."""
MOST_LOST = 2.0**-8
"""The largest share of a row's norm that rounding to bfloat16 can take; also where the row is not finite."""
ROOM = 32
"""Places per feature that an arena starts with."""
GROUPS = 8
"""Groups per feature kept, for the bound of the k-th largest."""
BLOCK = 32
"""Features whose part of ∂L/∂b_dec is summed on its own: fixed, so that no sum depends on the number of threads."""


class Found(NamedTuple):
    """Entries feature by feature."""

    colptr: np.ndarray
    token: np.ndarray
    pre: np.ndarray


@final
class Compiled:
    """Steps 1, 3 and 5 in numba; the encoder product in the fastest library that is exact enough here."""

    def __init__(self, product: Product | None = None):
        self.screening = product or choose()
        """Computes the encoder product."""
        self.late = False
        self.name = f"numba, encoder product by {self.screening.name}"
        self.room = ROOM
        """Places per feature of an arena; grows where one overflows."""
        self._memory: dict[str, np.ndarray] = {}

    # ------------------------------------------------------------------------------------------ what is kept ready

    def _low(self, kind: torch.dtype) -> bool:
        """Whether the encoder product of this dtype is computed in bfloat16."""
        return self.screening.dtype == torch.bfloat16 and kind == torch.float32

    def array(self, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """Working memory, kept from step to step; not cleared."""
        size = int(np.prod(shape))
        have = self._memory.get(name)
        if have is None or len(have) < size or have.dtype != kind:
            self._memory[name] = have = np.empty(size, kind)
        return have[:size].reshape(shape)

    def encoder(self, w_enc: Tensor) -> Encoder:
        low, gaps = None, w_enc.new_empty(0)
        if self._low(w_enc.dtype):
            low, gaps = torch.empty_like(w_enc, dtype=torch.bfloat16), w_enc.new_empty(len(w_enc))
            spread(walk.round_rows, len(w_enc), w_enc.numpy(), bits(low), gaps.numpy())
        return Encoder(w_enc, w_enc.norm(dim=1), low, gaps, self.name)

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        out, norms = torch.empty_like(x), torch.empty(len(x), dtype=x.dtype)
        spread(walk.centre, len(x), x.numpy(), bias.numpy(), out.numpy(), norms.numpy())
        if not self._low(x.dtype):
            return Centred(out, norms)
        low, gaps = torch.empty_like(x, dtype=torch.bfloat16), torch.empty_like(norms)
        spread(walk.round_rows, len(x), out.numpy(), bits(low), gaps.numpy())
        largest = (gaps / norms.clamp_min(1e-30)).amax().item() if len(x) else 0.0
        return Centred(out, norms, low, largest if largest < MOST_LOST else MOST_LOST)

    # ------------------------------------------------------------------------------------------ step 1

    def support(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Simple) -> Support:
        if isinstance(selection, Above):
            return finished(self._above(x, encoder, b_enc, selection.lower), len(x.x))
        races = [Race(self, "main", selection.k, None, x, encoder, b_enc)]
        if selection.dead is not None:
            races.append(Race(self, "dead", selection.k_dead, selection.dead, x, encoder, b_enc))
        for start, block in self._blocks(x, encoder):
            for race in races:
                race.see(start, block)
        main, *dead = [race.finish() for race in races]
        return union(main, dead[0], len(x.x)) if dead else finished(main, len(x.x))

    def columns(self, x: Centred, encoder: Encoder) -> Tensor:
        """How far the product can be off, per unit of ‖x_i‖: [M]. Rounding of its output is not in it."""
        if encoder.low is None:
            return slack(x.x, encoder.norms)
        return low_slack(x.x.shape[1], encoder.norms, encoder.gaps, x.gap)

    def _above(self, x: Centred, encoder: Encoder, b_enc: Tensor, lower: Tensor) -> Found:
        columns = self.columns(x, encoder)
        floor = lower - b_enc - bias_slack(b_enc) - bias_slack(torch.nan_to_num(lower, neginf=0.0, posinf=0.0))
        if encoder.low is not None:  # the product is compared as it was written, rounded
            columns = columns * (1 + LOW_OUTPUT)
            floor = torch.where(floor.isinf(), floor, floor - floor.abs() * LOW_OUTPUT)
        lowest = floor - (x.norms.max() if len(x.norms) else 0.0) * columns
        idle = (lower == torch.inf).numpy()
        counts = np.zeros(len(lower), np.int64)
        arena = Arena(self, "above", x.x.numpy().dtype)
        for start, block in self._blocks(x, encoder, idle):
            arena.fill(
                screen.screen_above, start, len(block), counts,
                block, start, coarse(lowest[start : start + len(block)].numpy(), block.dtype),
                floor.numpy(), columns.numpy(), x.norms.numpy(),
                x.x.numpy(), encoder.w.numpy(), b_enc.numpy(), lower.numpy(),
            )  # fmt: skip
        return arena.found(counts)

    def _blocks(self, x: Centred, encoder: Encoder, idle: np.ndarray | None = None) -> Any:
        """The product W_enc·xᵀ, a block of features at a time: (first feature, [features, B]); bfloat16 as int16.

        Blocks of features that are all idle are left out.
        """
        width, tokens = len(encoder.w), len(x.x)
        size = max(64, CHUNK // max(1, tokens) // 64 * 64)
        rows, columns = (encoder.w, x.x.T) if encoder.low is None or x.low is None else (encoder.low, x.low.T)
        kind = np.int16 if rows.dtype == torch.bfloat16 else x.x.numpy().dtype
        with self.screening.active():
            for start in range(0, width, size):
                if idle is not None and idle[start : start + size].all():
                    continue
                some = rows[start : start + size]
                block = self.array("product", (len(some), tokens), kind)
                out = torch.from_numpy(block)
                torch.mm(some, columns, out=out.view(torch.bfloat16) if kind == np.int16 else out)
                yield start, block

    def canonical(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
        out = torch.empty(len(token), dtype=x.dtype)
        arrays = (tensor.numpy() for tensor in (x, w_enc, b_enc, token, feature, out))
        spread(screen.canonical_at, len(token), *arrays)
        return out

    def settle(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        row, token = unsure.nonzero(as_tuple=True)
        pre[row, token] = self.canonical(x, w_enc, b_enc, token, group[row])

    # ------------------------------------------------------------------------------------------ products

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        with float32().active():
            return torch.mm(a, b)

    def kth(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        low, high = torch.zeros(values.shape[1], dtype=values.dtype), torch.empty(values.shape[1], dtype=values.dtype)
        spread(screen.bracket, values.shape[1], values.numpy(), k, low.numpy(), high.numpy())
        return low, high

    # ------------------------------------------------------------------------------------------ steps 3 and 5

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        out, squares = torch.empty_like(target), np.empty(len(target))
        what = (support.indptr, support.order, support.feature, values, w_dec, bias, target)
        spread(walk.decode, len(out), *(one.numpy() for one in what), sign, out.numpy(), squares)
        return Residual(out, torch.tensor(squares.sum()))

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        out = torch.empty(len(support.colptr) - 1, dtype=vector.dtype)
        spread(walk.sums, len(out), support.colptr.numpy(), vector.numpy(), out.numpy())
        return out

    def active(self, support: Support, on: Tensor) -> Tensor:
        return torch.bincount(support.token[on], minlength=len(support.indptr) - 1).to(support.pre.dtype)

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> Rows:
        width, kind = len(support.colptr) - 1, update.x.numpy().dtype
        projections = tuple(torch.empty_like(support.pre) for _ in update.residuals)
        blocks = -(-width // BLOCK)
        pull = self.array("pull", (blocks, update.x.shape[1]), kind)
        pull[:] = 0
        frozen = (np.empty(0, kind),) * (len(update.residuals) - len(update.values))
        values = (*arrays(update.values), *frozen)
        constant = np.empty(0, kind) if update.constant is None else update.constant.numpy()
        spread(
            walk.rows, blocks, BLOCK, support.colptr.numpy(), support.token.numpy(), update.x.numpy(),
            arrays(update.slopes), constant, values, len(update.values),
            arrays(update.residuals), np.array(update.scales, kind), np.array(update.spare),
            *self._weights(update, state, adam), arrays(projections), pull,
        )  # fmt: skip
        return Rows(projections, torch.from_numpy(pull.sum(0)))

    def given_rows(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: Adam) -> None:  # fmt: skip
        given = (one.numpy() for one in (features, g_enc, g_dec, touched))
        spread(walk.given_rows, len(features), *given, *self._weights(update, state, adam))

    def _weights(self, update: RowUpdate, state: State, adam: Adam) -> tuple[Any, ...]:
        """What `walk._move` needs."""
        p, v, encoder = state.p, state.v, state.encoder_for(self)
        kind = update.x.numpy().dtype
        shrink = np.empty(0, kind) if update.shrink is None else update.shrink.numpy()
        low = np.empty((0, 0), np.int16) if encoder.low is None else bits(encoder.low)
        return (
            shrink, update.unit,
            p["W_enc"].numpy(), p["W_dec"].numpy(), v["W_enc"].numpy(), v["W_dec"].numpy(),
            state.last.numpy(), encoder.norms.numpy(), low, encoder.gaps.numpy(),
            (adam.t, adam.lr, adam.beta2, adam.correction, adam.epsilon),
        )  # fmt: skip


@final
class Arena:
    """Entries of blocks, collected feature by feature; see screen.py."""

    def __init__(self, layer: Compiled, name: str, kind: Any):
        self._layer, self._name, self._kind = layer, name, kind
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def fill(self, loop: Any, start: int, size: int, counts: np.ndarray, *arguments: Any) -> None:
        """Run a screening loop over the block of `size` features from `start`; again with more room if it overflows."""
        ranges = cuts(size, 16)
        while True:
            room = self._layer.room
            tokens = self._layer.array(f"{self._name} tokens", (size * room,), np.int32)
            values = self._layer.array(f"{self._name} values", (size * room,), self._kind)
            spread(loop, ranges, *arguments, room, tokens, values, counts)
            used = [int(counts[start + a : start + b].sum()) for a, b in ranges]
            if all(n <= (b - a) * room for n, (a, b) in zip(used, ranges, strict=True)):
                break
            self._layer.room = 1 + max(-(-n // (b - a)) for n, (a, b) in zip(used, ranges, strict=True)) * 5 // 4
        for n, (a, _) in zip(used, ranges, strict=True):
            some = slice(a * room, a * room + n)
            self._parts.append((tokens[some].copy(), values[some].copy()))

    def found(self, counts: np.ndarray) -> Found:
        """All of them."""
        colptr = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=colptr[1:])
        if not self._parts:
            return Found(colptr, np.empty(0, np.int32), np.empty(0, self._kind))
        tokens, values = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return Found(colptr, tokens, values)


@final
class Race:
    """The k largest positive π of each token, among all features or some (`members`, bool [M])."""

    def __init__(self, layer: Compiled, name: str, k: int, members: Tensor | None, x: Centred, encoder: Encoder,
                 b_enc: Tensor):  # fmt: skip
        kind, tokens = x.x.numpy().dtype, len(x.x)
        self._k, self._x, self._encoder, self._b_enc = k, x, encoder, b_enc
        self._bounds = (
            kind.type(0.0 if encoder.low is None else LOW_OUTPUT), b_enc.numpy(), bias_slack(b_enc).numpy(),
            layer.columns(x, encoder).numpy(), x.norms.numpy(),
            np.ones(len(b_enc), np.bool_) if members is None else members.numpy(),
        )  # fmt: skip
        self._arena = Arena(layer, name, kind)
        groups = 64
        while groups < GROUPS * k:
            groups *= 2
        self._best = layer.array(f"{name} best", (groups, tokens), kind)
        self._best[:] = -np.inf
        self._floors = np.zeros(tokens, kind)
        self._counts = np.zeros(len(b_enc), np.int64)
        self._seen = 0

    def see(self, start: int, block: np.ndarray) -> None:
        """Screen one block of the product."""
        spread(screen.group_maxima, len(self._best), block, start, *self._bounds, self._best)
        self._seen += 1
        if self._seen & (self._seen - 1) == 0:  # after 1, 2, 4, … blocks: later ones raise the floors little
            self._raise_floors()
        arguments = (block, start, *self._bounds, self._floors)
        self._arena.fill(screen.screen_largest, start, len(block), self._counts, *arguments)

    def _raise_floors(self) -> None:
        spread(screen.bracket, len(self._floors), self._best, self._k, self._floors, np.empty_like(self._floors))

    def finish(self) -> Found:
        """The exact selection among the candidates."""
        self._raise_floors()
        colptr, token, upper = self._arena.found(self._counts)
        n = screen.thin(colptr, token, upper, self._floors)
        token, pre = token[:n], upper[:n]
        x, b_enc = self._x.x, self._b_enc
        weights = (x.numpy(), self._encoder.w.numpy(), b_enc.numpy())
        spread(screen.recompute, len(b_enc), *weights, colptr, token, pre)
        indptr, order = by_token(token, len(x))
        keep = np.empty(n, np.bool_)
        spread(screen.mark_largest, len(x), indptr, order, pre, self._k, keep)
        n = screen.kept_only(keep, colptr, token, pre)
        return Found(colptr, token[:n], pre[:n])


def bits(low: Tensor) -> np.ndarray:
    """A bfloat16 tensor as int16."""
    return low.view(torch.int16).numpy()


def arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    """Without copying."""
    return tuple(tensor.numpy() for tensor in tensors)


def by_token(token: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """indptr [B + 1] and order [n]: a counting sort, stable, in pieces."""
    ranges = cuts(len(token), torch.get_num_threads())
    counts = np.zeros((len(ranges), tokens), np.int64)
    pieces = [(piece, piece + 1) for piece in range(len(ranges))]
    starts = np.array([start for start, _ in ranges] + [len(token)], np.int64)
    spread(screen.count_tokens, pieces, starts, token, counts)
    indptr = np.zeros(tokens + 1, np.int64)
    np.cumsum(counts.sum(0), out=indptr[1:])
    place = indptr[:-1] + np.cumsum(counts, 0) - counts
    order = np.empty(len(token), np.int32)
    spread(screen.by_token, pieces, starts, token, place, order)
    return indptr, order


def finished(found: Found, tokens: int, part: np.ndarray | None = None) -> Support:
    """With the other order, as tensors."""
    feature = np.empty(len(found.token), np.int32)
    spread(screen.feature_of, len(found.colptr) - 1, found.colptr, feature)
    indptr, order = by_token(found.token, tokens)
    t = torch.from_numpy
    return Support(
        t(found.colptr), t(found.token), t(feature), t(found.pre), None if part is None else t(part),
        t(indptr), t(order),
    )  # fmt: skip


def union(main: Found, other: Found, tokens: int) -> Support:
    """One Support from main entries and entries among dead features."""
    most = len(main.pre) + len(other.pre)
    colptr, token = np.empty_like(main.colptr), np.empty(most, np.int32)
    pre, part = np.empty(most, main.pre.dtype), np.empty(most, np.uint8)
    n = screen.merge(*main, *other, MAIN, DEAD, colptr, token, pre, part)
    return finished(Found(colptr, token[:n], pre[:n]), tokens, part[:n])
