"""The pass over the text: equal to dense float64 sums and to brute force, however it is divided or interrupted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from jumpahead.engine import SparseEncoder, SparseFeatures
from jumpahead.errors import DataError
from jumpahead.features import collect as collect_module
from jumpahead.features.bias import measure_bias_likeness, most_frequent
from jumpahead.features.collect import POOL, SAMPLE, TOP, FeatureActivity, collect, token_places
from jumpahead.features.collect_loops import AFTER, BEFORE, BINS, priority_of
from jumpahead.progress import SilentProgress
from tests.evaluation.test_evaluate import SITE, held_out, identity, lm, random_sae  # noqa: F401 - fixture

WIDTH = 11


def invented(chunks=60, seed=3):
    """Return activations f [rows, M] of text chunks of 1 to 40 rows, and the chunk and offset of each row.

    Feature 0 never fires, feature 1 always does; offsets have gaps, as special tokens leave them. Values are multiples
    of 1/8, so that many are equal and all sums are exact.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 40, chunks)
    chunk = np.repeat(np.arange(chunks) * 3, lengths)
    offset = np.concatenate([np.sort(random.choice(60, n, replace=False)) for n in lengths])
    share = np.array([0, 1, 0.5, 0.3, 0.2, 0.1, 0.1, 0.05, 0.02, 0.01, 0.3])
    size = 2.0 ** random.integers(-2, 3, WIDTH)
    f = np.round(8 * random.exponential(size, (len(chunk), WIDTH)) + 1) / 8
    f[random.random(f.shape) >= share] = 0
    return f.astype(np.float32), chunk.astype(np.int32), offset.astype(np.int32)


def sparse(f):
    row, feature = np.nonzero(f)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(f)))])
    return SparseFeatures(*map(torch.from_numpy, (indptr, feature.astype(np.int32), f[row, feature])))


