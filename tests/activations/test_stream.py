"""The stream: batch i is a function of (study, seed, i) alone, and its location is computed, not counted."""

import itertools
import threading
import weakref

import numpy as np
import pytest
import torch

from jumpahead.activations.base import Activations
from jumpahead.activations.stream import BatchLocation, Stream
from jumpahead.errors import DataError


class Numbers(Activations):
    """Row r of group g is (g, r, 7, …), so that a row tells its origin."""

    def __init__(self, rows_per_group, dtype=torch.float32):
        self.widths = {"layers.0.residual": 4, "layers.2.mlp": 3}
        self.rows_per_group = np.array(rows_per_group)
        self.groups_per_block = 3
        self.digest = "numbers"
        self.dtype = dtype
        self.read_groups = []

    @classmethod
    def open(cls, config, **_):
        return cls([5])

    def rows(self, group):
        self.read_groups.append(group)
        n = int(self.rows_per_group[group])
        x = torch.stack([torch.full((n,), float(group)), torch.arange(n).float(), torch.full((n,), 7.0)], 1)
        return {"layers.0.residual": torch.cat([x, x[:, :1]], 1).to(self.dtype), "layers.2.mlp": x.to(self.dtype)}


ROWS = [9, 4, 0, 12, 7, 7, 3, 11, 8, 6, 5]  # 72 rows, 11 groups, blocks of 3, 3, 3, 2


def take(stream, start, count):
    return list(itertools.islice(stream.batches(start), count))


def origin_of(x):
    return [tuple(int(v) for v in row[:2]) for row in x["layers.2.mlp"]]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[site], y[site]) for x, y in zip(a, b, strict=True) for site in x)


