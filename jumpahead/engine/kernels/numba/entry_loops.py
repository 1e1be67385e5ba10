"""Compiled loops over feature-major entries: filter, merge, and sort by token.

colptr [M + 1] · starts [ranges + 1] · token, pre, feature, order [n]. Each feature or range is processed by one thread.
"""

from __future__ import annotations

from jumpahead.engine.kernels.numba.jit import reassociating, strict


@reassociating
def count_kept(first, last, colptr, keep, counts):
    """Set counts[j] to the number of entries q of feature j with keep[q]."""
    for j in range(first, last):
        n = 0
        for q in range(colptr[j], colptr[j + 1]):
            n += keep[q]
        counts[j] = n


@reassociating
def copy_kept(first, last, colptr, token, pre, keep, new_colptr, new_token, new_pre):
    """Copy the entries with `keep` to the positions given by new_colptr."""
    for j in range(first, last):
        n, stop = new_colptr[j], new_colptr[j + 1]
        for q in range(colptr[j], colptr[j + 1]):
            if n < stop:  # predictable, unlike `keep`; dropped entries are overwritten
                new_token[n], new_pre[n] = token[q], pre[q]
                n += keep[q]


@reassociating
def count_union(first, last, colptr, token, colptr2, token2, counts):
    """Set counts[j] to the number of entries of feature j in the union of two sets."""
    for j in range(first, last):
        a, b, stop, stop2, n = colptr[j], colptr2[j], colptr[j + 1], colptr2[j + 1], 0
        while a < stop and b < stop2:
            left, right = token[a] <= token2[b], token2[b] <= token[a]
            a, b, n = a + left, b + right, n + 1
        counts[j] = n + stop - a + stop2 - b


@reassociating
def merge(
    first, last, colptr, token, pre, colptr2, token2, pre2, bit, bit2, out_colptr, out_token, out_pre, part
):  # fmt: skip
    """Write the union of two sets to the positions given by out_colptr; an entry of both sets gets both bits."""
    for j in range(first, last):
        n, a, b, stop, stop2 = out_colptr[j], colptr[j], colptr2[j], colptr[j + 1], colptr2[j + 1]
        while a < stop or b < stop2:
            left = a < stop and (b >= stop2 or token[a] <= token2[b])
            right = b < stop2 and (a >= stop or token2[b] <= token[a])
            part[n] = (bit if left else 0) | (bit2 if right else 0)
            out_token[n] = token[a] if left else token2[b]
            out_pre[n] = pre[a] if left else pre2[b]
            a, b, n = a + left, b + right, n + 1


@strict
def count_tokens(first, last, starts, token, counts):
    """Add to counts[r, i] the number of entries of token i in range r: starts[r] … starts[r + 1] − 1."""
    for r in range(first, last):
        for q in range(starts[r], starts[r + 1]):
            counts[r, token[q]] += 1


@strict
def place_by_token(first, last, starts, token, position, order):
    """Run the placement pass of a stable counting sort, in ranges.

    position[r, i]: where the first entry of token i in range r is placed.
    """
    for r in range(first, last):
        for q in range(starts[r], starts[r + 1]):
            i = token[q]
            order[position[r, i]] = q
            position[r, i] += 1


@reassociating
def expand_features(first, last, colptr, feature):
    """Set feature[q] = j for every entry q of feature j."""
    for j in range(first, last):
        for q in range(colptr[j], colptr[j + 1]):
            feature[q] = j
