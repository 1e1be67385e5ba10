"""The kernels of step 1: from a block of the product W_enc·xᵀ to the support.

A block is [features, B]: a row is a feature, so entries come out feature by feature and within one by token, and
nothing is sorted. Two looks at a block, while it lies in the cache: how many entries of each feature can matter, then,
after a prefix sum, where they go. The product is bfloat16, seen as int16 (`wide` widens it exactly), or in x's dtype.

B tokens · d dimensions · M features · n entries of `room` places. Offsets are 64 bits wide: M·d and M·B pass 2³¹.
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
def _passes(p, c, i, inside, floors, columns, norms):
    """Whether entries of row c of a block can exceed their bound, for tokens i."""
    floor, column = tl.load(floors + c), tl.load(columns + c)
    return inside & (p + column * tl.load(norms + i, mask=inside, other=0.0) > floor)


@jit
def count_above(product, floors, columns, norms, counts, tokens, TILE: tl.constexpr):
    """counts[c] = entries of the block's feature c with product + column·‖x_i‖ > floor. One program per feature."""
    c = tl.program_id(0).to(tl.int64)
    total = tl.zeros([TILE], tl.int32)
    for first in range(0, tokens, TILE):
        i = first + tl.arange(0, TILE)
        inside = i < tokens
        p = wide(tl.load(product + c * tokens + i, mask=inside, other=0))
        total += _passes(p, c, i, inside, floors, columns, norms).to(tl.int32)
    tl.store(counts + c, tl.sum(total, 0).to(tl.int64))


@jit
def write_above(product, floors, columns, norms, starts, first_feature, token, feature, tokens, room,
                TILE: tl.constexpr):  # fmt: skip
    """Where `count_above` counted, write (token, feature), from place starts[c] on; beyond `room` nothing."""
    c = tl.program_id(0).to(tl.int64)
    place, end = tl.load(starts + c), tl.load(starts + c + 1)
    if place < end:
        for first in range(0, tokens, TILE):
            i = first + tl.arange(0, TILE)
            inside = i < tokens
            p = wide(tl.load(product + c * tokens + i, mask=inside, other=0))
            passes = _passes(p, c, i, inside, floors, columns, norms)
            rank = tl.cumsum(passes.to(tl.int32), 0)
            at = place + rank - 1
            kept = passes & (at < room)
            tl.store(token + at, i, mask=kept)
            tl.store(feature + at, (first_feature + c).to(tl.int32) + tl.zeros([TILE], tl.int32), mask=kept)
            place += tl.max(rank, 0)


@jit
def _bound(p, lost, shift, slope, row, SIGN: tl.constexpr):
    """π's upper (SIGN = 1) or lower (−1) bound, given what the product and its own rounding can be off."""
    return p + shift + SIGN * (lost * tl.abs(p) + slope * row)


@jit
def group_maxima(product, first_feature, members, lost, bias, extra, columns, norms, best, features, tokens, groups,
                 MEMBERS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """best[g, i] = max with the lower bounds of π_ij over the block's features j with j mod groups = g.

    members (uint8 [M]): only these count, where MEMBERS. One program per GROUPS groups and TILE tokens.
    """
    g = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < tokens
    row = tl.load(norms + i, mask=inside, other=0.0)
    at = g.to(tl.int64)[:, None] * tokens + i[None, :]
    there = (g < groups)[:, None] & inside[None, :]
    found = tl.load(best + at, mask=there, other=float("-inf"))
    for first in range(0, features, groups):
        c = (first + g).to(tl.int64)
        counted = (c < features) & (g < groups)
        j = first_feature + c
        if MEMBERS:
            counted = counted & (tl.load(members + j, mask=counted, other=0) != 0)
        shift = tl.load(bias + j, mask=counted, other=0.0) - tl.load(extra + j, mask=counted, other=0.0)
        slope = tl.load(columns + j, mask=counted, other=0.0)
        here = counted[:, None] & inside[None, :]
        p = wide(tl.load(product + c[:, None] * tokens + i[None, :], mask=here, other=0))
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
    for _ in range(STEPS):
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
def _reaches(p, j, i, inside, members, lost, bias, extra, columns, norms, floors, floors2, DEAD: tl.constexpr):
    """Whether entries may reach their token's floor, or that among `members` (DEAD) where j is one; and π's bound."""
    shift = tl.load(bias + j) + tl.load(extra + j)
    row = tl.load(norms + i, mask=inside, other=0.0)
    high = _bound(p, lost, shift, tl.load(columns + j), row, 1)
    reaches = high >= tl.load(floors + i, mask=inside, other=float("inf"))
    if DEAD:
        if_dead = tl.where(tl.load(members + j) != 0, high, float("-inf"))
        reaches = reaches | (if_dead >= tl.load(floors2 + i, mask=inside, other=float("inf")))
    return inside & reaches & (high > 0), high


@jit
def count_largest(product, first_feature, members, lost, bias, extra, columns, norms, floors, floors2, counts, tokens,
                  DEAD: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """counts[c] = entries of the block's feature c that may be among the largest of their token."""
    c = tl.program_id(0).to(tl.int64)
    j = first_feature + c
    total = tl.zeros([TILE], tl.int32)
    for first in range(0, tokens, TILE):
        i = first + tl.arange(0, TILE)
        inside = i < tokens
        p = wide(tl.load(product + c * tokens + i, mask=inside, other=0))
        reaches, _ = _reaches(p, j, i, inside, members, lost, bias, extra, columns, norms, floors, floors2, DEAD)
        total += reaches.to(tl.int32)
    tl.store(counts + c, tl.sum(total, 0).to(tl.int64))


@jit
def write_largest(product, first_feature, members, lost, bias, extra, columns, norms, floors, floors2, starts,
                  token, feature, upper, tokens, room, DEAD: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Where `count_largest` counted, write (token, feature) and π's upper bound."""
    c = tl.program_id(0).to(tl.int64)
    j = first_feature + c
    place, end = tl.load(starts + c), tl.load(starts + c + 1)
    if place < end:
        for first in range(0, tokens, TILE):
            i = first + tl.arange(0, TILE)
            inside = i < tokens
            p = wide(tl.load(product + c * tokens + i, mask=inside, other=0))
            reaches, high = _reaches(p, j, i, inside, members, lost, bias, extra, columns, norms, floors, floors2, DEAD)
            rank = tl.cumsum(reaches.to(tl.int32), 0)
            at = place + rank - 1
            kept = reaches & (at < room)
            tl.store(token + at, i, mask=kept)
            tl.store(feature + at, j.to(tl.int32) + tl.zeros([TILE], tl.int32), mask=kept)
            tl.store(upper + at, high, mask=kept)
            place += tl.max(rank, 0)


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
        total = tl.zeros([ENTRIES], tl.float64)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            here = valid[:, None] & (c < d)[None, :]
            a = tl.load(x + i[:, None] * d + c[None, :], mask=here, other=0.0).to(tl.float64)
            b = tl.load(w_enc + j[:, None] * d + c[None, :], mask=here, other=0.0).to(tl.float64)
            total += tl.sum(a * b, 1)
        total += tl.load(b_enc + j, mask=valid, other=0.0).to(tl.float64)
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
