"""Shards: the same bytes as live, also after interrupted writing; errors name damaged files."""

import itertools
import json

import numpy as np
import pytest
import torch

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.origins.live import Live
from jumpahead.activations.origins.shards import Shards
from jumpahead.activations.shard_writer import write_shards
from jumpahead.activations.stream import Stream
from jumpahead.errors import ArtefactError
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize

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
    block = shards.gather([5, 0, 7])
    parts = [live.rows(group) for group in (5, 0, 7)]
    assert all(torch.equal(x, torch.cat([part[site] for part in parts])) for site, x in block.items())
    assert shards.digest == live.digest
    assert shards.widths == live.widths
    assert shards.rows_per_group.tolist() == live.rows_per_group.tolist()
    for a, b in zip(batches(live), batches(shards), strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[site], b[site]) for site in a)
    assert all(x.dtype == live.dtype for x in shards.rows(3).values())
    assert all(torch.equal(a[s], b[s]) for a, b in zip(batches(live, 7), batches(shards, 7), strict=True) for s in a)


def test_labels_are_token_document_and_position_of_each_row(live, contexts, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    shards = Shards(tmp_path)
    for group in (0, 5, contexts.num_groups - 1):
        labels = shards.labels(group)
        rows = [
            tuple(int(labels[key][i]) for key in ("token", "document", "position")) for i in range(len(labels["token"]))
        ]
        mask, ids, owner = contexts.trained_mask(group), contexts.ids(group), contexts.chunk_documents(group)
        assert rows == [(int(ids[c, t]), int(owner[c]), int(t)) for c, t in np.argwhere(mask)]


def test_the_error_for_a_torn_shard_names_the_file(live, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    path = tmp_path / files(tmp_path)[2]
    whole = path.read_bytes()
    first, last = json.loads((tmp_path / "activations.json").read_text())["shards"][2]
    assert last - first > 1
    path.write_bytes(whole[:-100])
    with pytest.raises(ArtefactError, match=rf"{path.name} is torn or damaged: remove it, and `jumpahead harvest`"):
        Shards(tmp_path).rows(first)
    at = whole.index(live.rows(first)[SITES[0]][1].view(torch.uint8).numpy().tobytes())
    for broken in (whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :], b"\xff" * len(whole), b"", whole[:5]):
        path.write_bytes(broken)
        with pytest.raises(ArtefactError, match=rf"{path.name} is torn or damaged"):
            Shards(tmp_path).rows(first)
        with pytest.raises(ArtefactError, match=rf"{path.name} is torn or damaged"):
            Shards(tmp_path).gather([first - 1, first])
        assert Shards(tmp_path).rows(first - 1)  # the other files can be read
    path.unlink()
    with pytest.raises(ArtefactError, match=rf"{path.name} does not exist"):
        Shards(tmp_path).rows(first)
    write_shards(live, tmp_path, shard_mib=SMALL)
    assert path.read_bytes() == whole


def test_any_safetensors_library_reads_the_files(live, tmp_path):
    from safetensors.torch import load_file

    write_shards(live, tmp_path, shard_mib=SMALL)
    index = json.loads((tmp_path / "activations.json").read_text())
    for name, (first, last) in zip(files(tmp_path), index["shards"], strict=True):
        found = load_file(tmp_path / name)
        assert set(found) == {*SITES, "token", "document", "position"}
        for site in SITES:
            assert torch.equal(found[site], torch.cat([live.rows(group)[site] for group in range(first, last)]))


def test_another_size_of_file_gives_the_same_rows(live, tmp_path):
    write_shards(live, tmp_path, shard_mib=SMALL)
    write_shards(live, tmp_path, shard_mib=2.5 * SMALL)
    shards = Shards(tmp_path)
    for group in range(live.contexts.num_groups):
        expected = live.rows(group)
        assert all(torch.equal(x, expected[site]) for site, x in shards.rows(group).items())


def test_written_activations_can_be_opened_without_a_model(lm_of, contexts, tmp_path):
    config = ActivationsConfig(sites=tuple(SITES), origin="shards", block=8, options={"shard_mib": SMALL})
    opened = ORIGINS.get("shards").open(config, lm=lm_of("neox"), contexts=contexts, folder=tmp_path)
    again = ORIGINS.get("shards").open(config, folder=tmp_path)
    assert again.groups_per_block == 2
    assert all(torch.equal(x, opened.rows(1)[site]) for site, x in again.rows(1).items())
    with pytest.raises(ArtefactError, match="does not exist"):
        ORIGINS.get("shards").open(config, folder=tmp_path / "empty")
