"""Step 1's loops: from a block of the encoder product to the support.

The product comes in blocks of features, one row per feature: [features, B]. A row is compared with its bounds, LANES
tokens at a time; what passes is a candidate. The π of every candidate is recomputed canonically (products and sum in
float64, rounded once), and that alone decides. `number(product)` lies within row_i·column_j of the exact x_i·w_j, and
where it is written in bfloat16 that rounding counts as well: it is in floor_j and column_j, or is `lost`·|number|.

An *arena* takes the entries of a block, feature by feature. Counting goes on where it is full, so that an overflow is
seen; the block is then looked at again with more room.

Shapes: x [B, d] · w_enc [M, d] · product [features, B] · indptr [B + 1] · colptr [M + 1].
"""

from __future__ import annotations

import numpy as np
from numba import njit

from jumpahead.engine.kernels.numba.simd import LANES, above, lowest_bit, number, reaching

SAFE = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be re-associated (at compile time, so runs repeat); NaN and infinity keep their meaning."""
BISECTIONS = 14
COMPARED = 512
"""Values up to which comparing each with all is faster than a partition."""

serial = njit(cache=True, nogil=True, error_model="numpy")
parallel = njit(cache=True, nogil=True, error_model="numpy", fastmath=SAFE)


@parallel
def widened(row, wide):
    """wide ← row in float64: a feature's row is widened once for all its entries."""
    for t in range(len(row)):
        wide[t] = np.float64(row[t])


@parallel
def canonical(x, wide, bias):
    """x·w + bias in float64, rounded to x's type."""
    total = 0.0
    for t in range(len(wide)):
        total += np.float64(x[t]) * wide[t]
    return x.dtype.type(total + np.float64(bias))


