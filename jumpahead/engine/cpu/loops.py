"""The loops of the sparse step, compiled with numba; `spread` runs one over all cores.

Shapes: x, residuals [B, d] · w_enc, w_dec [M, d] · support vectors [n] · indptr [B + 1] · colptr [M + 1] · order [n],
as in `step.Support`. A parallel loop takes a range of tokens or of features as its first two arguments, and each token
or feature is handled whole by one thread: the result does not depend on the number of threads. Threads are Python's
(the compiled code holds no lock): numba's own parallel loops take ten times as long to compile and bring a second pool
of threads beside torch's.

Floating point: sums may be re-associated for vector instructions (the order is fixed at compile time, so runs repeat);
NaN and infinity keep their meaning.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

_SAFE = {"reassoc", "contract", "nsz", "arcp"}
_BLOCK = 32  # entries of the product tested at once before looking at each
_PIECES = 2  # ranges per thread, so that an uneven load evens out

_serial = njit(cache=True, nogil=True, error_model="numpy")
_parallel = njit(cache=True, nogil=True, error_model="numpy", fastmath=_SAFE)
_screen = njit(cache=True, nogil=True, error_model="numpy", fastmath=_SAFE | {"nnan"})
"""For screening: a NaN may be kept or not, the loss shows it."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="jumpahead")