def test_a_batch_depends_on_its_number_alone():
    straight = take(Stream(Numbers(ROWS), 5, seed=3), 0, 43)
    assert Stream(Numbers(ROWS), 5, seed=3).location(43).epoch >= 3
    for start in range(40):
        stream = Stream(Numbers(ROWS), 5, seed=3)
        take(stream, start // 2, start % 3)  # earlier reads do not change it
        assert same(take(stream, start, 3), straight[start : start + 3])


def test_prefetching_changes_only_when_groups_are_read():
    straight, early = Numbers(ROWS), Numbers(ROWS)
    early.prefetches_in_thread = True
    for start in (0, 4, 23):
        assert same(take(Stream(straight, 5, seed=3), start, 20), take(Stream(early, 5, seed=3), start, 20))
    straight.read_groups.clear()
    early.read_groups.clear()
    batches = Stream(early, 5, seed=3).batches()
    next(batches)
    take(Stream(straight, 5, seed=3), 0, 12)
    batches.close()
    # Block 0 is in use, block 1 is prefetched.
    assert 3 <= len(early.read_groups) <= 3 + 3
    assert early.read_groups == straight.read_groups[: len(early.read_groups)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_block_is_freed_before_the_next_is_read():
    """Memory is then one block, or two with prefetching."""
    activations, alive = Numbers(ROWS), []
    gather = activations.gather

    def watched(groups):
        assert all(reference() is None for reference in alive)
        block = gather(groups)
        alive.extend(weakref.ref(x) for x in block.values())
        return block

    activations.gather = watched
    batches = take(Stream(activations, 5, seed=3), 0, 30)
    assert len(alive) >= 2 * 4
    assert same(batches, take(Stream(Numbers(ROWS), 5, seed=3), 0, 30))


def test_seeds_give_different_orders_of_the_same_rows():
    one, two = (take(Stream(Numbers(ROWS), 5, seed=seed), 0, 9) for seed in (3, 4))
    assert not same(one, two)
    assert not same(one[:1], two[:1])


def test_an_epoch_yields_each_row_at_most_once_and_drops_less_than_a_batch_per_block():
    stream = Stream(Numbers(ROWS), 5, seed=8)
    i = 0
    for epoch in range(5):
        count = stream.batches_per_epoch(epoch)
        rows = [row for batch in take(stream, i, count) for row in origin_of(batch)]
        assert len(set(rows)) == len(rows) == 5 * count
        assert 72 - len(rows) <= 4 * 4
        assert all(r < ROWS[g] for g, r in rows)
        i += count


def test_epochs_visit_the_groups_in_different_orders():
    activations = Numbers(ROWS)
    stream = Stream(activations, 1, seed=8)
    counts = [stream.batches_per_epoch(e) for e in range(3)]
    take(stream, 0, sum(counts))
    epochs = [activations.read_groups[:11], activations.read_groups[11:22], activations.read_groups[22:33]]
    assert all(sorted(order) == list(range(11)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_locations_are_computed_without_reading_rows():
    stream = Stream(Numbers(ROWS), 5, seed=3)
    places = [stream.location(i) for i in range(40)]
    assert not stream.activations.read_groups
    assert places[0] == BatchLocation(0, 0, 0)
    assert places == sorted(places)
    assert len(set(places)) == 40
    assert max(p.epoch for p in places) >= 2
    for epoch in range(2):
        assert sum(p.epoch == epoch for p in places) == stream.batches_per_epoch(epoch)
    batches = take(stream, 0, 40)
    for e, w in {(p.epoch, p.block) for p in places}:
        groups = set(stream._epoch(e).order[3 * w : 3 * w + 3].tolist())
        members = [g for p, b in zip(places, batches, strict=True) if p[:2] == (e, w) for g, _ in origin_of(b)]
        assert set(members) <= groups


def test_starting_in_the_middle_reads_only_that_block():
    activations = Numbers(ROWS)
    stream = Stream(activations, 5, seed=3)
    start = next(i for i in range(40) if stream.location(i) == BatchLocation(1, 2, 0))
    take(stream, start, 1)
    assert len(activations.read_groups) == 3


def test_rows_of_a_block_are_mixed_and_sites_stay_aligned():
    stream = Stream(Numbers([40] * 9), 20, seed=1)
    batch = take(stream, 0, 1)[0]
    assert len({g for g, _ in origin_of(batch)}) == 3
    assert origin_of(batch) != sorted(origin_of(batch))
    assert torch.equal(batch["layers.0.residual"][:, :3], batch["layers.2.mlp"])


def test_batches_are_float32_for_every_dtype():
    batch = take(Stream(Numbers(ROWS, torch.bfloat16), 5), 0, 1)[0]
    assert {x.dtype for x in batch.values()} == {torch.float32}
    assert batch["layers.0.residual"].shape == (5, 4)


def test_the_order_never_changes():
    stream = Stream(Numbers(ROWS), 5, seed=3)
    assert origin_of(take(stream, 0, 1)[0]) == [(0, 1), (1, 0), (0, 0), (0, 8), (0, 5)]
    assert origin_of(take(stream, 30, 1)[0]) == [(4, 6), (10, 2), (7, 7), (7, 8), (7, 4)]


def test_distinct_rows_stop_at_an_epoch():
    stream = Stream(Numbers(ROWS), 5)
    assert stream.distinct_rows(3) == 15
    assert stream.distinct_rows(1000) == 72


def test_a_block_smaller_than_a_batch_is_refused():
    with pytest.raises(
        DataError, match=r"block of 3 groups can have as few as 7 activations, less than one batch of 8"
    ):
        Stream(Numbers(ROWS), 8)
    with pytest.raises(DataError, match=r"block of 11 groups .* as few as 72 .* batch of 73"):
        Stream(Numbers(ROWS), 73, groups_per_block=50)
    assert Stream(Numbers(ROWS), 72, groups_per_block=50).batches_per_epoch() == 1
    assert len(take(Stream(Numbers(ROWS), 72, groups_per_block=50), 0, 3)) == 3