def collected(f, chunk, offset, pieces):
    """Return the activity after adding the rows in about `pieces` calls of whole text chunks."""
    activity = FeatureActivity(f.shape[1])
    ends = np.flatnonzero(np.diff(chunk, append=-1)) + 1
    cuts = [0, *ends[:: max(1, len(ends) // pieces)], len(chunk)]
    pool = np.where(np.arange(len(chunk)) % 5 == 0, np.arange(len(chunk)) // 5, -1).astype(np.int32)
    for start, stop in itertools.pairwise(cuts):
        rows = slice(start, stop)
        activity.add(sparse(f[rows]), chunk[rows], offset[rows], pool[rows])
    return activity


@pytest.fixture(scope="module")
def case():
    return invented()


@pytest.fixture(scope="module")
def activity(case):
    return collected(*case, 4)


def test_counts_and_sums_are_those_of_dense_activations(case, activity):
    f = case[0].astype(np.float64)
    assert np.array_equal(activity.count, (f > 0).sum(0))
    assert np.array_equal(activity.total, f.sum(0))
    assert activity.count[0] == 0
    assert activity.count[1] == len(f)


def test_histograms_are_those_of_all_values(case, activity):
    for j in range(1, WIDTH):
        values = case[0][:, j][case[0][:, j] > 0].astype(np.float64)
        upper = 2.0 ** activity.exponent[j]
        assert upper / 2 <= values.max() < upper
        counts, _ = np.histogram(values, BINS, (0, upper))
        assert np.array_equal(activity.histogram[j], counts)
    assert activity.histogram[0].sum() == 0


def test_the_strongest_are_those_of_brute_force(case, activity):
    """The maximum of each text chunk, sorted; of equal ones the first in the text."""
    f, chunk, offset = case
    for j in range(WIDTH):
        best = {}
        for row in np.flatnonzero(f[:, j]):
            if chunk[row] not in best or f[row, j] > f[best[chunk[row]], j]:
                best[chunk[row]] = row
        rows = sorted(best.values(), key=lambda row: (-f[row, j], row))[:TOP]
        found = activity.top
        assert found.value[j, : len(rows)].tolist() == f[rows, j].tolist()
        assert found.chunk[j, : len(rows)].tolist() == chunk[rows].tolist()
        assert found.offset[j, : len(rows)].tolist() == offset[rows].tolist()
        assert not found.value[j, len(rows) :].any()


def test_windows_hold_the_activations_around_an_example(case, activity):
    f, chunk, offset = case
    at = {(c, o): row for row, (c, o) in enumerate(zip(chunk.tolist(), offset.tolist(), strict=True))}
    for examples in (activity.top, activity.sample):
        for j in range(WIDTH):
            for slot in np.flatnonzero(examples.value[j]):
                c, o = int(examples.chunk[j, slot]), int(examples.offset[j, slot])
                around = [at.get((c, o + by)) for by in range(-BEFORE, AFTER + 1)]
                expected = [0 if row is None else float(f[row, j]) for row in around]
                assert examples.window[j, slot].tolist() == expected
                assert examples.window[j, slot, BEFORE] == examples.value[j, slot]


def test_the_sample_is_the_entries_of_smallest_priority(case, activity):
    f, chunk, offset = case
    for j in range(WIDTH):
        rows = np.flatnonzero(f[:, j])
        priority = [int(priority_of(int(chunk[row]), int(offset[row]), j)) for row in rows]
        order = np.argsort(np.array(priority, np.uint64), kind="stable")[:SAMPLE] if len(rows) else []
        assert activity.sample.value[j, : len(order)].tolist() == f[rows[order], j].tolist()
        assert activity.sample.offset[j, : len(order)].tolist() == offset[rows[order]].tolist()


def test_the_sample_is_uniform():
    """The mean place of 400 × SAMPLE sampled rows is the middle, within four standard errors."""
    n, m = 300, 400
    activity = FeatureActivity(m)
    f = np.ones((n, m), np.float32)
    activity.add(sparse(f), np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.full(n, -1, np.int32))
    mean = activity.sample.chunk.mean() / (n - 1)
    assert abs(mean - 0.5) < 4 * np.sqrt(1 / 12 / (m * SAMPLE))
    assert len({tuple(row) for row in activity.sample.chunk.tolist()}) == m


def test_how_the_text_is_divided_does_not_matter(case, activity):
    for pieces in (1, 3, 60):
        other = collected(*case, pieces).arrays()
        for name, array in activity.arrays().items():
            assert array.dtype == other[name].dtype
            assert np.array_equal(array, other[name]), name


def test_memory_depends_on_the_number_of_features_alone():
    sizes = []
    for chunks in (40, 400):
        activity = collected(*invented(chunks), 10)
        pool = activity.pool_index.nbytes + activity.pool_feature.nbytes
        sizes.append(activity.nbytes - pool)
    assert sizes[0] == sizes[1] == activity.width * (sizes[0] // activity.width)
    assert sizes[0] < 6_000 * activity.width


# ---------------------------------------------------------------------------------------------- with a language model


class StopAfter(SilentProgress):
    """Raises KeyboardInterrupt after some groups."""

    def __init__(self, groups):
        self.groups = groups

    def phase(self, title, total, unit, done=0):
        phase = super().phase(title, total, unit, done)
        owner = self

        class Stopping:
            def __enter__(self):
                self.phase = phase.__enter__()
                return self

            def __exit__(self, *exc):
                return phase.__exit__(*exc)

            def advance(self, amount):
                owner.groups -= 1
                if owner.groups < 0:
                    raise KeyboardInterrupt

        return Stopping()


@pytest.fixture(scope="module")
def text(lm):  # noqa: F811
    return held_out(lm)


@pytest.fixture(scope="module")
def saes(lm):  # noqa: F811
    return {name: random_sae(lm, SITE, name) for name in ("jumprelu", "gated", "topk")}


@pytest.fixture(scope="module")
def whole(lm, text, saes):  # noqa: F811
    return collect(saes, lm, text, SITE)


def test_all_saes_are_counted_as_dense_encoding_counts_them(lm, text, saes, whole):  # noqa: F811
    contexts, ids = text.contexts, []
    counts = {name: np.zeros(sae.width, np.int64) for name, sae in saes.items()}
    for group in range(text.groups):
        mask = torch.from_numpy(contexts.trained_mask(group))
        x = lm.read(contexts.ids(group), [SITE])[SITE][mask].double()
        ids += contexts.ids(group)[mask.numpy()].tolist()
        for name, sae in saes.items():
            params = {key: value.double() for key, value in sae.params.items()}
            pre = x if sae.b_pre is None else x - params["b_pre"]
            f = sae.arch.activate(params, pre @ params["W_enc"].T + params["b_enc"])
            counts[name] += (f > 0).sum(0).numpy()
    for name in saes:
        assert np.array_equal(whole.activity[name].count, counts[name])
        assert counts[name].any()
    assert whole.rows == len(ids)
    assert np.array_equal(whole.token_counts, np.bincount(ids, minlength=lm.vocab_size))


def test_interrupted_it_continues_and_ends_with_the_same_bytes(lm, text, saes, whole, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(collect_module, "SAVE_MINUTES", 0.0)
    path = tmp_path / "x.partial.safetensors"
    assert text.groups > 3
    with pytest.raises(KeyboardInterrupt):
        collect(saes, lm, text, SITE, checkpoint=path, inputs="a", progress=StopAfter(2))
    assert path.exists()
    begun = []

    class Watch(SilentProgress):
        def phase(self, title, total, unit, done=0):
            begun.append(done)
            return super().phase(title, total, unit, done)

    again = collect(saes, lm, text, SITE, checkpoint=path, inputs="a", progress=Watch())
    assert begun[0] > 0
    for name in saes:
        first, second = whole.activity[name].arrays(), again.activity[name].arrays()
        assert all(np.array_equal(first[key], second[key]) for key in first)
    for key in ("token_counts", "pool_chunk", "pool_offset"):
        assert np.array_equal(getattr(whole, key), getattr(again, key))
    collect(saes, lm, text, SITE, checkpoint=path, inputs="b", progress=Watch())
    assert begun[1] == 0, "a checkpoint of other inputs is not continued"


def test_the_pool_is_spread_evenly_and_knows_what_fires(lm, text, saes, whole):  # noqa: F811
    assert len(whole.pool_chunk) == min(POOL, whole.rows)
    activity = whole.activity["topk"]
    assert len(set(zip(activity.pool_index.tolist(), activity.pool_feature.tolist(), strict=True))) == len(
        activity.pool_index
    )
    if whole.rows <= POOL:  # then every token is in the pool
        assert np.array_equal(np.bincount(activity.pool_feature, minlength=activity.width), activity.count)


def test_places_name_the_tokens_of_the_text(text):
    contexts = text.contexts
    for group in range(text.groups):
        chunk, offset = token_places(contexts, group)
        expected = contexts.ids(group)[contexts.trained_mask(group)]
        assert np.array_equal(contexts.tokens[contexts.chunk_start[chunk] + offset], expected)
        assert (offset < contexts.chunk_length[chunk]).all()


def test_an_sae_of_another_width_is_named(lm, text):  # noqa: F811
    with pytest.raises(DataError, match="wrong takes activations of width 5"):
        collect({"wrong": identity(5)}, lm, text, SITE)


def test_contexts_are_never_taken_for_rows_that_are_padded_on_the_left(lm, text, saes, monkeypatch):  # noqa: F811
    def refuse(*_: object) -> None:
        raise AssertionError("a context that begins with the padding's token would be refused")

    monkeypatch.setattr("jumpahead.lm.model.refuse_unmarked_padding", refuse)
    found = collect(saes, lm, text, SITE)
    name = next(iter(saes))
    activity = found.activity[name]
    encoder, features = SparseEncoder(saes[name]), most_frequent(activity, 2)
    with SilentProgress().phase("", 1, "tokens") as phase:
        assert len(measure_bias_likeness(encoder, activity, features, lm, text, SITE, 64, phase)) == 2
