"""Compiled loops of step 1: from a block of the encoder product to the candidates and the exact pre-activations.

The product comes in blocks of features, one row per feature: [features, B]. Each row is compared with its bounds, LANES
tokens at a time; entries that pass are candidates. The pre-activation π of every candidate is recomputed canonically
(products and sum in float64, rounded once), and that value alone decides. `to_float(product)` differs from the exact
x_i·w_j by at most x_norm_i·error_slope_j. If the product is stored in bfloat16, the rounding of its output counts as
well: it is included in cutoff_j and error_slope_j, or is `output_rounding`·|product|.

Candidates are written to buffers, feature by feature. Counting goes on after a buffer is full, so that the overflow is
detected; the block is then screened again with larger buffers.

Shapes: x [B, d] · w_enc [M, d] · product [features, B] · x_norm, minimums [B] · indptr [B + 1] · colptr [M + 1] ·
error_slope, bias, bias_error, cutoff, group [M]. `offset` is the block's first feature.
"""

from __future__ import annotations

import numpy as np

from jumpahead.engine.kernels.numba.jit import inlined, reassociating
from jumpahead.engine.kernels.numba.simd import LANES, greater_mask, lowest_bit, to_float, upper_bound_mask

BISECTIONS = 14
MAX_PAIRWISE = 512
"""Number of values up to which comparing all pairs is faster than a partition."""


@inlined
def widen_row(row, wide):
    """Copy `row` to `wide` in float64: once per feature, for all of its entries."""
    for t in range(len(row)):
        wide[t] = np.float64(row[t])


@inlined
def canonical_preactivation(x, wide, bias):
    """Return x·wide + bias, computed in float64 and rounded to x's dtype."""
    total = 0.0
    for t in range(len(wide)):
        total += np.float64(x[t]) * wide[t]
    return x.dtype.type(total + np.float64(bias))


