"""The stream of shuffled training batches: batch i is a function of (study, seed, i) alone.

    epoch e     permutes the groups by (seed, e)
    block w     the next K groups of the permutation of epoch e; a block's rows are permuted by (seed, e, w)
    batch j     the next `batch` rows of the block's permutation; a remainder of less than one batch is dropped

The location of batch i is computed from the rows per group, which are known without the language model. No state is
carried between batches: a stream that starts at batch i yields the same bytes as a stream that starts at batch 0. If
`Activations.prefetches_in_thread`, the next block is read in another thread while batches of the current block are
used; on a GPU, the next block's groups are launched on a second stream of the GPU, and activations never leave the GPU.
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

from jumpahead.activations.base import Activations, concatenate_groups
from jumpahead.activations.prefetch import prefetch_in_thread, prefetch_on_gpu_stream
from jumpahead.errors import DataError
from jumpahead.text.permutation import fixed_permutation


class BatchLocation(NamedTuple):
    """The location of a batch in the stream: epoch, block within the epoch, batch within the block."""

    epoch: int
    block: int
    batch: int
    """Number of the batch within the block, from 0."""


class _EpochOrder(NamedTuple):
    """The permutation of the groups in one epoch, and the batches of each block."""

    order: np.ndarray
    """int64 [groups]: the permutation of the groups."""
    ends: np.ndarray
    """int64 [blocks]: number of batches in the epoch up to and including each block."""


class _BlockVisit(NamedTuple):
    """A block to read, and the batches of the block to yield."""

    epoch: int
    block: int
    groups: list[int]
    batches: range
    """Numbers of the batches to yield, within the block."""


class _Block(NamedTuple):
    """The rows of one block in memory, and their permutation."""

    rows: dict[str, Tensor]
    """[rows, d] by site, in the order of the groups."""
    order: Tensor
    """int64 [rows]: the permutation in which the rows are divided into batches."""


class Stream:
    """Training batches of activations, shuffled with one seed."""

    def __init__(self, activations: Activations, batch: int, groups_per_block: int | None = None, seed: int = 0):
        self.activations = activations
        self.batch = batch
        """Rows per batch."""
        self.groups_per_block = groups_per_block or activations.groups_per_block
        self.seed = seed
        self.read_seconds = 0.0
        """Seconds spent so far on reading or computing blocks, possibly concurrently with training."""
        self._epochs: dict[int, _EpochOrder] = {}
        rows = activations.rows_per_group
        # The smallest possible full block. The last block of an epoch may be smaller and yield no batch.
        smallest = int(np.sort(rows)[: self.groups_per_block].sum())
        if smallest < batch:
            raise DataError(
                f"a block of {min(self.groups_per_block, len(rows))} groups can have as few as {smallest} activations, "
                f"less than one batch of {batch}: give more text, a larger activations.block, or a smaller train.batch."
            )

    def batches_per_epoch(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch. Epochs differ because the remainders that blocks drop differ."""
        return int(self._epoch(epoch).ends[-1])

    def location(self, i: int) -> BatchLocation:
        """Return the location of batch i, counted from the start of the stream."""
        epoch = 0
        while i >= (count := self.batches_per_epoch(epoch)):
            i, epoch = i - count, epoch + 1
        ends = self._epoch(epoch).ends
        block = int(np.searchsorted(ends, i, side="right"))
        return BatchLocation(epoch, block, i - (int(ends[block - 1]) if block else 0))

    def batches(self, start: int = 0) -> Generator[dict[str, Tensor]]:
        """Yield batches start, start + 1, … without end: float32 [batch, d] by site, in the LM's unit.

        The caller must close the generator, because a prefetching thread may be reading the next block.
        """
        with contextlib.closing(self._blocks(start)) as blocks:
            for visit in self._visits(start):
                yield from self._batches_of_block(visit, next(blocks))

    def distinct_rows(self, batches: int) -> int:
        """Return an upper bound on the number of distinct rows among the first `batches` batches."""
        return min(batches * self.batch, self.activations.total_rows)

    def _epoch(self, epoch: int) -> _EpochOrder:
        """Return the permutation of groups and the batch counts of an epoch, cached."""
        if epoch not in self._epochs:
            rows = self.activations.rows_per_group
            order = fixed_permutation(len(rows), self.seed, epoch)
            blocks = np.add.reduceat(rows[order], np.arange(0, len(rows), self.groups_per_block))
            self._epochs[epoch] = _EpochOrder(order, np.cumsum(blocks // self.batch))
        return self._epochs[epoch]

    def _visits(self, start: int) -> Iterator[_BlockVisit]:
        """Yield the blocks to read for batches start, start + 1, …, without end."""
        epoch, block, batch = self.location(start)
        while True:
            order, ends = self._epoch(epoch)
            for w in range(block, len(ends)):
                count = int(ends[w]) - (int(ends[w - 1]) if w else 0)
                if count > batch:
                    groups = order[w * self.groups_per_block :][: self.groups_per_block].tolist()
                    yield _BlockVisit(epoch, w, groups, range(batch, count))
                batch = 0
            epoch, block = epoch + 1, 0

    def _blocks(self, start: int) -> Generator[_Block]:
        """Return a generator of the blocks in `_visits(start)`, prefetched if the origin allows prefetching."""
        if self.activations.prefetches_in_thread:
            return prefetch_in_thread(self._read_block, self._visits(start), 1)
        if self.activations.device.type == "cuda":
            return self._prefetched_on_gpu(start)
        return (self._read_block(visit) for visit in self._visits(start))

    def _read_block(self, visit: _BlockVisit) -> _Block:
        """Read a block and return its rows with their permutation; add the time to `read_seconds`."""
        began = time.perf_counter()
        block = self._with_order(visit, self.activations.gather(visit.groups))
        self._add_read_seconds(time.perf_counter() - began)
        return block

    def _add_read_seconds(self, seconds: float) -> None:
        """Add a duration in seconds to `read_seconds`."""
        self.read_seconds += seconds

    def _prefetched_on_gpu(self, start: int) -> Generator[_Block]:
        """Yield the blocks in `_visits(start)`; their groups are computed in advance on a second GPU stream."""
        groups = (group for visit in self._visits(start) for group in visit.groups)
        launch, device = self.activations.launch_rows, self.activations.device
        launched = prefetch_on_gpu_stream(launch, groups, self.groups_per_block, device, self._add_read_seconds)
        with contextlib.closing(launched) as rows:
            for visit in self._visits(start):
                total = int(self.activations.rows_per_group[visit.groups].sum())
                yield self._with_order(visit, concatenate_groups(itertools.islice(rows, len(visit.groups)), total))

    def _with_order(self, visit: _BlockVisit, rows: dict[str, Tensor]) -> _Block:
        """Return a block: the rows, with their permutation on the same device."""
        total = int(self.activations.rows_per_group[visit.groups].sum())
        order = torch.from_numpy(fixed_permutation(total, self.seed, visit.epoch, visit.block))
        return _Block(rows, order.to(self.activations.device))

    def _batches_of_block(self, visit: _BlockVisit, block: _Block) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of a block, float32 [batch, d] by site. The block stays in memory until the last batch."""
        for j in visit.batches:
            index = block.order[j * self.batch : (j + 1) * self.batch]
            yield {site: x.index_select(0, index).float() for site, x in block.rows.items()}
