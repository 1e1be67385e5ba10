"""Entries in feature-major order: filtering, merging, and conversion to a `Support`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from jumpahead.engine.kernels.numba.entry_loops import (
    copy_kept,
    count_kept,
    count_tokens,
    count_union,
    expand_features,
    merge,
    place_by_token,
)
from jumpahead.engine.kernels.numba.threads import parallel_for, split_range
from jumpahead.engine.supports import Support
from jumpahead.sae.support import DEAD, MAIN


class FeatureMajorEntries(NamedTuple):
    """Entries sorted by feature, then by token (CSC format)."""

    colptr: np.ndarray
    """[M + 1] int64: feature j's entries are colptr[j] … colptr[j + 1] − 1."""
    token: np.ndarray
    """[n] int32."""
    pre: np.ndarray
    """[n] pre-activations, or upper bounds of them."""


def keep_entries(entries: FeatureMajorEntries, keep: np.ndarray) -> FeatureMajorEntries:
    """Return the entries q with keep[q]."""
    counts = np.empty(len(entries.colptr) - 1, np.int64)
    parallel_for(count_kept, len(counts), entries.colptr, keep, counts)
    colptr = offsets_from_counts(counts)
    token, pre = np.empty(colptr[-1], entries.token.dtype), np.empty(colptr[-1], entries.pre.dtype)
    parallel_for(copy_kept, len(counts), *entries, keep, colptr, token, pre)
    return FeatureMajorEntries(colptr, token, pre)


def offsets_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the start of each segment, and the end of the last one: [n + 1] int64."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def token_order(token: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indptr [B + 1] and order [n], the entries sorted by token, by a stable counting sort."""
    ranges = split_range(len(token), torch.get_num_threads())
    counts = np.zeros((len(ranges), tokens), np.int64)
    one_each = [(r, r + 1) for r in range(len(ranges))]
    starts = np.array([start for start, _ in ranges] + [len(token)], np.int64)
    parallel_for(count_tokens, one_each, starts, token, counts)
    indptr = offsets_from_counts(counts.sum(0))
    position = indptr[:-1] + np.cumsum(counts, 0) - counts
    order = np.empty(len(token), np.int32)
    parallel_for(place_by_token, one_each, starts, token, position, order)
    return indptr, order


def to_support(entries: FeatureMajorEntries, tokens: int, part: np.ndarray | None = None) -> Support:
    """Return the entries as a Support. part: [n] uint8 bits MAIN and DEAD; None if all entries are MAIN."""
    feature = np.empty(len(entries.token), np.int32)
    parallel_for(expand_features, len(entries.colptr) - 1, entries.colptr, feature)
    indptr, order = token_order(entries.token, tokens)
    t = torch.from_numpy
    return Support(
        t(entries.colptr), t(entries.token), t(feature), t(entries.pre), None if part is None else t(part),
        t(indptr), t(order),
    )  # fmt: skip


def merge_entries(main: FeatureMajorEntries, dead: FeatureMajorEntries, tokens: int) -> Support:
    """Return the union of main entries and entries among dead features as a Support."""
    counts = np.empty(len(main.colptr) - 1, np.int64)
    parallel_for(count_union, len(counts), *main[:2], *dead[:2], counts)
    colptr = offsets_from_counts(counts)
    union = FeatureMajorEntries(colptr, np.empty(colptr[-1], np.int32), np.empty(colptr[-1], main.pre.dtype))
    part = np.empty(colptr[-1], np.uint8)
    parallel_for(merge, len(counts), *main, *dead, MAIN, DEAD, *union, part)
    return to_support(union, tokens, part)
