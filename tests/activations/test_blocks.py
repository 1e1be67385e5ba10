"""The stream: batch i is a function of (study, seed, i) alone, and every row is where arithmetic says."""

import itertools
import threading
import weakref

import numpy as np
import pytest
import torch

from jumpahead.activations.base import Activations
from jumpahead.activations.stream import Place, Stream
from jumpahead.errors import DataError


class Numbers(Activations):
    """Row r of group g is (g, r, 7, …): one can see where it comes from."""

    def __init__(self, rows_per_group, dtype=torch.float32):
        self.widths = {"layers.0.residual": 4, "layers.2.mlp": 3}
        self.rows_per_group = np.array(rows_per_group)
        self.groups_per_block = 3
        self.digest = "numbers"
        self.dtype = dtype
        self.asked = []

    @classmethod
    def open(cls, config, **_):
        return cls([5])

    def rows(self, group):
        self.asked.append(group)
        n = int(self.rows_per_group[group])
        x = torch.stack([torch.full((n,), float(group)), torch.arange(n).float(), torch.full((n,), 7.0)], 1)
        return {"layers.0.residual": torch.cat([x, x[:, :1]], 1).to(self.dtype), "layers.2.mlp": x.to(self.dtype)}


ROWS = [9, 4, 0, 12, 7, 7, 3, 11, 8, 6, 5]  # 72 rows, 11 groups, blocks of 3, 3, 3, 2


def take(stream, start, count):
    return list(itertools.islice(stream.batches(start), count))


def place(x):
    return [tuple(int(v) for v in row[:2]) for row in x["layers.2.mlp"]]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[site], y[site]) for x, y in zip(a, b, strict=True) for site in x)


def test_a_batch_depends_on_its_number_alone():
    straight = take(Stream(Numbers(ROWS), 5, seed=3), 0, 43)
    assert Stream(Numbers(ROWS), 5, seed=3).where(43).epoch >= 3
    for start in range(40):
        stream = Stream(Numbers(ROWS), 5, seed=3)
        take(stream, start // 2, start % 3)  # what was read before leaves no trace
        assert same(take(stream, start, 3), straight[start : start + 3])


def test_reading_ahead_changes_nothing_but_when_groups_are_read():
    straight, early = Numbers(ROWS), Numbers(ROWS)
    early.is_read_ahead = True
    for start in (0, 4, 23):
        assert same(take(Stream(straight, 5, seed=3), start, 20), take(Stream(early, 5, seed=3), start, 20))
    straight.asked.clear()
    early.asked.clear()
    batches = Stream(early, 5, seed=3).batches()
    next(batches)
    take(Stream(straight, 5, seed=3), 0, 12)
    batches.close()
    # Block 0 is in use, block 1 waits.
    assert 3 <= len(early.asked) <= 3 + 3
    assert early.asked == straight.asked[: len(early.asked)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_block_is_let_go_before_the_next_is_gathered():
    """So that memory is one block, and one more where it is read ahead."""
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


def test_an_epoch_shows_each_row_at_most_once_and_drops_less_than_a_batch_per_block():
    stream = Stream(Numbers(ROWS), 5, seed=8)
    i = 0
    for epoch in range(5):
        count = stream.batches_per_epoch(epoch)
        rows = [row for batch in take(stream, i, count) for row in place(batch)]
        assert len(set(rows)) == len(rows) == 5 * count
        assert 72 - len(rows) <= 4 * 4
        assert all(r < ROWS[g] for g, r in rows)
        i += count


def test_epochs_visit_the_groups_in_different_orders():
    activations = Numbers(ROWS)
    stream = Stream(activations, 1, seed=8)
    counts = [stream.batches_per_epoch(e) for e in range(3)]
    take(stream, 0, sum(counts))
    epochs = [activations.asked[:11], activations.asked[11:22], activations.asked[22:33]]
    assert all(sorted(order) == list(range(11)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_where_is_arithmetic():
    stream = Stream(Numbers(ROWS), 5, seed=3)
    places = [stream.where(i) for i in range(40)]
    assert not stream.activations.asked  # no row was needed
    assert places[0] == Place(0, 0, 0)
    assert places == sorted(places)
    assert len(set(places)) == 40
    assert max(p.epoch for p in places) >= 2
    for epoch in range(2):
        assert sum(p.epoch == epoch for p in places) == stream.batches_per_epoch(epoch)
    batches = take(stream, 0, 40)
    for e, w in {(p.epoch, p.block) for p in places}:
        groups = set(stream._epoch(e).order[3 * w : 3 * w + 3].tolist())
        members = [g for p, b in zip(places, batches, strict=True) if p[:2] == (e, w) for g, _ in place(b)]
        assert set(members) <= groups


def test_starting_reads_only_the_block_it_starts_in():
    activations = Numbers(ROWS)
    stream = Stream(activations, 5, seed=3)
    start = next(i for i in range(40) if stream.where(i) == Place(1, 2, 0))
    take(stream, start, 1)
    assert len(activations.asked) == 3


def test_rows_of_a_block_are_mixed_and_sites_stay_aligned():
    stream = Stream(Numbers([40] * 9), 20, seed=1)
    batch = take(stream, 0, 1)[0]
    assert len({g for g, _ in place(batch)}) == 3
    assert place(batch) != sorted(place(batch))
    assert torch.equal(batch["layers.0.residual"][:, :3], batch["layers.2.mlp"])


def test_batches_are_float32_whatever_the_study_keeps():
    batch = take(Stream(Numbers(ROWS, torch.bfloat16), 5), 0, 1)[0]
    assert {x.dtype for x in batch.values()} == {torch.float32}
    assert batch["layers.0.residual"].shape == (5, 4)


def test_the_order_never_changes():
    stream = Stream(Numbers(ROWS), 5, seed=3)
    assert place(take(stream, 0, 1)[0]) == [(0, 1), (1, 0), (0, 0), (0, 8), (0, 5)]
    assert place(take(stream, 30, 1)[0]) == [(4, 6), (10, 2), (7, 7), (7, 8), (7, 4)]


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
