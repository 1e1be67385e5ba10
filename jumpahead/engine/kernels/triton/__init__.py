"""The kernels for a GPU, in Triton: same methods, same decisions as `plain.Plain`.

    screen.py    step 1's kernels: from a block of the encoder product to the support
    walk.py      the kernels of steps 3 and 5

The encoder product is the vendor library's, in bfloat16 where x is float32: it only screens (decide.low_slack), and π
of every entry that could matter is computed again in float64. No kernel knows an architecture. In Triton's interpreter
(TRITON_INTERPRET=1) the same kernels run on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import torch
import triton  # pyright: ignore[reportMissingImports] — not installed with jumpahead
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from jumpahead.engine.async_step import Demand
from jumpahead.engine.batch_topk import AGAIN, BELOW, GUESSES, Selected
from jumpahead.engine.decide import LOW_OUTPUT, bias_slack, is_exact, largest_of_each, low_slack, slack
from jumpahead.engine.kernels.base import Ordinary
from jumpahead.engine.kernels.triton import screen, sparse_ops
from jumpahead.engine.lazy_adam import Adam
from jumpahead.engine.step import Centred, Encoder, Residual, Rows, RowUpdate, State
from jumpahead.engine.supports import PADDING, Support, trimmed
from jumpahead.sae.base import DEAD, MAIN, Above, Largest, LargestOfBatch, Number, Simple

CHUNK = 2**24
"""Entries of one block of the encoder product: 32 MiB in bfloat16, which stay in the L2 cache of a large card."""
KEPT = 2**29
"""Entries of the product that are kept until the k-th largest of their tokens are bounded: 1 GiB in bfloat16."""
TILE = 1024
"""Tokens, at most, that a program looks at at a time."""
MARKED = 4
"""Features per program that marks entries."""
REGISTERS = 128
"""Per thread of the kernels that hold whole rows, 16 of a row's numbers each: so that at 2048 < d ≤ 4096 two features
are under way on a multiprocessor, not one. Three reconstructions and more take all there are."""
MOST_LOST = 2.0**-8
"""The largest share of a row's norm that rounding to bfloat16 can take; also where the row is not finite."""
ROOM = 64
"""Candidates per token that there is room for at first."""
STEP = 2**10
"""Room is made in multiples of this."""
GROUPS = 4
"""Groups per feature kept, at least, for the bound of the k-th largest."""
BISECTIONS = 16
LONG = 128
"""Entries of a feature that one program walks through; longer ones are cut."""
FEATURES = 8
"""Features per program of `walk.rows`."""


class Found(NamedTuple):
    """Entries feature by feature, in arrays with room to spare."""

    colptr: Tensor
    """[M + 1] int64."""
    token: Tensor
    """[room] int32."""
    feature: Tensor
    """[room] int32."""
    pre: Tensor
    """[room] π."""

    @property
    def number(self) -> Tensor:
        """[1] int64: how many there are."""
        return self.colptr[-1:]

    def valid(self) -> Tensor:
        """bool [room]: which places are taken."""
        return torch.arange(len(self.token), device=self.token.device) < self.number


