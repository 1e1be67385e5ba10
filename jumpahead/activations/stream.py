"""The stream of training batches: batch i is a function of (study, seed, i) alone.

    epoch e     permutes the groups by (seed, e)
    block w     the next K groups of that order, their rows permuted by (seed, e, w) …
    batch j     … and cut into batches; what is left over at the end of a block is dropped

Rows per group are known without the language model, so where batch i lies is arithmetic: nothing is carried from batch
to batch, and a stream that starts at batch i gives the same bytes as one that arrives there. Where the origin allows it
(`Activations.is_read_ahead`), the next block is read in another thread while batches of this one are used; on a GPU its
groups are launched on a second stream of the GPU (`ahead.beside`), and activations never leave it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.activations.base import Activations, gathered
from jumpahead.activations.prefetch import ahead, beside
from jumpahead.errors import DataError
from jumpahead.text.contexts import shuffled


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


class _Visit(NamedTuple):
    """A block that is read, and which of its batches are wanted."""

    epoch: int
    block: int
    groups: list[int]
    batches: range
    """Numbers within the block."""


class _Block(NamedTuple):
    rows: dict[str, Tensor]
    """[rows, d] at every site."""
    order: Tensor
    """int64 [rows]: which row comes where."""


class Stream:
    """Batches of one study's activations in the order of one seed."""

    def __init__(self, activations: Activations, batch: int, groups_per_block: int | None = None, seed: int = 0):
        self.activations = activations
        self.batch = batch
        """Rows per batch."""
        self.groups_per_block = groups_per_block or activations.groups_per_block
        self.seed = seed
        self.seconds = 0.0
        """That reading blocks, or making them, has taken so far; beside the training where it is read ahead."""
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

    def batches(self, start: int = 0) -> Generator[dict[str, Tensor]]:
        """Batches start, start + 1, … without end: float32 [batch, d] at every site, in the LM's own unit.

        Close it when enough were taken: the next block may be being read.
        """
        with contextlib.closing(self._blocks(start)) as blocks:
            for visit in self._visits(start):
                yield from self._cut(visit, next(blocks))

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

    def _visits(self, start: int) -> Iterator[_Visit]:
        """The blocks that hold batches start, start + 1, …, without end."""
        epoch, block, batch = self.where(start)
        while True:
            order, ends = self._epoch(epoch)
            for w in range(block, len(ends)):
                count = int(ends[w]) - (int(ends[w - 1]) if w else 0)
                if count > batch:
                    groups = order[w * self.groups_per_block :][: self.groups_per_block].tolist()
                    yield _Visit(epoch, w, groups, range(batch, count))
                batch = 0
            epoch, block = epoch + 1, 0

    def _blocks(self, start: int) -> Generator[_Block]:
        """These blocks, in turn."""
        if self.activations.is_read_ahead:
            return ahead(self._read, self._visits(start), 1)
        if self.activations.device.type == "cuda":
            return self._beside(start)
        return (self._read(visit) for visit in self._visits(start))

    def _read(self, visit: _Visit) -> _Block:
        begun = time.perf_counter()
        block = self._block(visit, self.activations.gather(visit.groups))
        self._spent(time.perf_counter() - begun)
        return block

    def _spent(self, seconds: float) -> None:
        self.seconds += seconds

    def _beside(self, start: int) -> Generator[_Block]:
        """Blocks whose groups are launched ahead, group by group."""
        groups = (group for visit in self._visits(start) for group in visit.groups)
        begin, device = self.activations.begin, self.activations.device
        launched = beside(begin, groups, self.groups_per_block, device, self._spent)
        with contextlib.closing(launched) as rows:
            for visit in self._visits(start):
                total = int(self.activations.rows_per_group[visit.groups].sum())
                yield self._block(visit, gathered(itertools.islice(rows, len(visit.groups)), total))

    def _block(self, visit: _Visit, rows: dict[str, Tensor]) -> _Block:
        total = int(self.activations.rows_per_group[visit.groups].sum())
        order = torch.from_numpy(shuffled(total, self.seed, visit.epoch, visit.block))
        return _Block(rows, order.to(self.activations.device))

    def _cut(self, visit: _Visit, block: _Block) -> Iterator[dict[str, Tensor]]:
        """The batches of a block, whose rows are held in memory meanwhile."""
        for j in visit.batches:
            index = block.order[j * self.batch : (j + 1) * self.batch]
            yield {site: x.index_select(0, index).float() for site, x in block.rows.items()}
