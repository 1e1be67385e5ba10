"""Token ids on disk: shards that are written while the text is read, and memory-mapped when it is used.

tokens-00000.safetensors     `tokens`; `piece_lengths`, the tokens of each piece of text in it, in order;
                             `role_mask` if the text is conversations
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jumpahead.storage.tensors import map_array, write_tensors

TOKENS_PER_SHARD = 2**26
"""Tokens in a file; a piece of text is not divided, so that there may be a few more."""


class ShardedArray:
    """A one-dimensional array stored in several files, read by index or by slice."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self._first = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self._first[-1]),)

    def __len__(self) -> int:
        """Return the number of elements of all parts together."""
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """Return a copy of the elements at these indices, or of a slice of step 1."""
        if isinstance(index, slice):
            low, high, step = index.indices(len(self))
            assert step == 1, "a sharded array takes slices of step 1"
            bounds = zip(self.parts, self._first[:-1], strict=True)
            return np.concatenate([part[max(0, low - first) : max(0, high - first)] for part, first in bounds])
        if len(self.parts) == 1:
            return self.parts[0][index]
        found = np.empty(index.shape, self.dtype)
        part = np.searchsorted(self._first, index, side="right") - 1
        for number in np.unique(part):
            here = part == number
            found[here] = self.parts[number][index[here] - self._first[number]]
        return found


def array_parts(array: np.ndarray | ShardedArray) -> list[np.ndarray]:
    """Return the parts of a sharded array in order; a plain array is its only part."""
    return array.parts if isinstance(array, ShardedArray) else [array]


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of one shard of a split's folder."""
    return folder / f"tokens-{number:05d}.safetensors"


def write_shard(
    folder: Path,
    number: int,
    tokens: np.ndarray,
    role_mask: np.ndarray | None,
    piece_lengths: np.ndarray,
    info: dict[str, str],
) -> None:
    """Write one shard. `info` is kept in the file's header."""
    mask = {} if role_mask is None else {"role_mask": role_mask}
    write_tensors(shard_path(folder, number), {"tokens": tokens, "piece_lengths": piece_lengths, **mask}, info)


def map_shards(folder: Path, shards: int, key: str) -> ShardedArray:
    """Return one array of a folder's first `shards` shards, memory-mapped."""
    return ShardedArray([map_array(shard_path(folder, number), key) for number in range(shards)])