@final
class Triton(Ordinary):
    """Steps 1, 3 and 5 in Triton; the encoder product in the vendor's library.

    late: whether steps are launched without waiting for the device (late.py). Where not, `support` makes the room it
    needs at once, and returns no padding.
    """

    def __init__(self, device: torch.device | str = "cuda", *, late: bool = False):
        self.device, self.late = torch.device(device), late
        self.low = is_exact(torch.mm, torch.bfloat16, self.device)
        """Whether the encoder product of float32 is computed in bfloat16."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "an interpreter"
        self.name = f"Triton on {where}, encoder product in {'bfloat16' if self.low else 'float32'}"
        self.demands: list[Demand] = []
        self._rooms: Any = WeakTensorKeyDictionary()
        """Candidates that there is room for, by W_enc."""
        self._cautions: Any = WeakTensorKeyDictionary()
        """How often the guess of a `LargestOfBatch` was too high and is halved, by W_enc."""
        self._fine = torch.ones(1, dtype=torch.int32, device=self.device)
        self._constants: tuple[Adam, torch.dtype, Tensor] | None = None

    # ------------------------------------------------------------------------------------------ what is kept ready

    def encoder(self, w_enc: Tensor) -> Encoder:
        norms, low, gaps = self._rounding_of(w_enc)
        block = power(w_enc.shape[1])
        if len(w_enc):
            sparse_ops.round_rows[(len(w_enc),)](
                w_enc, norms, bits(low), gaps, w_enc.shape[1], LOW=at_a_time(low), BLOCK=block, num_warps=warps(block)
            )
        return Encoder(w_enc, norms, low, gaps, self.name)

    def centre(self, x: Tensor, bias: Tensor) -> Centred:
        out, block = torch.empty_like(x), power(x.shape[1])
        norms, low, gaps = self._rounding_of(x)
        if len(x):
            sparse_ops.centre[(len(x),)](
                x.contiguous(), bias, out, norms, bits(low), gaps, x.shape[1], LOW=at_a_time(low), BLOCK=block,
                num_warps=warps(block),
            )  # fmt: skip
        if low is None or not len(x):
            return Centred(out, norms, low)
        lost = (gaps / norms.clamp_min(1e-30)).amax()
        return Centred(out, norms, low, torch.where(lost < MOST_LOST, lost, MOST_LOST))

    def _rounding_of(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Places for norms, bfloat16 copies and their gaps."""
        low = self.low and rows.dtype == torch.float32
        copies = torch.empty_like(rows, dtype=torch.bfloat16, memory_format=torch.contiguous_format) if low else None
        return rows.new_empty(len(rows)), copies, rows.new_empty(len(rows) if low else 0)

    # ------------------------------------------------------------------------------------------ step 1

    def support(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Simple) -> Support:
        while True:
            room = self._room(encoder.w, x)
            if isinstance(selection, Above):
                found, needed = self._above(x, encoder, b_enc, selection.lower, room)
                part = None
            else:
                found, part, needed, _ = self._largest(x, encoder, b_enc, selection, room)
            if self.late:
                self.demands.append(Demand(encoder.w, room, needed, torch.zeros_like(needed, dtype=torch.bool)))
                return finished(found, part, len(x.x))
            most = int(needed)
            self.note(encoder.w, most, short=False)
            if most <= room:
                return trimmed(finished(found, part, len(x.x)))

    def largest_of_batch(self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: LargestOfBatch) -> Selected:
        room, halvings = self._room(encoder.w, x), self._cautions.get(encoder.w, 0)
        guess = torch.as_tensor(selection.guess, dtype=b_enc.dtype, device=self.device)
        wise = (guess > 0) & (guess < torch.inf) & (halvings < GUESSES)
        floor = torch.where(wise, guess * (BELOW * AGAIN**halvings), 0.0)
        found, part, needed, main = self._largest(x, encoder, b_enc, selection, room, floor)
        enough = (main >= floor).sum().reshape(1) >= selection.count(len(x.x))
        self.demands.append(Demand(encoder.w, room, needed, ~enough & (floor > 0)))
        selected = found.pre if part is None else torch.where((part & MAIN) != 0, found.pre, PADDING)
        least = torch.where(selected > PADDING, selected, torch.inf).amin().double()
        return Selected(finished(found, part, len(x.x)), torch.where(least < torch.inf, least, guess.double()))

    def note(self, w: Tensor, needed: int, *, short: bool) -> None:
        self._cautions[w] = self._cautions.get(w, 0) + 1 if short else 0
        room = self._rooms.get(w, 0)
        if needed > room or 4 * needed < room:
            self._rooms[w] = -(-needed * 5 // 4 // STEP) * STEP + STEP

    def _room(self, w: Tensor, x: Centred) -> int:
        """Places for candidates."""
        return self._rooms.setdefault(w, ROOM * max(1, len(x.x)))

    def columns(self, x: Centred, encoder: Encoder) -> Tensor:
        """How far the product can be off, per unit of ‖x_i‖: [M]. Rounding of its output is not in it."""
        if encoder.low is None:
            return slack(x.x, encoder.norms)
        return low_slack(x.x.shape[1], encoder.norms, encoder.gaps, x.gap)

    def _above(self, x: Centred, encoder: Encoder, b_enc: Tensor, lower: Tensor, room: int) -> tuple[Found, Tensor]:
        """Every entry with π > lower; and how much room it takes to find them."""
        columns, tokens = self.columns(x, encoder), len(x.x)
        floor = lower - b_enc - bias_slack(b_enc) - bias_slack(torch.nan_to_num(lower, neginf=0.0, posinf=0.0))
        if encoder.low is not None:  # the product is compared as it was written, rounded
            columns = columns * (1 + LOW_OUTPUT)
            floor = torch.where(floor.isinf(), floor, floor - floor.abs() * LOW_OUTPUT)
        words, tile = self._words(len(lower), tokens)
        for start, block in self._blocks(x, encoder):
            screen.mark_above[(triton.cdiv(len(block), MARKED),)](
                block, floor[start:], columns[start:], x.norms, words[start:], len(block), tokens, words.shape[1],
                FEATURES=MARKED, TILE=tile,
            )  # fmt: skip
        found, needed = self._marked(words, room, x.x)
        found = self._settled(found, x, encoder, b_enc)
        return compacted(found, found.pre > lower[found.feature])[0], needed

    def _largest(
        self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Largest | LargestOfBatch, room: int,
        floor: Tensor | None = None,
    ) -> tuple[Found, Tensor | None, Tensor, Tensor]:  # fmt: skip
        """The largest positive π of each token, or of the batch, those among dead features of each token besides:
        entries, their parts, how much room it takes, and π of all candidates.

        floor: what is below it does not matter to the main part, 0-d; by default a bound of each token's k-th largest.
        """
        tokens, has_dead = len(x.x), selection.dead is not None
        lost = 0.0 if encoder.low is None else LOW_OUTPUT
        dead = selection.dead.to(torch.uint8) if selection.dead is not None else b_enc.new_empty(0, dtype=torch.uint8)
        words = self._may_be_largest(x, encoder, b_enc, selection, lost, dead, floor)
        found, needed = self._marked(words, room, x.x)
        found = self._settled(found, x, encoder, b_enc)
        if isinstance(selection, Largest):
            main = self._largest_of_each(found, found.valid(), selection.k, tokens)
        else:
            best = torch.sort(found.pre, descending=True, stable=True).indices[: selection.count(tokens)]
            main = torch.zeros_like(found.pre, dtype=torch.bool).index_fill_(0, best, True) & (found.pre > 0)
        if not has_dead:
            return *compacted(found, main), needed, found.pre
        also = self._largest_of_each(found, found.valid() & (dead[found.feature] != 0), selection.k_dead, tokens)
        part = MAIN * main.to(torch.uint8) + DEAD * also.to(torch.uint8)
        return *compacted(found, main | also, part), needed, found.pre

    def _largest_of_each(self, found: Found, among: Tensor, k: int, tokens: int) -> Tensor:
        """bool [room]: the k largest positive entries of each token among some."""
        return largest_of_each(torch.where(among, found.token, tokens), found.pre, k, tokens) & among

    def _may_be_largest(
        self, x: Centred, encoder: Encoder, b_enc: Tensor, selection: Largest | LargestOfBatch, lost: float,
        dead: Tensor, floor: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """A bit of every entry that may be among the largest. Tokens come in parts, so that of each part the whole
        product can be kept while its floors are found."""
        tokens, width, has_dead = len(x.x), len(b_enc), selection.dead is not None
        terms = (b_enc, bias_slack(b_enc), self.columns(x, encoder))
        words, tile = self._words(width, tokens)
        races = [(selection.k, False)] if isinstance(selection, Largest) else []
        races += [(selection.k_dead, True)] if has_dead else []
        step = max(TILE, KEPT // max(1, width) // TILE * TILE)
        kind = torch.bfloat16 if encoder.low is not None and x.low is not None else x.x.dtype
        kept = torch.empty(width * min(step, tokens) if races else 0, dtype=kind, device=self.device)
        for first in range(0, tokens, step):
            some = x.some(first, step)
            n, floors = len(some.x), [] if floor is None else [floor.repeat(min(step, tokens - first))]
            blocks = self._blocks(some, encoder)
            if races:
                whole = kept[: width * n].view(width, n)
                for _ in self._blocks(some, encoder, whole):
                    pass
                blocks = [(0, as_bits(whole))]
                floors += [kth_of_groups(blocks[0][1], k, dead if of_dead else None, (lost, *terms), some.norms)
                           for k, of_dead in races]  # fmt: skip
            for start, block in blocks:
                screen.mark_largest[(triton.cdiv(len(block), MARKED),)](
                    block, dead[start:], lost, *[term[start:] for term in terms], some.norms, floors[0], floors[-1],
                    words[start:, first // 32 :], len(block), n, words.shape[1],
                    DEAD=has_dead, FEATURES=MARKED, TILE=tile,
                )  # fmt: skip
        return words

    def _blocks(self, x: Centred, encoder: Encoder, into: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """The product W_enc·xᵀ, a block of features at a time: (first feature, [features, B]); bfloat16 as int16.

        into [M, B]: where it is to be written.
        """
        width, tokens = len(encoder.w), len(x.x)
        size = max(64, CHUNK // max(1, tokens) // 64 * 64)
        rows, columns = (encoder.w, x.x.T) if encoder.low is None or x.low is None else (encoder.low, x.low.T)
        with full_precision():
            for start in range(0, width, size):
                out = None if into is None else into[start : start + size]
                yield start, as_bits(torch.mm(rows[start : start + size], columns, out=out))

    def _words(self, width: int, tokens: int) -> tuple[Tensor, int]:
        """Room for a bit per entry, [M, B / 32 or more] int32, and the tokens that are looked at at a time."""
        tile = max(32, min(TILE, power(tokens)))
        return torch.empty(width, triton.cdiv(tokens, tile) * tile // 32, dtype=torch.int32, device=self.device), tile

    def _marked(self, words: Tensor, room: int, like: Tensor) -> tuple[Found, Tensor]:
        """The marked entries, as many as there is room for, without π; and how many were marked: [1]."""
        (width, stride), ints = words.shape, {"dtype": torch.int32, "device": self.device}
        counts = torch.zeros(width + 1, dtype=torch.int64, device=self.device)
        how = {"FEATURES": 8, "TILE": min(128, power(stride))}
        screen.count_marks[(triton.cdiv(width, 8),)](words, counts[1:], width, stride, **how)
        colptr, token, feature = counts.cumsum(0), torch.zeros(room, **ints), torch.zeros(room, **ints)
        screen.write_marks[(triton.cdiv(width, 8),)](words, colptr, token, feature, width, stride, room, **how)
        pre = torch.full((room,), PADDING, dtype=like.dtype, device=self.device)
        return Found(colptr.clamp_max(room), token, feature, pre), colptr[-1:].clone()

    def _settled(self, found: Found, x: Centred, encoder: Encoder, b_enc: Tensor) -> Found:
        """The same with the canonical π."""
        pre = torch.full_like(found.pre, PADDING)
        self._canonical(x.x, encoder.w, b_enc, found.token, found.feature, found.number, pre)
        return found._replace(pre=pre)

    def _canonical(
        self, x: Tensor, w: Tensor, b: Tensor, token: Tensor, feature: Tensor, number: Tensor, pre: Tensor
    ) -> None:
        if len(pre):
            screen.canonical[(triton.cdiv(len(pre), 16),)](
                x, w, b, token, feature, number, pre, x.shape[1], ENTRIES=16, BLOCK=min(128, power(x.shape[1]))
            )

    def canonical(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
        pre = x.new_empty(len(token))
        number = torch.full((1,), len(token), device=self.device)
        self._canonical(x, w_enc, b_enc, token.contiguous(), feature.contiguous(), number, pre)
        return pre

    def settle(self, pre: Tensor, unsure: Tensor, group: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor) -> None:
        tile = 32
        screen.settle[(len(pre), triton.cdiv(pre.shape[1], tile))](
            pre, unsure.view(torch.uint8), group, x, w_enc, b_enc, pre.shape[1], x.shape[1],
            TILE=tile, BLOCK=min(128, power(x.shape[1])),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ products

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        with full_precision():
            return torch.mm(a, b)

    def kth(self, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        low = values.new_zeros(values.shape[1])
        return low, kth_largest(values, k, low)

    # ------------------------------------------------------------------------------------------ steps 3 and 5

    def decode(
        self, support: Support, values: Tensor, w_dec: Tensor, bias: Tensor, target: Tensor, sign: float = 1.0
    ) -> Residual:
        out, d = torch.empty_like(target, memory_format=torch.contiguous_format), target.shape[1]
        block = min(1024, power(d))
        squares = torch.zeros(len(out), triton.cdiv(d, block), dtype=torch.float64, device=self.device)
        if len(out):
            entries = max(1, 4096 // block) if block < 1024 else 4
            entries = min(16, entries)
            sparse_ops.decode[(len(out), triton.cdiv(d, block))](
                support.indptr, support.order, support.feature, values, w_dec, bias, target.contiguous(), out, squares,
                d, SIGN=sign, ENTRIES=entries, BLOCK=block, num_warps=warps(block * entries),
            )  # fmt: skip
        return Residual(out, squares.sum())

    def sums(self, support: Support, vector: Tensor) -> Tensor:
        return self._sums(support.colptr, vector)

    def active(self, support: Support, on: Tensor) -> Tensor:
        return self._sums(support.indptr, on.to(support.pre.dtype)[support.order])

    def _sums(self, starts: Tensor, vector: Tensor) -> Tensor:
        """Sums of vector between each two of `starts`."""
        out = torch.empty(len(starts) - 1, dtype=vector.dtype, device=self.device)
        sparse_ops.sums[(triton.cdiv(len(out), 8),)](
            starts, vector.contiguous(), out, len(out), FEATURES=8, TILE=32, num_warps=2
        )
        return out

    def rows(self, support: Support, update: RowUpdate, state: State, adam: Adam) -> Rows:
        width, d = state.p["W_enc"].shape
        block, kind = power(d), update.x.dtype
        projections = tuple(torch.zeros_like(support.pre) for _ in update.residuals)
        parts, live = len(update.residuals), len(update.values)
        how = {"num_warps": warps(2 * block), "maxnreg": REGISTERS if parts < 3 else 2 * REGISTERS - 1}
        nothing = support.pre
        constant = nothing if update.constant is None else update.constant.contiguous()
        values = (*update.values, *[nothing] * (parts - live))
        scales = torch.cat([self._number(scale, kind) for scale in update.scales])
        walked = (
            support.token, update.x, constant, update.slopes, values, update.residuals, scales, projections,
        )  # fmt: skip
        what = {
            "PARTS": parts, "LIVE": live, "SPARE": sum(spare << r for r, spare in enumerate(update.spare)),
            "CONSTANT": update.constant is not None, "LONG": LONG, "BLOCK": block,
        }  # fmt: skip
        weights, kept = self._weights(update, state, adam)
        fine = self._fine if update.fine is None else update.fine
        programs = triton.cdiv(width, FEATURES)
        features, numbers = self._pieces(support.colptr, len(support.pre))
        cut = len(features)
        pull = torch.empty(programs + cut, d, dtype=kind, device=self.device)
        if cut:
            some = [torch.empty(cut, d, dtype=kind, device=self.device) for _ in range(2)]
            some.append(torch.empty(cut, dtype=torch.float64, device=self.device))
            some.append(torch.empty(cut, dtype=torch.int32, device=self.device))
            sparse_ops.pieces[(cut,)](
                features, numbers, support.colptr, *walked, *some, state.p["W_dec"], fine, d, width, **what, **how
            )
            sparse_ops.joined[(cut,)](
                features, numbers, *some, pull[programs:], support.colptr, *weights, fine, d, width,
                **kept, LONG=LONG, BLOCK=block, **how,
            )  # fmt: skip
        sparse_ops.rows[(programs,)](
            support.colptr, *walked, pull, *weights, fine, d, width, **what, **kept, FEATURES=FEATURES, **how
        )
        return Rows(projections, pull.sum(0))

    def _pieces(self, colptr: Tensor, entries: int) -> tuple[Tensor, Tensor]:
        """Features of more than LONG entries, cut: (feature [pieces], number of the piece within it), as many places as
        there can be; M stands where there is none."""
        counts = colptr.diff()
        each = torch.where(counts > LONG, (counts + LONG - 1) // LONG, 0)
        ends = each.cumsum(0)
        pieces = torch.arange(2 * entries // LONG, device=self.device)
        feature = torch.searchsorted(ends, pieces, right=True)
        starts = torch.cat([ends - each, ends.new_zeros(1)])
        return feature, pieces - starts[feature]

    def given_rows(self, features: Tensor, g_enc: Tensor, g_dec: Tensor, touched: Tensor, update: RowUpdate,
                   state: State, adam: Adam) -> None:  # fmt: skip
        d = g_enc.shape[1]
        weights, kept = self._weights(update, state, adam)
        block = power(d)
        sparse_ops.given_rows[(len(features),)](
            features, g_enc.contiguous(), g_dec.contiguous(), touched.view(torch.uint8), *weights,
            self._fine if update.fine is None else update.fine, d, **kept, BLOCK=block, num_warps=warps(2 * block),
            maxnreg=REGISTERS,
        )  # fmt: skip

    def _weights(self, update: RowUpdate, state: State, adam: Adam) -> tuple[tuple[Any, ...], dict[str, int]]:
        """What `walk._move` needs: its arguments from `shrink` to `step`, and its switches."""
        p, v, encoder = state.p, state.v, state.encoder_for(self)
        skipped = (adam.t - state.last).double()
        decays = torch.full_like(skipped, adam.beta2).pow_(skipped).to(p["W_enc"].dtype)
        arguments = (
            encoder.norms if update.shrink is None else update.shrink,
            p["W_enc"], p["W_dec"], v["W_enc"], v["W_dec"], state.last, decays, encoder.norms, bits(encoder.low),
            encoder.gaps, self._numbers(adam, p["W_enc"].dtype), adam.t,
        )  # fmt: skip
        kept = {"SHRINK": update.shrink is not None, "UNIT": update.unit, "LOW": at_a_time(encoder.low)}
        return arguments, kept

    def _numbers(self, adam: Adam, kind: torch.dtype) -> Tensor:
        """[4] lr, 1 − β₂, the correction and ε on the device, in full precision: arguments would be float32's."""
        if self._constants is None or self._constants[:2] != (adam, kind):
            numbers = (adam.lr, 1 - adam.beta2, adam.correction, adam.epsilon)
            self._constants = (adam, kind, torch.cat([self._number(number, kind) for number in numbers]))
        return self._constants[2]

    def _number(self, number: Number, kind: torch.dtype) -> Tensor:
        """[1] on the device. A fill, where a copy from the host would wait."""
        if isinstance(number, Tensor):
            return number.to(kind).reshape(1)
        return torch.full((1,), number, dtype=kind, device=self.device)


def kth_of_groups(product: Tensor, k: int, members: Tensor | None, terms: tuple[Any, ...], norms: Tensor) -> Tensor:
    """[B] a lower bound, at least 0, of the k-th largest π of each token, among some features (members, uint8 [M]) or
    all: the k-th largest of 4k groups' maxima, or of more groups. 0 where every positive π is among the k largest.

    product [M, B]; terms: as `screen.group_maxima` takes them.
    """
    (width, tokens), floors = product.shape, torch.zeros_like(norms)
    if k >= width or not tokens:
        return floors
    groups = 64
    while groups < GROUPS * k:
        groups *= 2
    best = torch.empty(groups, tokens, dtype=norms.dtype, device=norms.device)
    screen.group_maxima[(groups // 16, triton.cdiv(tokens, 128))](
        product, members, *terms, norms, best, width, tokens, groups,
        MEMBERS=members is not None, GROUPS=16, TILE=128,
    )  # fmt: skip
    kth_largest(best, k, floors)
    return floors


def kth_largest(values: Tensor, k: int, low: Tensor) -> Tensor:
    """Raise low [B] to a lower bound of the k-th largest of each column of values [rows, B]; returns an upper one."""
    high, (rows, tokens) = torch.empty_like(low), values.shape
    if tokens:
        screen.bracket[(triton.cdiv(tokens, 32),)](
            values.contiguous(), low, high, k, rows, tokens, STEPS=BISECTIONS, ROWS=min(128, power(rows)), TILE=32
        )
    return high


def compacted(found: Found, keep: Tensor, part: Tensor | None = None) -> tuple[Found, Tensor | None]:
    """The entries with `keep` alone, and their parts."""
    keep = keep & found.valid()
    through = torch.cat([found.colptr.new_zeros(1), keep.cumsum(0)])
    token, feature = torch.zeros_like(found.token), torch.zeros_like(found.feature)
    pre, out_part = torch.full_like(found.pre, PADDING), None if part is None else torch.zeros_like(part)
    if len(keep):
        screen.compact[(triton.cdiv(len(keep), 1024),)](
            keep.view(torch.uint8), through, found.number, found.token, found.feature, found.pre,
            found.token if part is None else part, token, feature, pre, token if out_part is None else out_part,
            PART=part is not None, TILE=1024,
        )  # fmt: skip
    return Found(through[found.colptr], token, feature, pre), out_part


def finished(found: Found, part: Tensor | None, tokens: int) -> Support:
    """With the other order: a stable sort by token."""
    kind = torch.int16 if tokens < 2**15 else torch.int32
    owner, order = torch.sort(torch.where(found.valid(), found.token, tokens).to(kind), stable=True)
    indptr = torch.searchsorted(owner, torch.arange(tokens + 1, dtype=kind, device=owner.device))
    return Support(found.colptr, found.token, found.feature, found.pre, part, indptr, order.int())


@contextmanager
def full_precision() -> Iterator[None]:
    """Within this context products are summed in float32: no TF32, and no bfloat16 sums of partial products."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_bf16_reduced_precision_reduction = before[1]


def bits(low: Tensor | None) -> Tensor | None:
    """A bfloat16 tensor as int16."""
    return None if low is None else as_bits(low)


def as_bits(block: Tensor) -> Tensor:
    """The same, a bfloat16 tensor as int16."""
    return block.view(torch.int16) if block.dtype == torch.bfloat16 else block


def at_a_time(low: Tensor | None) -> int:
    """Bytes of a bfloat16 row that a thread stores together: 8 where rows begin at multiples of that; 0 without one."""
    return 0 if low is None else 8 if low.shape[1] % 4 == 0 else 2


def power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return triton.next_power_of_2(max(1, n))


def warps(elements: int) -> int:
    """Warps for a tile: 32 elements per thread, 16 warps at most."""
    return max(1, min(16, elements // 1024))
