"""Cut documents into chunks (token sequences that fit a context), and pack chunks into contexts."""

from __future__ import annotations

import numpy as np

from jumpahead.text.permutation import fixed_permutation
from jumpahead.text.token_files import ShardedArray

ORDER_SEED = 2407_14435
"""Seed of the fixed order of contexts. Changing the seed would change the stream of activations of every study."""


def cut_documents(
    document_tokens: list[int], chunk_tokens: int, min_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into chunks of at most `chunk_tokens` tokens; drop chunks with fewer than `min_tokens` tokens.

    document_tokens: number of tokens of each document. Return, for each chunk, the index of its first token in the
    concatenated documents, int64 [chunks], its length, int64 [chunks], and its document index, int32 [chunks].
    """
    size = np.asarray(document_tokens, dtype=np.int64)
    first, count = np.cumsum(size) - size, -(-size // chunk_tokens)
    document = np.repeat(np.arange(len(document_tokens), dtype=np.int32), count)
    number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    start = first[document] + number * chunk_tokens
    length = np.minimum(chunk_tokens, size[document] - number * chunk_tokens)
    is_kept = length >= min_tokens
    return start[is_kept], length[is_kept], document[is_kept]


def drop_leading_bos(
    tokens: np.ndarray | ShardedArray, start: np.ndarray, length: np.ndarray, bos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and length of each chunk without the BOS that its text begins with.

    A context begins with a BOS of its own; with two, every activation of the context is another.
    """
    start, length = start.copy(), length.copy()
    doubled = np.arange(len(start))
    while len(doubled):
        doubled = doubled[length[doubled] > 0]
        doubled = doubled[np.asarray(tokens[start[doubled]]) == bos_id]
        start[doubled] += 1
        length[doubled] -= 1
    return start, length


def pack_best_fit(size: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack chunks into contexts of at most `capacity` tokens by best-fit decreasing bin packing.

    size: number of tokens of each chunk, int64 [chunks]. Return the chunk indices in the order of contexts, int64
    [chunks], and the number of chunks in each context, int64 [contexts]. Each chunk, the longest first, goes into the
    fullest context that has room. Within a context, chunks keep the order of the documents.
    """
    context = np.empty(len(size), np.int64)
    contexts_by_free: list[list[int]] = [[] for _ in range(capacity + 1)]
    """Open contexts by their number of free tokens."""
    free_bits, made = 0, 0
    """Bit f of `free_bits` is set if some open context has f free tokens."""
    for chunk in np.argsort(-size, kind="stable").tolist():
        need = int(size[chunk])
        fitting = free_bits >> need
        if fitting:
            free = need + (fitting & -fitting).bit_length() - 1
            number = contexts_by_free[free].pop()
            if not contexts_by_free[free]:
                free_bits &= ~(1 << free)
        else:
            free, number, made = capacity, made, made + 1
        context[chunk] = number
        if free > need:
            contexts_by_free[free - need].append(number)
            free_bits |= 1 << (free - need)
    rank = np.empty(made, np.int64)
    rank[fixed_permutation(made, ORDER_SEED)] = np.arange(made)
    return np.argsort(rank[context], kind="stable"), np.bincount(rank[context], minlength=made)