def spread(loop: Callable[..., Any], n: int, *arguments: Any) -> None:
    """Run loop(start, stop, *arguments) over ranges that cover 0 … n − 1, on torch's number of threads."""
    threads = torch.get_num_threads()
    pieces = min(n, threads * _PIECES)
    if threads == 1 or pieces < 2:
        loop(0, n, *arguments)
        return
    cuts = [n * piece // pieces for piece in range(pieces + 1)]
    ranges = list(itertools.pairwise(cuts))
    waiting = [_pool(threads - 1).submit(loop, *cut, *arguments) for i, cut in enumerate(ranges) if i % threads]
    for cut in ranges[::threads]:  # this thread's share
        loop(*cut, *arguments)
    for future in waiting:
        future.result()


@_parallel
def _dot(a, b):
    total = a.dtype.type(0)
    for t in range(len(a)):
        total += a[t] * b[t]
    return total


@_screen
def append_above(first, last, product, offset, floor, row, column, slots, counts):
    """Append every feature of a chunk whose π may exceed its bound to its token's slots.

    product [B, c] = x·W_encᵀ without bias; floor, column [c]: keep where product > floor_j − row_i·column_j. counts[i]
    goes on counting past the end of the slots, so that an overflow is seen.
    """
    width, room = product.shape[1], slots.shape[1]
    for i in range(first, last):
        n, r, p = counts[i], row[i], product[i]
        for block in range(width // _BLOCK + 1):
            start = block * _BLOCK
            if start + _BLOCK <= width:  # whole blocks without a hit are passed over by vector instructions
                hits = np.int32(0)
                for q in range(_BLOCK):
                    hits += np.int32(p[start + q] > floor[start + q] - r * column[start + q])
                if hits == 0:
                    continue
            for j in range(start, min(start + _BLOCK, width)):
                if p[j] > floor[j] - r * column[j]:
                    if n < room:
                        slots[i, n] = offset + j
                    n += 1
        counts[i] = n


@_serial
def _prune(slots, lows, highs, n, k, floor):
    """Keep, of the first n candidates of one token, those that can be among the k largest. Returns (n, floor)."""
    if n > k:
        floor = max(floor, np.partition(lows[:n], n - k)[n - k])
    kept = 0
    for q in range(n):
        if highs[q] >= floor:
            slots[kept], lows[kept], highs[kept] = slots[q], lows[q], highs[q]
            kept += 1
    return kept, floor


@_screen
def _kth_of_groups(product, bias, extra, r, column, k, best):
    """A lower bound of the k-th largest π of one token: the k-th largest of the maxima of len(best) ≥ k groups."""
    groups = len(best)
    best[:] = -np.inf
    for run in range(len(product) // groups):
        start = run * groups
        for g in range(groups):
            low = product[start + g] + bias[start + g] - (r * column[start + g] + extra[start + g])
            best[g] = low if low > best[g] else best[g]
    return np.partition(best, groups - k)[groups - k]


@_screen
def append_largest(
    first, last, product, offset, bias, extra, row, column, k, slots, lows, highs, counts, floors,
):  # fmt: skip
    """Append every feature of a chunk that may be among its token's k largest positive π.

    π lies within product + bias_j ± (row_i·column_j + extra_j). floors[i] is a lower bound of the k-th largest so far.
    Full slots are pruned; counts[i] = room + 1 where even that leaves no room.
    """
    width, room = product.shape[1], slots.shape[1]
    groups = 64
    while groups < 4 * k:
        groups *= 2
    best = np.empty(groups, product.dtype)
    for i in range(first, last):
        n, r, floor, p = counts[i], row[i], floors[i], product[i]
        if groups <= width:
            floor = max(floor, _kth_of_groups(p, bias, extra, r, column, k, best))
        for block in range(width // _BLOCK + 1):
            start = block * _BLOCK
            if start + _BLOCK <= width:
                hits = np.int32(0)
                for q in range(_BLOCK):
                    j = start + q
                    hits += np.int32(p[j] + bias[j] + (r * column[j] + extra[j]) >= floor)
                if hits == 0:
                    continue
            for j in range(start, min(start + _BLOCK, width)):
                middle, margin = p[j] + bias[j], r * column[j] + extra[j]
                if middle + margin >= floor and middle + margin > 0 and n <= room:
                    if n == room:
                        n, floor = _prune(slots[i], lows[i], highs[i], n, k, floor)
                    if n == room:
                        n = room + 1
                    elif middle + margin >= floor:
                        slots[i, n], lows[i, n], highs[i, n] = offset + j, middle - margin, middle + margin
                        n += 1
        counts[i], floors[i] = n, floor


@_parallel
def prune_all(first, last, slots, lows, highs, counts, floors, k):
    """Prune every token's candidates once more, after the last chunk."""
    for i in range(first, last):
        counts[i], floors[i] = _prune(slots[i], lows[i], highs[i], counts[i], k, floors[i])


@_parallel
def flatten(first, last, slots, indptr, token, feature):
    """Slots [B, room] into vectors [n], token by token."""
    for i in range(first, last):
        start = indptr[i]
        for q in range(indptr[i + 1] - start):
            token[start + q] = i
            feature[start + q] = slots[i, q]


@_serial
def by_feature(feature, colptr, order):
    """Counting sort: fill colptr [M + 1] and order [n]; stable, so entries of a feature stay in token order."""
    colptr[:] = 0
    for j in feature:
        colptr[j + 1] += 1
    for j in range(len(colptr) - 1):
        colptr[j + 1] += colptr[j]
    for q in range(len(feature)):
        j = feature[q]
        order[colptr[j]] = q
        colptr[j] += 1
    for j in range(len(colptr) - 1, 0, -1):
        colptr[j] = colptr[j - 1]
    colptr[0] = 0


@_parallel
def recompute(first, last, x, w_enc, b_enc, colptr, order, token, pre):
    """The canonical π of every entry: products and sum in float64, rounded once."""
    d = x.shape[1]
    for j in range(first, last):
        for q in range(colptr[j], colptr[j + 1]):
            i = token[order[q]]
            total = 0.0
            for t in range(d):
                total += np.float64(x[i, t]) * np.float64(w_enc[j, t])
            pre[order[q]] = total + np.float64(b_enc[j])


@_parallel
def mark_above(first, last, pre, feature, lower, keep):
    """keep[q] = π > lower of its feature."""
    for q in range(first, last):
        keep[q] = pre[q] > lower[feature[q]]


@_parallel
def mark_largest(first, last, pre, indptr, k, keep):
    """keep[q] = π is positive and among the k largest of its token; of equal ones the first, the lower feature."""
    for i in range(first, last):
        start, stop = indptr[i], indptr[i + 1]
        floor, ties = pre.dtype.type(0), 0
        if stop - start > k:
            floor = max(floor, np.partition(pre[start:stop], stop - start - k)[stop - start - k])
            above = 0
            for q in range(start, stop):
                above += pre[q] > floor
            ties = k - above
        for q in range(start, stop):
            keep[q] = pre[q] > floor
            if pre[q] == floor and floor > 0 and ties > 0:
                keep[q] = True
                ties -= 1


@_serial
def compress(keep, indptr, token, feature, pre, colptr, order):
    """Drop entries without `keep`, in place, from both orders. Returns how many are left."""
    place = np.empty(len(keep), np.int64)
    n = 0
    for i in range(len(indptr) - 1):
        start, stop = indptr[i], indptr[i + 1]
        indptr[i] = n
        for q in range(start, stop):
            place[q] = n
            if keep[q]:
                token[n], feature[n], pre[n] = token[q], feature[q], pre[q]
                n += 1
    indptr[-1] = n
    m = 0
    for j in range(len(colptr) - 1):
        start, stop = colptr[j], colptr[j + 1]
        colptr[j] = m
        for q in range(start, stop):
            if keep[order[q]]:
                order[m] = place[order[q]]
                m += 1
    colptr[-1] = m
    return n


@_serial
def merge(indptr, feature, pre, indptr2, feature2, pre2, bit, bit2, out_indptr, out_token, out_feature, out_pre, part):
    """Union of two supports of the same tokens; an entry of both gets both bits. Returns its length."""
    n = 0
    for i in range(len(indptr) - 1):
        out_indptr[i] = n
        a, b, stop, stop2 = indptr[i], indptr2[i], indptr[i + 1], indptr2[i + 1]
        while a < stop or b < stop2:
            left = a < stop and (b >= stop2 or feature[a] <= feature2[b])
            right = b < stop2 and (a >= stop or feature2[b] <= feature[a])
            part[n] = (bit if left else 0) | (bit2 if right else 0)
            out_token[n] = i
            out_feature[n] = feature[a] if left else feature2[b]
            out_pre[n] = pre[a] if left else pre2[b]
            a, b, n = a + left, b + right, n + 1
    out_indptr[-1] = n
    return n


@_parallel
def centre(first, last, x, bias, out, norms):
    """out = x − bias, and the norm of each row."""
    for i in range(first, last):
        total = x.dtype.type(0)
        for t in range(x.shape[1]):
            value = x[i, t] - bias[t]
            out[i, t] = value
            total += value * value
        norms[i] = np.sqrt(total)


@_parallel
def decode(first, last, indptr, feature, values, w_dec, bias, target, sign, out, squares):
    """out[i] = Σ value·d_j + bias − sign·target_i over token i's entries, and its squared norm.

    Entries with value zero are passed over.
    """
    d = w_dec.shape[1]
    sign = w_dec.dtype.type(sign)
    for i in range(first, last):
        for t in range(d):
            out[i, t] = bias[t] - sign * target[i, t]
        q, stop = indptr[i], indptr[i + 1]
        while q + 1 < stop:
            a, b = values[q], values[q + 1]
            if a != 0 or b != 0:
                j, k = feature[q], feature[q + 1]
                for t in range(d):
                    out[i, t] += a * w_dec[j, t] + b * w_dec[k, t]
            q += 2
        if q < stop and values[q] != 0:
            a, j = values[q], feature[q]
            for t in range(d):
                out[i, t] += a * w_dec[j, t]
        squares[i] = _dot(out[i], out[i])


@_parallel
def project(first, last, indptr, feature, residual, w_dec, scale, out):
    """out[q] = scale·residual_i·d_j at every entry."""
    scale = w_dec.dtype.type(scale)
    for i in range(first, last):
        for q in range(indptr[i], indptr[i + 1]):
            out[q] = scale * _dot(residual[i], w_dec[feature[q]])


@_parallel
def sums(first, last, colptr, order, vector, out):
    """out[j] = Σ vector over feature j's entries, in float64, in token order."""
    for j in range(first, last):
        total = 0.0
        for q in range(colptr[j], colptr[j + 1]):
            total += np.float64(vector[order[q]])
        out[j] = total


@_parallel
def _adam(w, v, g, lr, decay, rest, correction, epsilon):
    """One lazy Adam step on a row, in place; decay = β₂^skipped, rest = 1 − β₂."""
    for t in range(len(w)):
        moment = decay * v[t] + rest * g[t] * g[t]
        v[t] = moment
        w[t] -= lr * g[t] / (np.sqrt(moment) * correction + epsilon)


@_parallel
def _gather(j, colptr, order, token, x, d_pre, values, residuals, scales, g_enc, g_dec):
    """Gradient rows of feature j before norm handling. Returns whether anything but zero went in."""
    d = x.shape[1]
    zero = x.dtype.type(0)
    for t in range(d):
        g_enc[t] = zero
        g_dec[t] = zero
    touched = False
    for place in range(colptr[j], colptr[j + 1]):
        q = order[place]
        i, c = token[q], d_pre[q]
        if c != 0:
            touched = True
            for t in range(d):
                g_enc[t] += c * x[i, t]
        for r in range(values.shape[0]):
            a = values[r, q] * scales[r]
            if a != 0:
                touched = True
                for t in range(d):
                    g_dec[t] += a * residuals[r, i, t]
    return touched


@_parallel
def rows(
    first, last, colptr, order, token, x, d_pre, values, residuals, scales, shrink, unit,
    w_enc, w_dec, v_enc, v_dec, last_step, norms, step, lr, beta2, correction, epsilon,
):  # fmt: skip
    """Gradient rows, decoder norm, lazy Adam, renormalisation, of every touched feature. No gradient leaves a row.

    values [r, n], residuals [r, B, d] and scales [r] of the live reconstructions: ∂L/∂x̂ = scale·residual. shrink [M] or
    empty; norms [M] follow w_enc.
    """
    d, kind = w_enc.shape[1], w_enc.dtype.type
    g_enc, g_dec = np.empty(d, w_enc.dtype), np.empty(d, w_enc.dtype)
    for j in range(first, last):
        if colptr[j] == colptr[j + 1]:
            continue
        if not _gather(j, colptr, order, token, x, d_pre, values, residuals, scales, g_enc, g_dec):
            continue
        row = w_dec[j]
        if len(shrink) and shrink[j] != 0:
            scale = shrink[j] / np.sqrt(_dot(row, row))
            for t in range(d):
                g_dec[t] += scale * row[t]
        if unit:
            along = _dot(g_dec, row)
            for t in range(d):
                g_dec[t] -= along * row[t]
        decay = kind(math.pow(beta2, step - last_step[j]))
        last_step[j] = step
        _adam(w_enc[j], v_enc[j], g_enc, kind(lr), decay, kind(1 - beta2), kind(correction), kind(epsilon))
        _adam(row, v_dec[j], g_dec, kind(lr), decay, kind(1 - beta2), kind(correction), kind(epsilon))
        if unit:
            scale = kind(1) / np.sqrt(_dot(row, row))
            for t in range(d):
                row[t] *= scale
        norms[j] = np.sqrt(_dot(w_enc[j], w_enc[j]))
