"""Compiled loops of the pass over the text: per feature, entries in the order of the text are added to its statistics.

    n           entries of a feature: value[e] > 0 at row[e], which is token offset[row] of text chunk chunk[row]

What a loop writes depends on the entries and their order alone, not on how they are divided into calls, as long as a
text chunk is not divided.
"""

from __future__ import annotations

import math

import numpy as np

from jumpahead.engine.kernels.numba.jit import inlined, strict

BINS = 40
"""Bins of the histogram of a feature's activations."""
BEFORE, AFTER = 20, 10
"""Tokens before and after an example at which activations are kept."""
WINDOW = BEFORE + 1 + AFTER


@inlined
def add_to_histogram(counts, exponent, j, value):
    """Count a value of feature j in one of `BINS` equal bins from 0 to 2^exponent.

    If the value is beyond, pairs of bins are merged until it is not. The result does not depend on the order of values.
    """
    _, needed = math.frexp(value)
    if exponent[j] == np.iinfo(np.int16).min:
        exponent[j] = needed
    while exponent[j] < needed:
        for b in range(BINS // 2):
            counts[j, b] = counts[j, 2 * b] + counts[j, 2 * b + 1]
        for b in range(BINS // 2, BINS):
            counts[j, b] = 0
        exponent[j] += 1
    counts[j, int(math.ldexp(value * BINS, -exponent[j]))] += 1


@inlined
def fill_window(window, e, start, stop, row, value, chunk, offset):
    """Set `window` to the feature's activations around entry e, within the entry's text chunk.

    start, stop: the feature's entries.
    """
    window[:] = 0
    c, o = chunk[row[e]], offset[row[e]]
    q = e
    while q >= start and chunk[row[q]] == c and o - offset[row[q]] <= BEFORE:
        window[BEFORE + offset[row[q]] - o] = value[q]
        q -= 1
    q = e + 1
    while q < stop and chunk[row[q]] == c and offset[row[q]] - o <= AFTER:
        window[BEFORE + offset[row[q]] - o] = value[q]
        q += 1


@inlined
def open_slot(at, values, chunks, offsets, windows):
    """Move the examples from slot `at` on by one slot; the last is dropped."""
    for s in range(len(values) - 1, at, -1):
        values[s], chunks[s], offsets[s] = values[s - 1], chunks[s - 1], offsets[s - 1]
        windows[s] = windows[s - 1]


@inlined
def priority_of(chunk, offset, feature):
    """Return a pseudo-random uint64 for an entry: splitmix64 of its place in the text and its feature."""
    z = (np.uint64(chunk) << np.uint64(32)) ^ np.uint64(offset)
    z = z * np.uint64(0xD6E8FEB86659FD93) + np.uint64(feature) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@strict
def add_statistics(first, last, colptr, value, count, total, histogram, exponent):
    """Add the entries of features first … last − 1 to their counts, sums and histograms."""
    for j in range(first, last):
        for e in range(colptr[j], colptr[j + 1]):
            count[j] += 1
            total[j] += value[e]
            add_to_histogram(histogram, exponent, j, float(value[e]))


@strict
def add_top(first, last, colptr, row, value, chunk, offset, top_value, top_chunk, top_offset, top_window):
    """Insert the strongest entry of each text chunk into the feature's strongest, sorted by descending value.

    Of equal values the first in the text comes first. Empty slots have the value 0.
    """
    slots = top_value.shape[1]
    for j in range(first, last):
        start, stop = colptr[j], colptr[j + 1]
        e = start
        while e < stop:
            best, c = e, chunk[row[e]]
            while e < stop and chunk[row[e]] == c:
                if value[e] > value[best]:
                    best = e
                e += 1
            if value[best] <= top_value[j, slots - 1]:
                continue
            at = slots - 1
            while at > 0 and value[best] > top_value[j, at - 1]:
                at -= 1
            open_slot(at, top_value[j], top_chunk[j], top_offset[j], top_window[j])
            top_value[j, at], top_chunk[j, at], top_offset[j, at] = value[best], c, offset[row[best]]
            fill_window(top_window[j, at], best, start, stop, row, value, chunk, offset)


@strict
def add_sample(
    first, last, colptr, row, value, chunk, offset, priority, sample_value, sample_chunk, sample_offset, sample_window
):
    """Insert entries into the feature's random sample: those of smallest priority, sorted by ascending priority.

    Empty slots have the value 0 and the largest priority.
    """
    slots = sample_value.shape[1]
    for j in range(first, last):
        start, stop = colptr[j], colptr[j + 1]
        for e in range(start, stop):
            r = row[e]
            p = priority_of(chunk[r], offset[r], j)
            if p >= priority[j, slots - 1]:
                continue
            at = slots - 1
            while at > 0 and p < priority[j, at - 1]:
                priority[j, at] = priority[j, at - 1]
                at -= 1
            priority[j, at] = p
            open_slot(at, sample_value[j], sample_chunk[j], sample_offset[j], sample_window[j])
            sample_value[j, at], sample_chunk[j, at], sample_offset[j, at] = value[e], chunk[r], offset[r]
            fill_window(sample_window[j, at], e, start, stop, row, value, chunk, offset)
