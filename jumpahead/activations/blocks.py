"""The stream of training batches: batch i is a function of (study, seed, i) alone.

    epoch e     permutes the groups by (seed, e)
    block w     the next K groups of that order, their rows permuted by (seed, e, w) …
    batch j     … and cut into batches; what is left over at the end of a block is dropped

Rows per group are known without the language model, so where batch i lies is arithmetic: nothing is carried from batch
to batch, and a stream that starts at batch i gives the same bytes as one that arrives there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.activations.base import Activations
from jumpahead.errors import DataError
from jumpahead.lm.contexts import shuffled


class Place(NamedTuple):
    """Where a batch lies."""

    epoch: int
    block: int
    batch: int
    """Its number within the block."""


class _Epoch(NamedTuple):
    order: np.ndarray
    """int64 [groups]: the groups as this epoch visits them."""
    ends: np.ndarray
    """int64 [blocks]: batches up to and with each block."""


class Stream:
    """Batches of one study's activations in the order of one seed."""

    def __init__(self, activations: Activations, batch: int, groups_per_block: int | None = None, seed: int = 0):
        self.activations = activations
        self.batch = batch
        """Rows per batch."""
        self.groups_per_block = groups_per_block or activations.groups_per_block
        self.seed = seed
        self._epochs: dict[int, _Epoch] = {}
        rows = activations.rows_per_group
        # The smallest full block there can be; the last one of an epoch may be smaller, and then gives nothing.
        smallest = int(np.sort(rows)[: self.groups_per_block].sum())
        if smallest < batch:
            raise DataError(
                f"a block of {min(self.groups_per_block, len(rows))} groups can have as few as {smallest} activations, "
                f"less than one batch of {batch}: give more text, a larger activations.block, or a smaller train.batch."
            )

    def batches_per_epoch(self, epoch: int = 0) -> int:
        """Whole batches of an epoch; epochs differ a little, since each drops other rows."""
        return int(self._epoch(epoch).ends[-1])

    def where(self, i: int) -> Place:
        """The epoch, the block in it and the place in the block of batch i."""
        epoch = 0
        while i >= (count := self.batches_per_epoch(epoch)):
            i, epoch = i - count, epoch + 1
        ends = self._epoch(epoch).ends
        block = int(np.searchsorted(ends, i, side="right"))
        return Place(epoch, block, i - (int(ends[block - 1]) if block else 0))

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches start, start + 1, … without end: float32 [batch, d] at every site, in the LM's own unit."""
        epoch, block, batch = self.where(start)
        while True:
            ends = self._epoch(epoch).ends
            for w in range(block, len(ends)):
                count = int(ends[w]) - (int(ends[w - 1]) if w else 0)
                if count > batch:
                    yield from self._block(epoch, w, batch, count)
                batch = 0
            epoch, block = epoch + 1, 0

    def distinct_rows(self, batches: int) -> int:
        """Different activations among the first `batches` batches, at most."""
        return min(batches * self.batch, self.activations.total)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            rows = self.activations.rows_per_group
            order = shuffled(len(rows), self.seed, epoch)
            blocks = np.add.reduceat(rows[order], np.arange(0, len(rows), self.groups_per_block))
            self._epochs[epoch] = _Epoch(order, np.cumsum(blocks // self.batch))
        return self._epochs[epoch]

    def _block(self, epoch: int, block: int, first: int, count: int) -> Iterator[dict[str, Tensor]]:
        """Batches first … count − 1 of a block, whose rows are held in memory meanwhile."""
        groups = self._epoch(epoch).order[block * self.groups_per_block :][: self.groups_per_block]
        parts = [self.activations.rows(int(group)) for group in groups]
        rows = {site: torch.cat([part[site] for part in parts]) for site in self.activations.widths}
        del parts
        order = torch.from_numpy(shuffled(int(self.activations.rows_per_group[groups].sum()), self.seed, epoch, block))
        for j in range(first, count):
            index = order[j * self.batch : (j + 1) * self.batch]
            yield {site: x.index_select(0, index.to(x.device)).float() for site, x in rows.items()}
