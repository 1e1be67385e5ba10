"""Find held-out documents that are nearly copies of training text, by the token n-grams that they share with it.

A shingle is a sequence of n consecutive tokens. A token of a held-out document is covered if one of the shingles that
contain it occurs anywhere in the training tokens. A document is a near-duplicate if more than `MAX_SHARED` of its
tokens are covered. Of a long document, `SEGMENTS` evenly spaced segments of `SEGMENT_SHINGLES` shingles are looked up;
a document with no more shingles than these is looked up completely.

Memory does not grow with the training text: at most 9 bytes per held-out token and 9.2 kB per held-out document, the
16 MiB of `_FILTER_SLOTS`, and the hashes of `_TOKENS_AT_ONCE` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jumpahead.text.token_files import ShardedArray

MAX_SHARED = 0.8
"""A held-out document is a near-duplicate if more than this share of its tokens are covered by the training text."""
SEGMENTS = 16
"""Number of segments of a long document that are looked up."""
SEGMENT_SHINGLES = 64
"""Number of consecutive shingles of a segment; twice the shingle's length, if that is more."""
SHINGLE_BITS = 256
"""A shingle has the fewest tokens whose ids could carry this many bits: 17 with 50,257 token ids, 22 with 4,096."""
_FILTER_SLOTS = 2**24
"""Slots of the table that most training shingles are rejected by."""
_TOKENS_AT_ONCE = 2**20
_BASE = 0x9E3779B97F4A7C15
"""Base of the polynomial hash of a shingle, modulo 2⁶⁴; odd."""


class Segment(NamedTuple):
    """Consecutive shingles of a held-out document, and the tokens whose shingles are all among them."""

    document: int
    """Index of the document."""
    hashes: np.ndarray
    """uint64 [shingles]: hash of each shingle."""
    is_counted: np.ndarray
    """bool [shingles + n − 1]: tokens to judge, of those that the shingles consist of."""


def shingle_length(vocab_size: int) -> int:
    """Return the number of tokens of a shingle for a tokenizer with `vocab_size` token ids."""
    return math.ceil(SHINGLE_BITS / math.log2(max(2, vocab_size)))


def shingle_hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """Return the hash of every sequence of `length` consecutive tokens, uint64 [len(tokens) − length + 1].

    Hashes of different sequences differ, except with a probability of 2⁻⁶⁴ per pair. Returns [0] if there are too few
    tokens.
    """
    count = len(tokens) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    hashes, done = np.zeros(count, np.uint64), 0
    power, size = tokens.astype(np.uint64) + np.uint64(1), 1  # hashes of the sequences of `size` tokens
    while True:
        if length & size:
            hashes = hashes * _power(size) + power[done : done + count]
            done += size
        if 2 * size > length:
            return _mix(hashes)
        power = power[:-size] * _power(size) + power[size:]
        size *= 2


def near_duplicates(
    train: np.ndarray | ShardedArray,
    held_out: np.ndarray | ShardedArray,
    document_tokens: Sequence[int],
    length: int,
    role_mask: np.ndarray | ShardedArray | None = None,
) -> list[int]:
    """Return the indices of the held-out documents of which the training tokens cover more than `MAX_SHARED`.

    train, held_out: token ids of all documents of a split, concatenated.
    document_tokens: number of tokens of each held-out document.
    length: tokens of a shingle. Documents with fewer tokens are never returned.
    role_mask: mask of the held-out tokens of trained roles, bool, or None. Only these tokens are judged, because many
    conversations share a prompt.
    """
    segments = list(_segments(held_out, document_tokens, length, role_mask))
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *(segment.hashes for segment in segments)]))
    is_found = _find(wanted, (shingle_hashes(block, length) for block in _overlapping_blocks(train, length)))
    counted, covered = np.zeros((2, len(document_tokens)), np.int64)
    for segment in segments:
        is_covered = covered_tokens(is_found[np.searchsorted(wanted, segment.hashes)], length)
        counted[segment.document] += segment.is_counted.sum()
        covered[segment.document] += (is_covered & segment.is_counted).sum()
    return np.flatnonzero(covered > MAX_SHARED * counted).tolist()


def covered_tokens(is_found: np.ndarray, length: int) -> np.ndarray:
    """Return a mask of the tokens that are part of a shingle that was found, bool [shingles + length − 1].

    is_found: mask of consecutive shingles, bool [shingles].
    """
    change = np.zeros(len(is_found) + length, np.int64)
    change[: len(is_found)] += is_found
    change[length:] -= is_found
    return np.cumsum(change)[:-1] > 0


def _segments(
    tokens: np.ndarray | ShardedArray,
    document_tokens: Sequence[int],
    length: int,
    role_mask: np.ndarray | ShardedArray | None,
) -> Iterator[Segment]:
    """Yield the segments of every document that has at least one shingle."""
    run = max(SEGMENT_SHINGLES, 2 * length)
    first_token = 0
    for document, size in enumerate(document_tokens):
        shingles = size - length + 1
        starts, count = [0], shingles
        if shingles > SEGMENTS * run:
            starts, count = np.linspace(0, shingles - run, SEGMENTS).astype(int).tolist(), run
        for start in starts if shingles > 0 else []:
            here = slice(first_token + start, first_token + start + count + length - 1)
            is_counted = np.ones(count + length - 1, bool) if role_mask is None else np.array(role_mask[here])
            if start > 0:
                is_counted[: length - 1] = False  # they are part of earlier shingles too
            if start + count < shingles:
                is_counted[count:] = False
            yield Segment(document, shingle_hashes(tokens[here], length), is_counted)
        first_token += size


def _overlapping_blocks(tokens: np.ndarray | ShardedArray, length: int) -> Iterator[np.ndarray]:
    """Yield the tokens in blocks that overlap by `length` − 1 tokens, so that every shingle is in exactly one block."""
    for start in range(0, len(tokens) - length + 1, _TOKENS_AT_ONCE):
        yield tokens[start : start + _TOKENS_AT_ONCE + length - 1]


def _find(wanted: np.ndarray, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return a mask of the hashes `wanted` that occur in any of the blocks, bool [wanted]. wanted: sorted, distinct."""
    is_found, slots = np.zeros(len(wanted), bool), np.uint64(_FILTER_SLOTS - 1)
    if not len(wanted):
        return is_found
    table = np.zeros(_FILTER_SLOTS, bool)
    table[wanted & slots] = True
    for block in blocks:
        candidates = block[table[block & slots]]
        position = np.minimum(np.searchsorted(wanted, candidates), len(wanted) - 1)
        is_found[position[wanted[position] == candidates]] = True
    return is_found


def _power(exponent: int) -> np.uint64:
    """Return `_BASE` to the power of `exponent`, modulo 2⁶⁴."""
    return np.uint64(pow(_BASE, exponent, 2**64))


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Return hashes whose every bit depends on every bit of the input, by the finaliser of MurmurHash3, bijectively."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(33))