@reassociating
def screen_above(
    product, offset, coarse_cutoff, cutoff, error_slope, x_norm, x, w_enc, b_enc, lower, tokens, pre, counts
):
    """Write the entries with π > lower_j of the features of a block to the buffers (tokens, pre), and counts [M].

    Candidates: to_float(product) > cutoff_j − x_norm_i·error_slope_j. coarse_cutoff [features of the block]: the lowest
    of these bounds per feature, for `greater_mask`.
    """
    size, position = product.shape[1], 0
    found, exact, wide = np.empty(size, np.int32), np.empty(size, x.dtype), np.empty(x.shape[1])
    for c in range(len(product)):
        j, p, n, kept = offset + c, product[c], 0, 0
        for block in range(size // LANES):
            mask = greater_mask(p, block * LANES, coarse_cutoff[c])
            while mask != 0:
                i = block * LANES + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                found[n] = i
                n += to_float(p[i]) > cutoff[j] - x_norm[i] * error_slope[j]
        for i in range(size // LANES * LANES, size):
            found[n] = i
            n += to_float(p[i]) > cutoff[j] - x_norm[i] * error_slope[j]
        if n:
            widen_row(w_enc[j], wide)
        for q in range(n):
            exact[q] = canonical_preactivation(x[found[q]], wide, b_enc[j])
        for q in range(n):
            if position < len(tokens):  # predictable, unlike the comparison; entries that fail it are overwritten
                tokens[position], pre[position] = found[q], exact[q]
            is_in = exact[q] > lower[j]
            position += is_in
            kept += is_in
        counts[j] = kept


@reassociating
def group_maxima(product, offset, output_rounding, bias, bias_error, error_slope, x_norm, group, best):
    """Raise best[group_j, i] to the largest lower bound of π_ij in the block; features with group −1 are skipped.

    π differs from p + bias_j, p = to_float(product), by at most output_rounding·|p| + bias_error_j +
    x_norm_i·error_slope_j.
    """
    for c in range(len(product)):
        j, p = offset + c, product[c]
        if group[j] < 0:
            continue
        shift, slope, highest = bias[j] - bias_error[j], error_slope[j], best[group[j]]
        for i in range(len(p)):
            low = to_float(p[i]) - output_rounding * abs(to_float(p[i])) + shift - x_norm[i] * slope
            highest[i] = low if low > highest[i] else highest[i]


@reassociating
def kth_largest_bounds(first, last, values, k, lows, highs):
    """Set lows[i], highs[i] to bounds of the k-th largest of values[:, i], by bisection; lows never decrease."""
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


@reassociating
def screen_topk(
    product, offset, output_rounding, bias, bias_error, error_slope, x_norm, group, minimums, tokens, uppers, counts
):
    """Write the entries whose π may be positive and reach minimums[token], with an upper bound of π, to the buffers."""
    size, position = product.shape[1], 0
    found = np.empty(size, np.int32)
    for c in range(len(product)):
        j, p, n = offset + c, product[c], 0
        counts[j] = 0
        if group[j] < 0:
            continue
        shift, slope = bias[j] + bias_error[j], error_slope[j]
        for block in range(size // LANES):
            mask = upper_bound_mask(p, block * LANES, output_rounding, shift, slope, x_norm, minimums)
            while mask != 0:
                found[n] = block * LANES + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                n += 1
        for i in range(size // LANES * LANES, size):
            found[n] = i
            n += to_float(p[i]) + output_rounding * abs(to_float(p[i])) + shift + x_norm[i] * slope >= minimums[i]
        for q in range(min(n, len(tokens) - position)):
            i = found[q]
            tokens[position] = i
            uppers[position] = to_float(p[i]) + output_rounding * abs(to_float(p[i])) + shift + x_norm[i] * slope
            position += 1
        counts[j] = n


@reassociating
def mark_reaching(first, last, token, upper, minimums, keep):
    """Set keep[q] to whether the entry's π may be positive and reach its token's final minimum."""
    for q in range(first, last):
        keep[q] = upper[q] >= minimums[token[q]] and upper[q] > 0


@reassociating
def recompute_preactivations(first, last, x, w_enc, b_enc, colptr, token, pre):
    """Set pre[q] to the canonical π of every entry of features first … last − 1."""
    wide = np.empty(x.shape[1])
    for j in range(first, last):
        if colptr[j] < colptr[j + 1]:
            widen_row(w_enc[j], wide)
        for q in range(colptr[j], colptr[j + 1]):
            pre[q] = canonical_preactivation(x[token[q]], wide, b_enc[j])


@reassociating
def canonical_preactivations(first, last, x, w_enc, b_enc, token, feature, pre):
    """Set pre[q] to the canonical π of entries in any order."""
    wide = np.empty(x.shape[1])
    widened_feature = -1
    for q in range(first, last):
        j = feature[q]
        if j != widened_feature:
            widen_row(w_enc[j], wide)
            widened_feature = j
        pre[q] = canonical_preactivation(x[token[q]], wide, b_enc[j])


@inlined
def kth_largest(values, k):
    """Return the k-th largest value, counting duplicates. Few values are compared pairwise: no branch, no memory."""
    n = len(values)
    if n > MAX_PAIRWISE:
        return np.partition(values, n - k)[n - k]
    found = values.dtype.type(np.inf)
    for q in range(n):
        larger = np.int32(0)
        for r in range(n):
            larger += np.int32(values[r] > values[q])
        found = min(found, values[q]) if larger < k else found
    return found


@reassociating
def mark_topk(first, last, indptr, order, pre, k, keep):
    """Set keep[q] to whether π is positive and among the k largest of its token; ties go to the lower feature."""
    for i in range(first, last):
        start, stop = indptr[i], indptr[i + 1]
        n = stop - start
        values = np.empty(n, pre.dtype)
        for q in range(n):
            values[q] = pre[order[start + q]]
        minimum, ties = pre.dtype.type(0), 0
        if n > k:
            minimum = max(minimum, kth_largest(values, k))
            num_above = 0
            for q in range(n):
                num_above += values[q] > minimum
            ties = k - num_above
        for q in range(n):
            kept = values[q] > minimum
            if values[q] == minimum and minimum > 0 and ties > 0:
                kept = True
                ties -= 1
            keep[order[start + q]] = kept
