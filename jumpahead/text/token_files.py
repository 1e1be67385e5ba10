"""Token ids on disk, in shards (files of about `TOKENS_PER_SHARD` tokens) that are memory-mapped for reading.

tokens-00000.safetensors     `tokens`; `piece_lengths`, the number of tokens of each piece of text in the shard, in
                             order; `role_mask` if the text is conversations
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jumpahead.storage.tensors import map_array, write_tensors

TOKENS_PER_SHARD = 2**26
"""Number of tokens after which a shard ends. A shard may hold more, because a piece of text is never divided."""


class ShardedArray:
    """A one-dimensional array stored in several files, read by index or by slice."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self._first = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self._first[-1]),)

    def __len__(self) -> int:
        """Return the total number of elements."""
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """Return a copy of the elements at an array of indices, or of a slice with step 1."""
        if isinstance(index, slice):
            low, high, step = index.indices(len(self))
            assert step == 1, "a sharded array takes slices of step 1"
            bounds = zip(self.parts, self._first[:-1], strict=True)
            return np.concatenate([part[max(0, low - first) : max(0, high - first)] for part, first in bounds])
        if len(self.parts) == 1:
            return self.parts[0][index]
        elements = np.empty(index.shape, self.dtype)
        part = np.searchsorted(self._first, index, side="right") - 1
        for number in np.unique(part):
            here = part == number
            elements[here] = self.parts[number][index[here] - self._first[number]]
        return elements


def array_parts(array: np.ndarray | ShardedArray) -> list[np.ndarray]:
    """Return the arrays whose concatenation is `array`: one per file of a sharded array, or the array itself."""
    return array.parts if isinstance(array, ShardedArray) else [array]


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of shard `number` in a folder."""
    return folder / f"tokens-{number:05d}.safetensors"


def write_shard(
    folder: Path,
    number: int,
    tokens: np.ndarray,
    role_mask: np.ndarray | None,
    piece_lengths: np.ndarray,
    info: dict[str, str],
) -> None:
    """Write shard `number` of a folder.

    tokens: uint16 or uint32 [tokens].
    role_mask: bool [tokens], or None if the text is not conversations.
    piece_lengths: number of tokens of each piece of text, int64 [pieces].
    info: strings to store in the header of the file.
    """
    mask = {} if role_mask is None else {"role_mask": role_mask}
    write_tensors(shard_path(folder, number), {"tokens": tokens, "piece_lengths": piece_lengths, **mask}, info)


def map_shards(folder: Path, shards: int, key: str) -> ShardedArray:
    """Return the array named `key`, memory-mapped and concatenated over the first `shards` shards of a folder."""
    return ShardedArray([map_array(shard_path(folder, number), key) for number in range(shards)])
