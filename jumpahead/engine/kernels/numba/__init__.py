"""The kernels compiled with numba for the CPU: same methods, same decisions as `plain.Plain`.

    product.py   which library and precision computes the encoder product
    screen.py    step 1's loops: from a block of the product to the support
    walk.py      the loops of steps 3 and 5
    lanes.py     vector instructions that numba does not find by itself
    threads.py   running a loop over all cores

No loop knows an architecture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.decide import LOW_OUTPUT, bias_slack, low_slack, slack
from jumpahead.engine.kernels.numba import screen, sparse_ops
from jumpahead.engine.kernels.numba.product import Product, choose, float32
from jumpahead.engine.kernels.numba.simd import coarse
from jumpahead.engine.kernels.numba.threads import cuts, each, spread
from jumpahead.engine.lazy_adam import Adam
from jumpahead.engine.step import Centred, Encoder, Item, Residual, Rows, RowUpdate, State
from jumpahead.engine.supports import Support
from jumpahead.sae.base import DEAD, MAIN, Above, Affine, Entries, Simple

CHUNK = 2**20
"""Entries of one block of the encoder product: what a thread makes and looks at in one go."""
MOST_LOST = 2.0**-8
"""The largest share of a row's norm that rounding to bfloat16 can take; also where the row is not finite."""
ROOM = 32
"""Places per feature that an arena starts with."""
GROUPS = 8
"""Groups per feature kept, for the bound of the k-th largest."""
LIGHT = 2**18
"""Entries from which on a loop of a few operations per entry is worth waking other threads for."""
IDLE = 1.25
"""SAEs are trained side by side, a thread each, where threads × turns are at most so many times the SAEs: some threads
wait in the last turn, and a step on all threads is no faster than this."""
BLOCK = 32
"""Features whose part of ∂L/∂b_dec is summed on its own: fixed, so that no sum depends on the number of threads."""


