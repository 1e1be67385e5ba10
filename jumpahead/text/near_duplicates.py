"""Find held-out documents that are nearly copies of training text, by the token n-grams that they share with it.

A shingle is a sequence of n consecutive tokens. Of each held-out document, the `SKETCH_SHINGLES` distinct shingles with
the smallest hashes (a uniform sample; all of them, if there are fewer) are looked up among all shingles of the training
tokens. The share that is found estimates the share of the document that also occurs in the training text, with a
standard error of 3.5 percentage points at a share of 80 %.

Memory does not grow with the training text: at most 9 · `SKETCH_SHINGLES` bytes per held-out document, the 16 MiB of
`_FILTER_SLOTS`, and the hashes of `_TOKENS_AT_ONCE` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jumpahead.text.token_files import ShardedArray

MAX_SHARED = 0.8
"""A held-out document is a near-duplicate if the training text contains more than this share of its shingles."""
SKETCH_SHINGLES = 128
"""Maximum number of shingles of a document that are looked up."""
SHINGLE_BITS = 200
"""A shingle has the fewest tokens whose ids could carry this many bits: 13 with 50,257 token ids, 17 with 4,096."""
_FILTER_SLOTS = 2**24
"""Slots of the table that most training shingles are rejected by."""
_TOKENS_AT_ONCE = 2**20
_BASE = 0x9E3779B97F4A7C15
"""Base of the polynomial hash of a shingle, modulo 2⁶⁴; odd."""


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
    """Return the indices of the held-out documents of which the training tokens contain more than `MAX_SHARED`.

    train, held_out: token ids of all documents of a split, concatenated.
    document_tokens: number of tokens of each held-out document.
    length: tokens of a shingle. Documents with fewer tokens are never returned.
    role_mask: mask of the held-out tokens of trained roles, bool, or None. Only shingles that end in such tokens count,
    because many conversations share a prompt.
    """
    sketches = list(_sketches(held_out, document_tokens, length, role_mask))
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *sketches]))
    is_found = _find(wanted, (shingle_hashes(block, length) for block in _overlapping_blocks(train, length)))
    return [
        i for i, sketch in enumerate(sketches)
        if len(sketch) and is_found[np.searchsorted(wanted, sketch)].mean() > MAX_SHARED
    ]  # fmt: skip


def _sketches(
    tokens: np.ndarray | ShardedArray,
    document_tokens: Sequence[int],
    length: int,
    role_mask: np.ndarray | ShardedArray | None,
) -> Iterator[np.ndarray]:
    """Yield, per document, its `SKETCH_SHINGLES` smallest distinct hashes in increasing order."""
    start = 0
    for size in document_tokens:
        hashes = shingle_hashes(tokens[start : start + size], length)
        if role_mask is not None:
            hashes = hashes[role_mask[start : start + size][length - 1 :]]
        yield np.unique(hashes)[:SKETCH_SHINGLES].copy()
        start += size


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
