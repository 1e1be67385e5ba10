"""Shards: the same bytes as live, whatever happened while they were written; damage is named."""

import itertools
import json

import numpy as np
import pytest
import torch

from jumpahead.activations import ActivationsConfig, origin
from jumpahead.activations.blocks import Stream
from jumpahead.activations.live import Live
from jumpahead.activations.shards import Shards, write_shards
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.lm.contexts import tokenize
from jumpahead.lm.sources.base import Document
from jumpahead.lm.text import is_held_out

SITES = ["layers.0.mlp", "layers.1.attention"]
SMALL = 0.05  # MiB per shard: several of them


@pytest.fixture(scope="module")
def contexts(lm_of):
    found = [Document(f"d{i}", f"Text {i} <bos> goes on {'and on ' * (1 + i % 23)}") for i in range(90)]
    return tokenize([d for d in found if not is_held_out(d.identity, 0.1)], lm_of("neox"), split="train")


@pytest.fixture(params=["float32", "bfloat16"])
def live(request, lm_of, contexts):
    return Live(lm_of("neox"), contexts, SITES, dtype=request.param, block=12)


def batches(activations, start=0):
    return list(itertools.islice(Stream(activations, 64, seed=5).batches(start), 30))


def files(folder):
    return sorted(path.name for path in folder.glob("shard-*"))


def test_the_stream_is_bitwise_that_of_live(live, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    shards = Shards(tmp_path, block=12)
    assert len(files(tmp_path)) >= 4
    assert shards.digest == live.digest
    assert shards.widths == live.widths
    assert shards.rows_per_group.tolist() == live.rows_per_group.tolist()
    for a, b in zip(batches(live), batches(shards), strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[site], b[site]) for site in a)
    assert all(x.dtype == live.dtype for x in shards.rows(3).values())
    assert all(torch.equal(a[s], b[s]) for a, b in zip(batches(live, 7), batches(shards, 7), strict=True) for s in a)


def test_labels_say_where_each_row_comes_from(live, contexts, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    shards = Shards(tmp_path)
    for group in (0, 5, contexts.groups - 1):
        labels = shards.labels(group)
        rows = [
            tuple(int(labels[key][i]) for key in ("token", "document", "position")) for i in range(len(labels["token"]))
        ]
        mask, ids, owner = contexts.trained(group), contexts.ids(group), contexts.document(group)
        assert rows == [(int(ids[c, t]), int(owner[c]), int(t)) for c, t in np.argwhere(mask)]


def test_a_killed_writer_continues(live, tmp_path):
    class Killed(Exception):
        pass

    class Dying(Live):
        def rows(self, group):
            if group == 11:
                raise Killed
            return super().rows(group)

    dying = Dying(live.lm, live.contexts, SITES, str(live.dtype)[6:])
    with pytest.raises(Killed):
        write_shards(dying, tmp_path, shard_mib=SMALL)
    done = files(tmp_path)
    assert done
    with pytest.raises(
        ArtefactError, match=r"holds \d+ of \d+ groups of activations: `jumpahead run` writes the others"
    ):
        Shards(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    seen = []
    write_shards(live, tmp_path, shard_mib=SMALL, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (live.contexts.groups, live.contexts.groups)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in done}  # not written twice
    write_shards(live, tmp_path / "straight", shard_mib=SMALL)
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_torn_shard_is_named(live, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    path = tmp_path / files(tmp_path)[2]
    whole = path.read_bytes()
    group = json.loads((tmp_path / "activations.json").read_text())["shards"][2]["groups"][0]
    path.write_bytes(whole[:-100])
    with pytest.raises(ArtefactError, match=rf"{path.name} is torn or damaged: remove it, and `jumpahead run`"):
        Shards(tmp_path).rows(group)
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(ArtefactError, match=rf"{path.name} is torn or damaged"):
        Shards(tmp_path).rows(group)
    assert Shards(tmp_path).rows(group - 1)  # the others can be read
    path.unlink()
    with pytest.raises(ArtefactError, match=rf"{path.name} does not exist"):
        Shards(tmp_path).rows(group)
    write_shards(live, tmp_path, shard_mib=SMALL)
    assert path.read_bytes() == whole


def test_another_size_of_file_gives_the_same_rows(live, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    write_shards(live, tmp_path, shard_mib=2.5 * SMALL)
    shards = Shards(tmp_path)
    for group in range(live.contexts.groups):
        expected = live.rows(group)
        assert all(torch.equal(x, expected[site]) for site, x in shards.rows(group).items())


def test_activations_of_something_else_are_refused(live, tmp_path):
    write_shards(live, tmp_path)
    other = Live(live.lm, live.contexts, SITES[:1])
    with pytest.raises(
        ArtefactError, match="holds activations of another model, text, site or dtype: remove the folder"
    ):
        write_shards(other, tmp_path)


def test_the_origin_writes_and_then_needs_no_model(lm_of, contexts, tmp_path):
    config = ActivationsConfig(sites=tuple(SITES), origin="shards", block=8, options={"shard_mib": SMALL})
    opened = origin("shards").open(config, lm=lm_of("neox"), contexts=contexts, folder=tmp_path)
    again = origin("shards").open(config, folder=tmp_path)
    assert again.groups_per_block == 2
    assert all(torch.equal(x, opened.rows(1)[site]) for site, x in again.rows(1).items())
    with pytest.raises(ArtefactError, match="does not exist"):
        origin("shards").open(config, folder=tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("shards", {"shard_mb": 3}, r"activations\.options\.shard_mb: .*'shards' knows shard_mib"),
        ("live", {"x": 3}, r"activations\.options\.x: .*'live' knows none"),
        ("synthetic", {"l0": -2}, r"activations\.options\.l0: .*greater than 0"),
    ],
)
def test_unknown_options_are_named(name, options, says, lm_of, contexts, tmp_path):
    config = ActivationsConfig(origin=name, options=options)
    with pytest.raises(StudyError, match=says):
        origin(name).open(config, lm=lm_of("neox"), contexts=contexts, folder=tmp_path)