Look = Callable[[int, int, np.ndarray], None]
"""Takes the number of a worker, the first feature, and their product [features, B]: floats, or bfloat16 as int16."""


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
        self.exact = float32()
        """Computes all others: whichever screens, their bits are the same."""
        self.late = False
        self.name = f"numba, encoder product by {self.screening.name}"
        self.room = ROOM
        """Places per feature of an arena; grows where one overflows."""
        self._memory = threading.local()

    # ------------------------------------------------------------------------------------------ what is kept ready

    def _low(self, kind: torch.dtype) -> bool:
        """Whether the encoder product of this dtype is computed in bfloat16."""
        return self.screening.dtype == torch.bfloat16 and kind == torch.float32

    def array(self, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """Working memory of this thread, kept from step to step; not cleared."""
        size, mine = int(np.prod(shape)), self._memory.__dict__
        have = mine.get(name)
        if have is None or len(have) < size or have.dtype != kind:
            mine[name] = have = np.empty(size, kind)
        return have[:size].reshape(shape)

    def encoder(self, w_enc: Tensor) -> Encoder:
        low, gaps = None, w_enc.new_empty(0)
        if self._low(w_enc.dtype):
            low, gaps = torch.empty_like(w_enc, dtype=torch.bfloat16), w_enc.new_empty(len(w_enc))
            spread(sparse_ops.round_rows, len(w_enc), w_enc.numpy(), bits(low), gaps.numpy())
        return Encoder(w_enc, w_enc.norm(dim=1), low, gaps, self.name)

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        is_low, out, norms = self._low(x.dtype), torch.empty_like(x), x.new_empty(len(x))
        low = x.new_empty(x.shape if is_low else (0, 0), dtype=torch.bfloat16)
        gaps = torch.empty_like(norms if is_low else norms[:0])
        arrays_of = (one.numpy() for one in (x, bias, out, norms))
        spread(sparse_ops.centre, len(x), *arrays_of, bits(low), gaps.numpy())
        if not is_low:
            return Centred(out, norms)
        largest = (gaps / norms.clamp_min(1e-30)).amax().item() if len(x) else 0.0
        return Centred(out, norms, low, largest if largest < MOST_LOST else MOST_LOST)

    # ------------------------------------------------------------------------------------------ step 1

    def support(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Simple) -> Support:
        if isinstance(selection, Above):
            return finished(self._above(x, encoder, b_enc, selection.lower), len(x.x))
        races = [Race(self, "main", selection.k, None, x, encoder, b_enc)]
        if selection.dead is not None:
            races.append(Race(self, "dead", selection.k_dead, selection.dead, x, encoder, b_enc))

        def look(worker: int, start: int, block: np.ndarray) -> None:
            for race in races:
                race.see(worker, start, block)

        self._each_block(x, encoder, look)
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
        arena = Arena(self, x.x.numpy().dtype, len(lower))
        bounds = (floor.numpy(), columns.numpy(), x.norms.numpy())
        weights = (x.x.numpy(), encoder.w.numpy(), b_enc.numpy(), lower.numpy())

        def look(_: int, start: int, block: np.ndarray) -> None:
            lowest_here = coarse(lowest[start : start + len(block)].numpy(), block.dtype)
            arena.fill(screen.screen_above, block, start, lowest_here, *bounds, *weights)

        self._each_block(x, encoder, look, idle)
        return arena.found()

    def _each_block(self, x: Centred, encoder: Encoder, look: Look, idle: np.ndarray | None = None) -> None:
        """The product W_enc·xᵀ, a block of features at a time; blocks of features that are all idle are left out.

        A thread looks at the block that it made itself, while it is in its cache.
        """
        width, tokens = len(encoder.w), len(x.x)
        fair = -(-width // torch.get_num_threads())
        size = max(64, min(CHUNK // max(1, tokens), fair) // 64 * 64)
        starts = [s for s in range(0, width, size) if idle is None or not idle[s : s + size].all()]
        rows, columns = (encoder.w, x.x.T) if encoder.low is None or x.low is None else (encoder.low, x.low.T)
        kind = np.int16 if rows.dtype == torch.bfloat16 else x.x.numpy().dtype

        def work(worker: int, start: int) -> None:
            some = rows[start : start + size]
            block = self.array("product", (len(some), tokens), kind)
            out = torch.from_numpy(block)
            torch.mm(some, columns, out=out.view(torch.bfloat16) if kind == np.int16 else out)
            look(worker, start, block)

        with self.screening.active():
            each(starts, work)

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
        with self.exact.active():
            return torch.mm(a, b)

    def at_once(self, items: int) -> int:
        threads = torch.get_num_threads()
        is_one_setting = self.screening.precision in (None, self.exact.precision)  # it is the process's
        return threads if is_one_setting and threads * -(-items // threads) <= IDLE * items else 1

    def side_by_side(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        if self.at_once(len(items)) == 1:
            for item in items:
                work(item)
            return
        with self.exact.active():
            each(items, lambda _, item: work(item))

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
        spread(sparse_ops.decode, len(out), *(one.numpy() for one in what), sign, out.numpy(), squares)
        return Residual(out, torch.tensor(squares.sum()))

    def entries(self, support: Support) -> Entries:
        return Entries(support.pre, support.feature, support.part, support.token, ByFeature(support))

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        return per_feature(sparse_ops.sums, support, vector.numpy())

    def fired(self, support: Support, values: Tensor) -> Tensor:
        return per_feature(sparse_ops.fired, support, values.numpy())

    def summed(self, support: Support, gradient: Affine, projections: tuple[Tensor, ...]) -> Tensor:
        terms = [(s, p) for s, p in zip(gradient.slopes, projections, strict=True) if s is not None]
        if not terms:
            assert gradient.constant is not None, "a gradient of nothing"
            return self.sums(support, gradient.constant)
        slopes, along = (arrays(column) for column in zip(*terms, strict=True))
        return per_feature(sparse_ops.summed, support, slopes, along, given(gradient.constant, along[0].dtype))

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
        spread(
            sparse_ops.rows, blocks, BLOCK, support.colptr.numpy(), support.token.numpy(), update.x.numpy(),
            arrays(update.slopes), given(update.constant, kind), values, len(update.values),
            arrays(update.residuals), np.array(update.scales, kind), np.array(update.spare),
            *self._weights(update, state, adam), arrays(projections), pull,
        )  # fmt: skip
        return Rows(projections, torch.from_numpy(pull.sum(0)))

    def given_rows(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: Adam) -> None:  # fmt: skip
        given = (one.numpy() for one in (features, g_enc, g_dec, touched))
        spread(sparse_ops.given_rows, len(features), *given, *self._weights(update, state, adam))

    def _weights(self, update: RowUpdate, state: State, adam: Adam) -> tuple[Any, ...]:
        """What `walk._move` needs."""
        p, v, encoder = state.p, state.v, state.encoder_for(self)
        kind = update.x.numpy().dtype
        low = np.empty((0, 0), np.int16) if encoder.low is None else bits(encoder.low)
        return (
            given(update.shrink, kind), update.unit,
            p["W_enc"].numpy(), p["W_dec"].numpy(), v["W_enc"].numpy(), v["W_dec"].numpy(),
            state.last.numpy(), encoder.norms.numpy(), low, encoder.gaps.numpy(),
            (adam.t, adam.lr, adam.beta2, adam.correction, adam.epsilon),
        )  # fmt: skip


@final
class ByFeature:
    """`base.Loops` over a support."""

    def __init__(self, support: Support):
        self._support = support

    def at(self, vector: Tensor) -> Tensor:
        out = vector.new_empty(self._support.pre.shape)
        light(sparse_ops.at, self._support, vector.numpy(), out.numpy())
        return out

    def between(self, low: Tensor, high: Tensor | None, weight: Tensor | None) -> Tensor:
        pre = self._support.pre.numpy()
        out, ends = np.empty_like(pre), (given(high, pre.dtype), given(weight, pre.dtype))
        light(sparse_ops.between, self._support, pre, low.numpy(), *ends, out)
        return torch.from_numpy(out)


def light(loop: Any, support: Support, *arguments: Any) -> None:
    """Run a loop over features that does a few operations per entry: other cores are woken up only where that pays."""
    width = len(support.colptr) - 1
    if len(support.pre) < LIGHT:
        loop(0, width, support.colptr.numpy(), *arguments)
    else:
        spread(loop, width, support.colptr.numpy(), *arguments)


def per_feature(loop: Any, support: Support, *arguments: Any) -> Tensor:
    """A number per feature, [M], in π's dtype."""
    out = support.pre.new_empty(len(support.colptr) - 1)
    light(loop, support, *arguments, out.numpy())
    return out


def given(tensor: Tensor | None, kind: Any) -> np.ndarray:
    """As an array; empty where there is none."""
    return np.empty(0, kind) if tensor is None else tensor.numpy()


@final
class Arena:
    """Entries of blocks, collected feature by feature; see screen.py."""

    def __init__(self, layer: Compiled, kind: Any, width: int):
        self._layer, self._kind = layer, kind
        self._counts = np.zeros(width, np.int64)
        self._parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def fill(self, loop: Any, block: np.ndarray, start: int, *arguments: Any) -> None:
        """Run a screening loop over the block of features from `start`; again with more room if it overflows."""
        size = len(block)
        while True:
            room = self._layer.room
            tokens = self._layer.array("tokens", (size * room,), np.int32)
            values = self._layer.array("values", (size * room,), self._kind)
            loop(block, start, *arguments, tokens, values, self._counts)
            used = int(self._counts[start : start + size].sum())
            if used <= size * room:
                break
            self._layer.room = 1 + -(-used // size) * 5 // 4
        self._parts[start] = tokens[:used].copy(), values[:used].copy()

    def found(self) -> Found:
        """All of them."""
        colptr = pointers(self._counts)
        if not self._parts:
            return Found(colptr, np.empty(0, np.int32), np.empty(0, self._kind))
        parts = [self._parts[start] for start in sorted(self._parts)]
        tokens, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Found(colptr, tokens, values)


@final
class Race:
    """The k largest positive π of each token, among all features or some (`members`, bool [M])."""

    def __init__(self, layer: Compiled, name: str, k: int, members: Tensor | None, x: Centred, encoder: Encoder,
                 b_enc: Tensor):  # fmt: skip
        kind, tokens = x.x.numpy().dtype, len(x.x)
        groups, group = parted(len(b_enc), members, max(64, GROUPS * k))
        self._k, self._x, self._encoder, self._b_enc = k, x, encoder, b_enc
        self._bounds = (
            kind.type(0.0 if encoder.low is None else LOW_OUTPUT), b_enc.numpy(), bias_slack(b_enc).numpy(),
            layer.columns(x, encoder).numpy(), x.norms.numpy(),
            group,
        )  # fmt: skip
        self._arena = Arena(layer, kind, len(b_enc))
        self._best = layer.array(f"{name} best", (groups, tokens), kind)
        self._best[:] = -np.inf
        self._floors = np.zeros(tokens, kind)
        self._seen = [0] * torch.get_num_threads()

    def see(self, worker: int, start: int, block: np.ndarray) -> None:
        """Screen one block of the product. Other workers write the same maxima: what is read at any time is a lower
        bound, and what is lost where two write at once makes a floor a little lower."""
        screen.group_maxima(block, start, *self._bounds, self._best)
        self._seen[worker] += 1
        if self._seen[worker] & (self._seen[worker] - 1) == 0:  # after 1, 2, 4, … blocks: later ones raise them little
            screen.bracket(0, len(self._floors), self._best, self._k, self._floors, np.empty_like(self._floors))
        self._arena.fill(screen.screen_largest, block, start, *self._bounds, self._floors)

    def finish(self) -> Found:
        """The exact selection among the candidates."""
        tokens = len(self._floors)
        spread(screen.bracket, tokens, self._best, self._k, self._floors, np.empty_like(self._floors))
        found = self._arena.found()
        keep = np.empty(len(found.token), np.bool_)
        spread(screen.mark_reaching, len(keep), found.token, found.pre, self._floors, keep)
        found = kept_only(found, keep)
        weights = (self._x.x.numpy(), self._encoder.w.numpy(), self._b_enc.numpy())
        spread(screen.recompute, len(self._b_enc), *weights, *found)
        keep = np.empty(len(found.token), np.bool_)
        spread(screen.mark_largest, tokens, *by_token(found.token, tokens), found.pre, self._k, keep)
        return kept_only(found, keep)


def parted(width: int, members: Tensor | None, most: int) -> tuple[int, np.ndarray]:
    """All features, or `members` (bool [M]), in at most so many groups of features that follow each other: how many,
    and the group of each feature, −1 for those that are in none."""
    chosen = np.arange(width) if members is None else members.numpy().nonzero()[0]
    groups, group = min(most, len(chosen)), np.full(width, -1, np.int64)
    group[chosen] = np.arange(len(chosen)) * groups // max(1, len(chosen))
    return groups, group


def kept_only(found: Found, keep: np.ndarray) -> Found:
    """The entries with `keep`."""
    counts = np.empty(len(found.colptr) - 1, np.int64)
    spread(screen.count_kept, len(counts), found.colptr, keep, counts)
    colptr = pointers(counts)
    token, pre = np.empty(colptr[-1], found.token.dtype), np.empty(colptr[-1], found.pre.dtype)
    spread(screen.copy_kept, len(counts), *found, keep, colptr, token, pre)
    return Found(colptr, token, pre)


def pointers(counts: np.ndarray) -> np.ndarray:
    """Where each stretch begins, and the end: [n + 1] int64."""
    found = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=found[1:])
    return found


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
    indptr = pointers(counts.sum(0))
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
    counts = np.empty(len(main.colptr) - 1, np.int64)
    spread(screen.count_union, len(counts), *main[:2], *other[:2], counts)
    colptr = pointers(counts)
    found = Found(colptr, np.empty(colptr[-1], np.int32), np.empty(colptr[-1], main.pre.dtype))
    part = np.empty(colptr[-1], np.uint8)
    spread(screen.merge, len(counts), *main, *other, MAIN, DEAD, *found, part)
    return finished(found, tokens, part)
