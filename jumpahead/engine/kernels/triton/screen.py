"""Triton kernels of step 1: from a block of the product W_enc·xᵀ to the candidates and their exact pre-activations.

A block is [features, B]: one row per feature, so entries come out sorted by feature, then by token, without a sort.
One pass over a block, while it is in the cache, writes a bitmap: one bit per entry, set if the entry may be selected.
After all blocks the bits are counted, and after a prefix sum each feature's entries are written at their offset. The
product is bfloat16, viewed as int16 (`to_float` widens it exactly), or has x's dtype. For top-k the whole product is
stored and read twice: for a bound on each token's k-th largest, and for the bitmap.

B tokens · d dimensions · M features · n entries in buffers of `capacity`. Offsets are 64-bit: M·d and M·B exceed 2³¹.
Boolean scalars are never broadcast to vectors: Triton's interpreter turns them into integers, which are no valid masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import triton  # pyright: ignore[reportMissingImports] — not installed with jumpahead: it comes with torch on a GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]

jit = cast("Callable[..., Any]", triton.jit)  # pyright: ignore[reportAttributeAccessIssue]
"""Type checkers do not know the launch syntax of jitted functions."""


@jit
def to_float(entry):
    """Return entries of the product as floats: bfloat16 bits (int16) are widened, floats are unchanged."""
    if entry.dtype == tl.int16:
        entry = (entry.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return entry


@jit
def _pack_bits(passes):
    """Pack [n, 32] booleans into n int32 words, the first one as the lowest bit."""
    return tl.sum(passes.to(tl.int32) << tl.arange(0, 32)[None, :], 1)


@jit
def _token_grid(first, TILE: tl.constexpr):
    """Return [TILE // 32, 32] token indices from `first` on, in the order of `_pack_bits`."""
    return first + tl.arange(0, TILE // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]


@jit
def mark_above(product, cutoffs, error_slopes, x_norms, bitmap, features, tokens, stride,
               FEATURES: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Set bit i of bitmap[c] if product + error_slope·‖x_i‖ > cutoff, for each feature c of the block.

    One program per FEATURES features; `stride` words per feature.
    """
    start = tl.program_id(0).to(tl.int64) * FEATURES
    for first in range(0, tokens, TILE):
        i, word_index = _token_grid(first, TILE), first // 32 + tl.arange(0, TILE // 32)
        inside = i < tokens
        norm = tl.load(x_norms + i, mask=inside, other=0.0)
        for f in tl.static_range(FEATURES):  # pyright: ignore[reportGeneralTypeIssues]
            c = start + f
            is_feature = c < features
            valid = i < tokens * is_feature.to(tl.int32)
            p = to_float(tl.load(product + c * tokens + i, mask=valid, other=0))
            error_slope = tl.load(error_slopes + c, mask=is_feature, other=0.0)
            cutoff = tl.load(cutoffs + c, mask=is_feature, other=float("inf"))
            word = _pack_bits(valid & (p + error_slope * norm > cutoff))
            tl.store(bitmap + c * stride + word_index, word, mask=word_index < stride * is_feature.to(tl.int32))


@jit
def _preactivation_bound(p, output_rounding, shift, slope, x_norm, SIGN: tl.constexpr):
    """Return the upper (SIGN = 1) or lower (−1) bound of π from the error bound and the rounding of the product."""
    return p + shift + SIGN * (output_rounding * tl.abs(p) + slope * x_norm)


@jit
def group_maxima(product, members, output_rounding, bias, bias_error, error_slopes, x_norms, best, features, tokens,
                 groups, MEMBERS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Set best[g, i] to the largest lower bound of π_ij over features j with j mod groups = g; −∞ if there is none.

    members: uint8 [M]; if MEMBERS, only these features count. One program per GROUPS groups and TILE tokens.
    """
    g = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < tokens
    x_norm = tl.load(x_norms + i, mask=inside, other=0.0)
    at = g.to(tl.int64)[:, None] * tokens + i[None, :]
    in_range = (g < groups)[:, None] & inside[None, :]
    maxima = tl.full([GROUPS, TILE], float("-inf"), best.dtype.element_ty)
    for first in range(0, features, groups):
        j = (first + g).to(tl.int64)
        counted = (j < features) & (g < groups)
        if MEMBERS:
            counted = counted & (tl.load(members + j, mask=counted, other=0) != 0)
        shift = tl.load(bias + j, mask=counted, other=0.0) - tl.load(bias_error + j, mask=counted, other=0.0)
        slope = tl.load(error_slopes + j, mask=counted, other=0.0)
        valid = counted[:, None] & inside[None, :]
        p = to_float(tl.load(product + j[:, None] * tokens + i[None, :], mask=valid, other=0))
        low = _preactivation_bound(p, output_rounding, shift[:, None], slope[:, None], x_norm[None, :], -1)
        maxima = tl.maximum(maxima, tl.where(valid, low, float("-inf")))
    tl.store(best + at, maxima, mask=in_range)


@jit
def kth_largest_bounds(
    values, lows, highs, k, rows, tokens, STEPS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """Set lows[i], highs[i] to bounds of the k-th largest of values[:, i], by bisection; lows never decrease."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = i < tokens
    low = tl.load(lows + i, mask=inside, other=0.0)
    high = low
    for first in range(0, rows, ROWS):
        g = first + tl.arange(0, ROWS)
        valid = (g < rows)[:, None] & inside[None, :]
        block = tl.load(values + g.to(tl.int64)[:, None] * tokens + i[None, :], mask=valid, other=float("-inf"))
        high = tl.maximum(high, tl.max(block, 0))
    steps = STEPS * tl.max((high > low).to(tl.int32), 0)  # 0 if no value is above the lower bound
    for _ in range(steps):
        middle = low + (high - low) * 0.5
        count = tl.zeros([TILE], tl.int32)
        for first in range(0, rows, ROWS):
            g = first + tl.arange(0, ROWS)
            valid = (g < rows)[:, None] & inside[None, :]
            block = tl.load(values + g.to(tl.int64)[:, None] * tokens + i[None, :], mask=valid, other=float("-inf"))
            count += tl.sum((valid & (block >= middle[None, :])).to(tl.int32), 0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count < k, middle, high)
    tl.store(lows + i, low, mask=inside)
    tl.store(highs + i, high, mask=inside)


@jit
def mark_topk(product, members, output_rounding, bias, bias_error, error_slopes, x_norms, minimums, dead_minimums,
              bitmap, features, tokens, stride, DEAD: tl.constexpr, FEATURES: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    """Set bit i of bitmap[c] if π may be positive and reach its token's minimum.

    If DEAD, also if the feature is one of `members` (uint8 [M]) and π may reach the token's dead_minimum.
    """
    start = tl.program_id(0).to(tl.int64) * FEATURES
    for first in range(0, tokens, TILE):
        i, word_index = _token_grid(first, TILE), first // 32 + tl.arange(0, TILE // 32)
        inside = i < tokens
        x_norm = tl.load(x_norms + i, mask=inside, other=0.0)
        minimum = tl.load(minimums + i, mask=inside, other=float("inf"))
        dead_minimum = minimum
        if DEAD:
            dead_minimum = tl.load(dead_minimums + i, mask=inside, other=float("inf"))
        for f in tl.static_range(FEATURES):  # pyright: ignore[reportGeneralTypeIssues]
            c = start + f
            is_feature = c < features
            valid = i < tokens * is_feature.to(tl.int32)
            p = to_float(tl.load(product + c * tokens + i, mask=valid, other=0))
            shift = tl.load(bias + c, mask=is_feature, other=0.0) + tl.load(bias_error + c, mask=is_feature, other=0.0)
            high = _preactivation_bound(
                p, output_rounding, shift, tl.load(error_slopes + c, mask=is_feature, other=0.0), x_norm, 1
            )
            reaches = high >= minimum
            if DEAD:
                is_member = tl.load(members + c, mask=is_feature, other=0) != 0
                reaches = reaches | (tl.where(is_member, high, float("-inf")) >= dead_minimum)
            word = _pack_bits(valid & reaches & (high > 0))
            tl.store(bitmap + c * stride + word_index, word, mask=word_index < stride * is_feature.to(tl.int32))


@jit
def _popcount(word):
    """Return the num_entries of set bits of each word, int32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word = word + (word >> 8)
    return ((word + (word >> 16)) & 0x3F).to(tl.int32)


@jit
def _load_words(bitmap, c, first, features, stride, TILE: tl.constexpr):
    """Load [FEATURES, TILE] words of features c, from word `first` on; 0 out of range."""
    index = first + tl.arange(0, TILE)
    valid = (c < features)[:, None] & (index < stride)[None, :]
    return tl.load(bitmap + c[:, None] * stride + index[None, :], mask=valid, other=0).to(tl.uint32, bitcast=True)


@jit
def count_marks(bitmap, counts, features, stride, FEATURES: tl.constexpr, TILE: tl.constexpr):
    """Set counts[c] to the num_entries of set bits of feature c. One program per FEATURES features."""
    c = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    total = tl.zeros([FEATURES, TILE], tl.int32)
    for first in range(0, stride, TILE):
        total += _popcount(_load_words(bitmap, c, first, features, stride, TILE))
    tl.store(counts + c, tl.sum(total, 1).to(tl.int64), mask=c < features)


@jit
def write_marks(bitmap, starts, token, feature, features, stride, capacity, FEATURES: tl.constexpr, TILE: tl.constexpr):
    """Write (token, feature) of every set bit: feature c's from starts[c] on, by token; none beyond `capacity`."""
    c = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    offset = tl.load(starts + c, mask=c < features, other=0)
    for first in range(0, stride, TILE):
        word = _load_words(bitmap, c, first, features, stride, TILE)
        count = _popcount(word)
        position = offset[:, None] + tl.cumsum(count, 1) - count
        i = (first + tl.arange(0, TILE))[None, :] * 32 + tl.zeros([FEATURES, TILE], tl.int32)
        j = c.to(tl.int32)[:, None] + tl.zeros([FEATURES, TILE], tl.int32)
        for _ in range(tl.max(tl.max(count, 1), 0)):  # pyright: ignore[reportArgumentType]
            remaining = word & (word - 1)  # without its lowest bit
            kept = (word != 0) & (position < capacity)
            tl.store(token + position, i + _popcount((word ^ remaining) - 1), mask=kept)
            tl.store(feature + position, j, mask=kept)
            position += (word != 0).to(tl.int64)
            word = remaining
        offset += tl.sum(count, 1)


@jit
def canonical_preactivations(
    x, w_enc, b_enc, token, feature, num_entries, pre, d, ENTRIES: tl.constexpr, BLOCK: tl.constexpr
):
    """Set pre[q] to the canonical π of entries q < num_entries: products and sum in float64, rounded once."""
    n = tl.load(num_entries)
    first = tl.program_id(0).to(tl.int64) * ENTRIES
    if first < n:
        q = first + tl.arange(0, ENTRIES)
        valid = q < n
        i = tl.load(token + q, mask=valid, other=0).to(tl.int64)
        j = tl.load(feature + q, mask=valid, other=0).to(tl.int64)
        parts = tl.zeros([ENTRIES, BLOCK], tl.float64)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            inside = valid[:, None] & (c < d)[None, :]
            a = tl.load(x + i[:, None] * d + c[None, :], mask=inside, other=0.0).to(tl.float64)
            b = tl.load(w_enc + j[:, None] * d + c[None, :], mask=inside, other=0.0).to(tl.float64)
            parts += a * b
        total = tl.sum(parts, 1) + tl.load(b_enc + j, mask=valid, other=0.0).to(tl.float64)
        tl.store(pre + q, total.to(pre.dtype.element_ty), mask=valid)


@jit
def write_exact(pre, unsure, group, x, w_enc, b_enc, tokens, d, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Write the canonical π into pre [m, B], of features group [m], at entries marked as unsure.

    One program per TILE tokens of a row.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    index = row * tokens + i
    wanted = tl.load(unsure + index, mask=i < tokens, other=0) != 0
    if tl.max(wanted.to(tl.int32), 0) != 0:
        j = tl.load(group + row)
        total = tl.zeros([TILE], tl.float64)
        for start in range(0, d, BLOCK):
            c = start + tl.arange(0, BLOCK)
            inside = c < d
            valid = wanted[:, None] & inside[None, :]
            a = tl.load(x + i[:, None] * d + c[None, :], mask=valid, other=0.0).to(tl.float64)
            b = tl.load(w_enc + j * d + c, mask=inside, other=0.0).to(tl.float64)
            total += tl.sum(a * b[None, :], 1)
        total += tl.load(b_enc + j).to(tl.float64)
        tl.store(pre + index, total.to(pre.dtype.element_ty), mask=wanted)


@jit
def compact(keep, positions, num_entries, token, feature, pre, part, out_token, out_feature, out_pre, out_part,
            PART: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Copy the entries q < num_entries with keep[q] to positions[q]."""
    q = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    kept = q < tl.load(num_entries)
    kept = kept & (tl.load(keep + q, mask=kept, other=0) != 0)
    position = tl.load(positions + q, mask=kept, other=0)
    tl.store(out_token + position, tl.load(token + q, mask=kept, other=0), mask=kept)
    tl.store(out_feature + position, tl.load(feature + q, mask=kept, other=0), mask=kept)
    tl.store(out_pre + position, tl.load(pre + q, mask=kept, other=0.0), mask=kept)
    if PART:
        tl.store(out_part + position, tl.load(part + q, mask=kept, other=0), mask=kept)