@parallel
def screen_above(product, offset, coarse, floor, column, row, x, w_enc, b_enc, lower, tokens, pre, counts):
    """Entries of features offset + first … with π > lower_j, into the arena (tokens, pre); counts [M] per feature.

    Candidates: number(product) > floor_j − row_i·column_j. coarse [features of the block]: the lowest of these bounds,
    for `above`.
    """
    size, place = product.shape[1], 0
    found, exact, wide = np.empty(size, np.int32), np.empty(size, x.dtype), np.empty(x.shape[1])
    for c in range(len(product)):
        j, p, n, kept = offset + c, product[c], 0, 0
        for block in range(size // LANES):
            mask = above(p, block * LANES, coarse[c])
            while mask != 0:
                i = block * LANES + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                found[n] = i
                n += number(p[i]) > floor[j] - row[i] * column[j]
        for i in range(size // LANES * LANES, size):
            found[n] = i
            n += number(p[i]) > floor[j] - row[i] * column[j]
        if n:
            widened(w_enc[j], wide)
        for q in range(n):
            exact[q] = canonical(x[found[q]], wide, b_enc[j])
        for q in range(n):
            if place < len(tokens):  # foreseeable, as the comparison is not: what fails it is written over
                tokens[place], pre[place] = found[q], exact[q]
            is_in = exact[q] > lower[j]
            place += is_in
            kept += is_in
        counts[j] = kept


@parallel
def group_maxima(product, offset, lost, bias, extra, column, row, group, best):
    """best[group_j, i] ← the largest lower bound of π_i seen in the group; features with group −1 are left out.

    π lies within lost·|p| + extra_j + row_i·column_j of p + bias_j, p = number(product).
    """
    for c in range(len(product)):
        j, p = offset + c, product[c]
        if group[j] < 0:
            continue
        shift, slope, highest = bias[j] - extra[j], column[j], best[group[j]]
        for i in range(len(p)):
            low = number(p[i]) - lost * abs(number(p[i])) + shift - row[i] * slope
            highest[i] = low if low > highest[i] else highest[i]


@parallel
def bracket(first, last, values, k, lows, highs):
    """lows[i], highs[i] ← bounds of the k-th largest of values[:, i], by bisection; lows are raised, never lowered."""
    size = last - first
    low, high, middle = np.empty(size, values.dtype), np.empty(size, values.dtype), np.empty(size, values.dtype)
    count = np.empty(size, np.int32)
    low[:] = lows[first:last]
    high[:] = low
    for g in range(len(values)):
        row = values[g, first:last]
        for i in range(size):
            high[i] = row[i] if row[i] > high[i] else high[i]
    for _ in range(BISECTIONS):
        for i in range(size):
            middle[i] = low[i] + (high[i] - low[i]) * values.dtype.type(0.5)
            count[i] = 0
        for g in range(len(values)):
            row = values[g, first:last]
            for i in range(size):
                count[i] += np.int32(row[i] >= middle[i])
        for i in range(size):
            low[i] = middle[i] if count[i] >= k else low[i]
            high[i] = middle[i] if count[i] < k else high[i]
    lows[first:last] = low
    highs[first:last] = high


@parallel
def screen_largest(product, offset, lost, bias, extra, column, row, group, floors, tokens, uppers, counts):
    """Candidates whose π may reach their token's floor and be positive, with an upper bound of it, into the arena."""
    size, place = product.shape[1], 0
    found = np.empty(size, np.int32)
    for c in range(len(product)):
        j, p, n = offset + c, product[c], 0
        counts[j] = 0
        if group[j] < 0:
            continue
        shift, slope = bias[j] + extra[j], column[j]
        for block in range(size // LANES):
            mask = reaching(p, block * LANES, lost, shift, slope, row, floors)
            while mask != 0:
                found[n] = block * LANES + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                n += 1
        for i in range(size // LANES * LANES, size):
            found[n] = i
            n += number(p[i]) + lost * abs(number(p[i])) + shift + row[i] * slope >= floors[i]
        for q in range(min(n, len(tokens) - place)):
            i = found[q]
            tokens[place] = i
            uppers[place] = number(p[i]) + lost * abs(number(p[i])) + shift + row[i] * slope
            place += 1
        counts[j] = n


@parallel
def mark_reaching(first, last, token, upper, floors, keep):
    """keep[q] = the entry may reach its token's final floor and be positive."""
    for q in range(first, last):
        keep[q] = upper[q] >= floors[token[q]] and upper[q] > 0


@parallel
def recompute(first, last, x, w_enc, b_enc, colptr, token, pre):
    """The canonical π of every entry."""
    wide = np.empty(x.shape[1])
    for j in range(first, last):
        if colptr[j] < colptr[j + 1]:
            widened(w_enc[j], wide)
        for q in range(colptr[j], colptr[j + 1]):
            pre[q] = canonical(x[token[q]], wide, b_enc[j])


@parallel
def canonical_at(first, last, x, w_enc, b_enc, token, feature, pre):
    """The canonical π of entries in any order."""
    wide = np.empty(x.shape[1])
    widest = -1
    for q in range(first, last):
        j = feature[q]
        if j != widest:
            widened(w_enc[j], wide)
            widest = j
        pre[q] = canonical(x[token[q]], wide, b_enc[j])


@parallel
def kth_largest(values, k):
    """The k-th largest, counting equal ones. Of a few values each is compared with all: no branch, no memory."""
    n = len(values)
    if n > COMPARED:
        return np.partition(values, n - k)[n - k]
    found = values.dtype.type(np.inf)
    for q in range(n):
        larger = np.int32(0)
        for r in range(n):
            larger += np.int32(values[r] > values[q])
        found = min(found, values[q]) if larger < k else found
    return found


@parallel
def mark_largest(first, last, indptr, order, pre, k, keep):
    """keep[q] = π is positive and among the k largest of its token; of equal ones the lower feature."""
    for i in range(first, last):
        start, stop = indptr[i], indptr[i + 1]
        n = stop - start
        values = np.empty(n, pre.dtype)
        for q in range(n):
            values[q] = pre[order[start + q]]
        floor, ties = pre.dtype.type(0), 0
        if n > k:
            floor = max(floor, kth_largest(values, k))
            above_it = 0
            for q in range(n):
                above_it += values[q] > floor
            ties = k - above_it
        for q in range(n):
            kept = values[q] > floor
            if values[q] == floor and floor > 0 and ties > 0:
                kept = True
                ties -= 1
            keep[order[start + q]] = kept


@parallel
def count_kept(first, last, colptr, keep, counts):
    """counts[j] = entries of feature j with `keep`."""
    for j in range(first, last):
        n = 0
        for q in range(colptr[j], colptr[j + 1]):
            n += keep[q]
        counts[j] = n


@parallel
def copy_kept(first, last, colptr, token, pre, keep, new_colptr, new_token, new_pre):
    """The entries with `keep`, where new_colptr says."""
    for j in range(first, last):
        n, stop = new_colptr[j], new_colptr[j + 1]
        for q in range(colptr[j], colptr[j + 1]):
            if n < stop:  # foreseeable, as `keep` is not: what is not kept is written over
                new_token[n], new_pre[n] = token[q], pre[q]
                n += keep[q]


@parallel
def count_union(first, last, colptr, token, colptr2, token2, counts):
    """counts[j] = entries of feature j in the union of two sets."""
    for j in range(first, last):
        a, b, stop, stop2, n = colptr[j], colptr2[j], colptr[j + 1], colptr2[j + 1], 0
        while a < stop and b < stop2:
            left, right = token[a] <= token2[b], token2[b] <= token[a]
            a, b, n = a + left, b + right, n + 1
        counts[j] = n + stop - a + stop2 - b


@parallel
def merge(
    first, last, colptr, token, pre, colptr2, token2, pre2, bit, bit2, out_colptr, out_token, out_pre, part
):  # fmt: skip
    """The union, where out_colptr says; an entry of both gets both bits."""
    for j in range(first, last):
        n, a, b, stop, stop2 = out_colptr[j], colptr[j], colptr2[j], colptr[j + 1], colptr2[j + 1]
        while a < stop or b < stop2:
            left = a < stop and (b >= stop2 or token[a] <= token2[b])
            right = b < stop2 and (a >= stop or token2[b] <= token[a])
            part[n] = (bit if left else 0) | (bit2 if right else 0)
            out_token[n] = token[a] if left else token2[b]
            out_pre[n] = pre[a] if left else pre2[b]
            a, b, n = a + left, b + right, n + 1


@serial
def count_tokens(first, last, starts, token, counts):
    """counts[piece, i] += entries of token i in the piece starts[piece] … starts[piece + 1] − 1."""
    for piece in range(first, last):
        for q in range(starts[piece], starts[piece + 1]):
            counts[piece, token[q]] += 1


@serial
def by_token(first, last, starts, token, place, order):
    """Pieces of a stable counting sort: place[piece, i] is where the piece's first entry of token i goes."""
    for piece in range(first, last):
        for q in range(starts[piece], starts[piece + 1]):
            i = token[q]
            order[place[piece, i]] = q
            place[piece, i] += 1


@parallel
def feature_of(first, last, colptr, feature):
    """feature[q] = j for every entry of feature j."""
    for j in range(first, last):
        for q in range(colptr[j], colptr[j + 1]):
            feature[q] = j
