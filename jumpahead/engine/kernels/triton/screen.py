"""The kernels of step 1: from a block of the product W_enc·xᵀ to the support.

A block is [features, B]: a row is a feature, so entries come out feature by feature and within one by token, and
nothing is sorted. One look at a block, while it lies in the cache, leaves a bit per entry: whether it can matter. When
all are there, bits are counted, and after a prefix sum everyone writes where its entries go. The product is bfloat16,
seen as int16 (`wide` widens it exactly), or in x's dtype. Where the k largest are wanted it is kept whole, and looked
at twice: for a bound of each token's k-th largest, and for the bits.

B tokens · d dimensions · M features · n entries of `room` places. Offsets are 64 bits wide: M·d and M·B pass 2³¹.
No boolean scalar is ever made a vector: Triton's interpreter makes integers of those, and takes no such masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import triton  # pyright: ignore[reportMissingImports] — not installed with jumpahead: it comes with torch on a GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]

jit = cast("Callable[..., Any]", triton.jit)
"""Its functions are launched with arguments that no type checker knows."""


@jit
def wide(entry):
    """An entry of the product as a float: a bfloat16's bits widened, floats as they are."""
    if entry.dtype == tl.int16:
        entry = (entry.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return entry


@jit
def _packed(passes):
    """[n, 32] booleans as n words, the first one the lowest bit."""
    return tl.sum(passes.to(tl.int32) << tl.arange(0, 32)[None, :], 1)


@jit
def _tokens(first, TILE: tl.constexpr):
    """[TILE // 32, 32] tokens from `first` on, in the order of `_packed`."""
    return first + tl.arange(0, TILE // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]


@jit
def mark_above(product, floors, columns, norms, words, features, tokens, stride,
               FEATURES: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Bit i of words[c] = whether product + column·‖x_i‖ > floor, for the block's feature c. One program per FEATURES
    features; `stride` words per feature."""
    start = tl.program_id(0).to(tl.int64) * FEATURES
    for first in range(0, tokens, TILE):
        i, at = _tokens(first, TILE), first // 32 + tl.arange(0, TILE // 32)
        inside = i < tokens
        norm = tl.load(norms + i, mask=inside, other=0.0)
        for f in tl.static_range(FEATURES):
            c = start + f
            there = c < features
            here = i < tokens * there.to(tl.int32)
            p = wide(tl.load(product + c * tokens + i, mask=here, other=0))
            column = tl.load(columns + c, mask=there, other=0.0)
            floor = tl.load(floors + c, mask=there, other=float("inf"))
            word = _packed(here & (p + column * norm > floor))
            tl.store(words + c * stride + at, word, mask=at < stride * there.to(tl.int32))


@jit
def _bound(p, lost, shift, slope, row, SIGN: tl.constexpr):
    """π's upper (SIGN = 1) or lower (−1) bound, given what the product and its own rounding can be off."""
    return p + shift + SIGN * (lost * tl.abs(p) + slope * row)


@jit
def group_maxima(product, members, lost, bias, extra, columns, norms, best, features, tokens, groups,
                 MEMBERS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """best[g, i] = the largest lower bound of π_ij of features j with j mod groups = g; −∞ where there is none.

    members (uint8 [M]): only these count, where MEMBERS. One program per GROUPS groups and TILE tokens.
    """
    g = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < tokens
    row = tl.load(norms + i, mask=inside, other=0.0)
    at = g.to(tl.int64)[:, None] * tokens + i[None, :]
    there = (g < groups)[:, None] & inside[None, :]
    found = tl.full([GROUPS, TILE], float("-inf"), best.dtype.element_ty)
    for first in range(0, features, groups):
        j = (first + g).to(tl.int64)
        counted = (j < features) & (g < groups)
        if MEMBERS:
            counted = counted & (tl.load(members + j, mask=counted, other=0) != 0)
        shift = tl.load(bias + j, mask=counted, other=0.0) - tl.load(extra + j, mask=counted, other=0.0)
        slope = tl.load(columns + j, mask=counted, other=0.0)
        here = counted[:, None] & inside[None, :]
        p = wide(tl.load(product + j[:, None] * tokens + i[None, :], mask=here, other=0))
        low = _bound(p, lost, shift[:, None], slope[:, None], row[None, :], -1)
        found = tl.maximum(found, tl.where(here, low, float("-inf")))
    tl.store(best + at, found, mask=there)


@jit
def bracket(values, lows, highs, k, rows, tokens, STEPS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """lows[i], highs[i] ← bounds of the k-th largest of values[:, i], by bisection; lows are raised, never lowered."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = i < tokens
    low = tl.load(lows + i, mask=inside, other=0.0)
    high = low
    for first in range(0, rows, ROWS):
        g = first + tl.arange(0, ROWS)
        here = (g < rows)[:, None] & inside[None, :]
        some = tl.load(values + g.to(tl.int64)[:, None] * tokens + i[None, :], mask=here, other=float("-inf"))
        high = tl.maximum(high, tl.max(some, 0))
    steps = STEPS * tl.max((high > low).to(tl.int32), 0)  # none where nothing is positive
    for _ in range(steps):
        middle = low + (high - low) * 0.5
        count = tl.zeros([TILE], tl.int32)
        for first in range(0, rows, ROWS):
            g = first + tl.arange(0, ROWS)
            here = (g < rows)[:, None] & inside[None, :]
            some = tl.load(values + g.to(tl.int64)[:, None] * tokens + i[None, :], mask=here, other=float("-inf"))
            count += tl.sum((here & (some >= middle[None, :])).to(tl.int32), 0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count < k, middle, high)
    tl.store(lows + i, low, mask=inside)
    tl.store(highs + i, high, mask=inside)


@jit
def mark_largest(product, members, lost, bias, extra, columns, norms, floors, floors2, words, features, tokens, stride,
                 DEAD: tl.constexpr, FEATURES: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Bit i of words[c] = whether π of token i may be positive and reach its floor, or, where the feature is one of
    `members` (uint8; DEAD), that among them."""
    start = tl.program_id(0).to(tl.int64) * FEATURES
    for first in range(0, tokens, TILE):
        i, at = _tokens(first, TILE), first // 32 + tl.arange(0, TILE // 32)
        inside = i < tokens
        norm = tl.load(norms + i, mask=inside, other=0.0)
        floor = tl.load(floors + i, mask=inside, other=float("inf"))
        floor2 = floor
        if DEAD:
            floor2 = tl.load(floors2 + i, mask=inside, other=float("inf"))
        for f in tl.static_range(FEATURES):
            c = start + f
            there = c < features
            here = i < tokens * there.to(tl.int32)
            p = wide(tl.load(product + c * tokens + i, mask=here, other=0))
            shift = tl.load(bias + c, mask=there, other=0.0) + tl.load(extra + c, mask=there, other=0.0)
            high = _bound(p, lost, shift, tl.load(columns + c, mask=there, other=0.0), norm, 1)
            reaches = high >= floor
            if DEAD:
                is_member = tl.load(members + c, mask=there, other=0) != 0
                reaches = reaches | (tl.where(is_member, high, float("-inf")) >= floor2)
            word = _packed(here & reaches & (high > 0))
            tl.store(words + c * stride + at, word, mask=at < stride * there.to(tl.int32))


@jit
def _bits(word):
    """How many bits of each word are set: int32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word = word + (word >> 8)
    return ((word + (word >> 16)) & 0x3F).to(tl.int32)


@jit
def _words(words, c, first, features, stride, TILE: tl.constexpr):
    """[FEATURES, TILE] words of features c from word `first` on, 0 where there is none."""
    at = first + tl.arange(0, TILE)
    here = (c < features)[:, None] & (at < stride)[None, :]
    return tl.load(words + c[:, None] * stride + at[None, :], mask=here, other=0).to(tl.uint32, bitcast=True)


@jit
def count_marks(words, counts, features, stride, FEATURES: tl.constexpr, TILE: tl.constexpr):
    """counts[c] = bits of feature c. One program per FEATURES features."""
    c = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    total = tl.zeros([FEATURES, TILE], tl.int32)
    for first in range(0, stride, TILE):
        total += _bits(_words(words, c, first, features, stride, TILE))
    tl.store(counts + c, tl.sum(total, 1).to(tl.int64), mask=c < features)


@jit
def write_marks(words, starts, token, feature, features, stride, room, FEATURES: tl.constexpr, TILE: tl.constexpr):
    """(token, feature) of every bit, feature c's from place starts[c] on, by token; beyond `room` nothing."""
    c = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    place = tl.load(starts + c, mask=c < features, other=0)
    for first in range(0, stride, TILE):
        word = _words(words, c, first, features, stride, TILE)
        count = _bits(word)
        at = place[:, None] + tl.cumsum(count, 1) - count
        i = (first + tl.arange(0, TILE))[None, :] * 32 + tl.zeros([FEATURES, TILE], tl.int32)
        j = c.to(tl.int32)[:, None] + tl.zeros([FEATURES, TILE], tl.int32)
        for _ in range(tl.max(tl.max(count, 1), 0)):  # pyright: ignore[reportArgumentType]
            rest = word & (word - 1)  # without its lowest bit
            kept = (word != 0) & (at < room)
            tl.store(token + at, i + _bits((word ^ rest) - 1), mask=kept)
            tl.store(feature + at, j, mask=kept)
            at += (word != 0).to(tl.int64)
            word = rest
        place += tl.sum(count, 1)


@jit
def canonical(x, w_enc, b_enc, token, feature, number, pre, d, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):
    """pre[q] = the canonical π of entry q < number: products and sum in float64, rounded once."""
    n = tl.load(number)
    first = tl.program_id(0).to(tl.int64) * ENTRIES
    if first < n:
        q = first + tl.arange(0, ENTRIES)
        valid = q < n
        i = tl.load(token + q, mask=valid, other=0).to(tl.int64)
        j = tl.load(feature + q, mask=valid, other=0).to(tl.int64)
        parts = tl.zeros([ENTRIES, BLOCK], tl.float64)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            here = valid[:, None] & (c < d)[None, :]
            a = tl.load(x + i[:, None] * d + c[None, :], mask=here, other=0.0).to(tl.float64)
            b = tl.load(w_enc + j[:, None] * d + c[None, :], mask=here, other=0.0).to(tl.float64)
            parts += a * b
        total = tl.sum(parts, 1) + tl.load(b_enc + j, mask=valid, other=0.0).to(tl.float64)
        tl.store(pre + q, total.to(pre.dtype.element_ty), mask=valid)


@jit
def settle(pre, unsure, group, x, w_enc, b_enc, tokens, d, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Put the canonical π into pre [m, B], of features group [m], where unsure says so. One program per TILE tokens."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    at = row * tokens + i
    wanted = tl.load(unsure + at, mask=i < tokens, other=0) != 0
    if tl.max(wanted.to(tl.int32), 0) != 0:
        j = tl.load(group + row)
        total = tl.zeros([TILE], tl.float64)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            inside = c < d
            here = wanted[:, None] & inside[None, :]
            a = tl.load(x + i[:, None] * d + c[None, :], mask=here, other=0.0).to(tl.float64)
            b = tl.load(w_enc + j * d + c, mask=inside, other=0.0).to(tl.float64)
            total += tl.sum(a * b[None, :], 1)
        total += tl.load(b_enc + j).to(tl.float64)
        tl.store(pre + at, total.to(pre.dtype.element_ty), mask=wanted)


@jit
def compact(keep, before, number, token, feature, pre, part, out_token, out_feature, out_pre, out_part,
            PART: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Move entries q < number with keep[q] to place before[q]."""
    q = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    kept = q < tl.load(number)
    kept = kept & (tl.load(keep + q, mask=kept, other=0) != 0)
    at = tl.load(before + q, mask=kept, other=0)
    tl.store(out_token + at, tl.load(token + q, mask=kept, other=0), mask=kept)
    tl.store(out_feature + at, tl.load(feature + q, mask=kept, other=0), mask=kept)
    tl.store(out_pre + at, tl.load(pre + q, mask=kept, other=0.0), mask=kept)
    if PART:
        tl.store(out_part + at, tl.load(part + q, mask=kept, other=0), mask=kept)
