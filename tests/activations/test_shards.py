"""Shards: the same bytes as live, whatever happened while they were written; damage is named."""

import itertools
import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from jumpahead import formatting, store
from jumpahead.activations import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.origins.live import Live
from jumpahead.activations.origins.shards import LABELS, Part, Shards, missing, write_shards, write_sites
from jumpahead.activations.row_files import Reader
from jumpahead.activations.stream import Stream
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.progress import Progress, Silent
from jumpahead.text.contexts import tokenize
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document

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


class Killed(Exception):
    pass


class Dying(Live):
    """Dies when it comes to group 11."""

    def rows(self, group):
        if group == 11:
            raise Killed
        return super().rows(group)


class Counting(Progress):
    """Progress that remembers its phases."""

    def __init__(self):
        self.phases = []

    def say(self, sentence):
        raise AssertionError(sentence)

    def phase(self, title, total, unit, done=0):
        self.phases.append((title, total, done))
        return Silent().phase(title, total, unit, done)


def rows_of(live, files_done, folder):
    """Rows in those files."""
    counts = []
    for name in files_done:
        with Reader(folder / name) as file:
            first, last = file.info["groups"]
        counts.append(int(live.rows_per_group[first:last].sum()))
    return sum(counts)


def test_a_killed_writer_continues(live, tmp_path):
    dying = Dying(live.lm, live.contexts, SITES, str(live.dtype)[6:])
    with pytest.raises(Killed):
        write_shards(dying, tmp_path, shard_mib=SMALL)
    done = files(tmp_path)
    assert done
    assert missing(tmp_path, SITES, lambda _: "") == SITES
    with pytest.raises(ArtefactError, match=r"holds \d+ of \d+ files of activations: `jumpahead harvest` writes the"):
        Shards(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    counted = Counting()
    assert write_shards(live, tmp_path, shard_mib=SMALL, progress=counted)
    total = int(live.rows_per_group.sum())
    assert counted.phases == [("activations", total, rows_of(live, done, tmp_path))]
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in done}  # not written twice
    write_shards(live, tmp_path / "straight", shard_mib=SMALL)
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert not list(tmp_path.rglob(".*"))


def test_parts_write_what_one_process_writes(live, tmp_path):
    """In any order, one of them killed on the way; nobody writes another's files."""
    write_shards(live, tmp_path / "one", shard_mib=SMALL, inputs="of these")
    folder, everything = tmp_path / "parts", files(tmp_path / "one")
    dying = Dying(live.lm, live.contexts, SITES, str(live.dtype)[6:])
    owner = next(i for i in range(3) if Killed in kills(dying, tmp_path / f"try-{i}", Part(i + 1, 3)))
    order = [owner, *(i for i in range(3) if i != owner)]
    assert kills(dying, folder, Part(owner + 1, 3)) == [Killed]
    assert set(files(folder)) < set(everything[owner::3])
    for position, i in enumerate(order):
        before = set(files(folder))
        done = write_shards(live, folder, shard_mib=SMALL, part=Part(i + 1, 3), inputs="of these")
        assert set(files(folder)) - before <= set(everything[i::3])
        assert set(everything[i::3]) <= set(files(folder))
        assert done == (missing(folder, SITES, lambda _: "of these") == []) == (position == 2)
    assert missing(folder, SITES, lambda _: "of others") == SITES
    for path in (tmp_path / "one").glob("[as]*"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def kills(live, folder, part):
    try:
        write_shards(live, folder, shard_mib=SMALL, part=part, inputs="of these")
    except Killed:
        return [Killed]
    return []


def test_two_processes_never_write_the_same_files(live, tmp_path):
    with store.locked(tmp_path / "part-2-of-4.lock", tmp_path):
        with pytest.raises(ArtefactError, match="is being written by process"):
            write_shards(live, tmp_path, part=Part(2, 4))
        with pytest.raises(ArtefactError, match=r"another number of parts \(2-of-4\): wait .* --shard I/4"):
            write_shards(live, tmp_path, part=Part(1, 3))
        with pytest.raises(ArtefactError, match="another number of parts"):
            write_shards(live, tmp_path)
        assert not files(tmp_path)
        write_shards(live, tmp_path, shard_mib=SMALL, part=Part(1, 4))
    mine = files(tmp_path)
    assert mine
    assert write_shards(live, tmp_path, shard_mib=SMALL)


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "2/", "/4", "-1/4", "2/4/1", "a/b", "", "1.0/2"])
def test_a_wrong_shard_is_named(text):
    with pytest.raises(StudyError, match=r"--shard .*: write it as I/N with I from 1 to N, for instance --shard 2/4"):
        Part.parse(text)
    assert Part.parse(" 2/4 ") == (2, 4)


def test_the_disk_is_looked_at_before_anything_is_written(live, tmp_path, monkeypatch):
    """Exactly rows × (Σ d · itemsize + 12) bytes; what is there already is not counted again."""
    usage, free = namedtuple("usage", "total used free"), []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free[-1]))
    needed = int(live.rows_per_group.sum()) * ((24 + 24) * live.dtype.itemsize + 12)
    free.append(needed - 1)
    with pytest.raises(StudyError) as caught:
        write_shards(live, tmp_path / "new" / "er", shard_mib=SMALL)
    said = str(caught.value)
    assert f"has {formatting.size(needed - 1)} of free disk" in said
    assert f"need {formatting.size(needed)}" in said
    assert "text.max_tokens" in said
    assert "one site at a time" in said
    assert "activations.origin = 'live'" in said
    assert ("activations.dtype = 'bfloat16'" in said) == (live.dtype == torch.float32)
    assert not files(tmp_path / "new" / "er")
    free.append(needed)
    write_shards(live, tmp_path, shard_mib=SMALL)
    data = sum((tmp_path / name).stat().st_size for name in files(tmp_path))
    assert needed < data < 1.2 * needed + 4096 * len(files(tmp_path))
    free.append(0)
    assert write_shards(live, tmp_path, shard_mib=SMALL)  # nothing is missing
    gone = tmp_path / files(tmp_path)[1]
    size = gone.stat().st_size
    gone.unlink()
    free.append(size // 3)
    with pytest.raises(StudyError, match="of free disk"):
        write_shards(live, tmp_path, shard_mib=SMALL)
    free.append(size)
    assert write_shards(live, tmp_path, shard_mib=SMALL)


def test_a_torn_shard_is_named(live, tmp_path):
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


def test_torn_files_are_written_again(live, tmp_path):
    """A file that is too short, and one of other groups."""
    write_shards(live, tmp_path, shard_mib=SMALL)
    one, two, three = (tmp_path / name for name in files(tmp_path)[:3])
    whole = [path.read_bytes() for path in (one, two, three)]
    one.write_bytes(whole[0][:-7])
    shutil.copy(three, two)
    assert write_shards(live, tmp_path, shard_mib=SMALL)
    assert [path.read_bytes() for path in (one, two, three)] == whole


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
    opened = ORIGINS.get("shards").open(config, lm=lm_of("neox"), contexts=contexts, folder=tmp_path)
    again = ORIGINS.get("shards").open(config, folder=tmp_path)
    assert again.groups_per_block == 2
    assert all(torch.equal(x, opened.rows(1)[site]) for site, x in again.rows(1).items())
    with pytest.raises(ArtefactError, match="does not exist"):
        ORIGINS.get("shards").open(config, folder=tmp_path / "empty")


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
        ORIGINS.get(name).open(config, lm=lm_of("neox"), contexts=contexts, folder=tmp_path)


# ---------------------------------------------------------------------------------------------- sites that come later


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("shard-*")}


def test_a_site_that_comes_later_is_written_beside_the_others(live, tmp_path):
    """Killed on the way, in two parts; every file that was there stays, and the stream is that of all sites at once."""

    def of(sites, kind=Live):
        return kind(live.lm, live.contexts, sites, str(live.dtype).removeprefix("torch."), block=12)

    def inputs_of(sites):
        return store.digest_json(sorted(sites))

    assert write_sites(of, tmp_path, SITES[:1], inputs_of, shard_mib=SMALL)
    before = stamps(tmp_path)
    assert len(before) >= 4
    assert missing(tmp_path, SITES, inputs_of) == SITES[1:]
    with pytest.raises(ArtefactError, match=r"holds no activations at layers\.1\.attention: `jumpahead harvest`"):
        Shards(tmp_path, sites=SITES)
    with pytest.raises(Killed):
        write_sites(lambda sites: of(sites, Dying), tmp_path, SITES, inputs_of, shard_mib=SMALL)
    half = stamps(tmp_path)
    assert before.items() < half.items()
    assert missing(tmp_path, SITES, inputs_of) == SITES[1:]
    with pytest.raises(ArtefactError, match=r"also.* holds [0-9]+ of [0-9]+ files of activations"):
        Shards(tmp_path, sites=SITES)
    assert list(Shards(tmp_path).widths) == SITES[:1]  # what is whole can be read meanwhile

    assert not write_sites(of, tmp_path, SITES, inputs_of, shard_mib=SMALL, part=Part(1, 2))
    assert write_sites(of, tmp_path, SITES, inputs_of, shard_mib=SMALL, part=Part(2, 2))
    assert missing(tmp_path, SITES, inputs_of) == []
    assert half.items() <= stamps(tmp_path).items()
    shards = Shards(tmp_path, block=12, sites=SITES)
    assert shards.widths == live.widths
    assert all(torch.equal(a[s], b[s]) for a, b in zip(batches(live), batches(shards), strict=True) for s in SITES)
    assert shards.rows(5).keys() == shards.gather([5]).keys() == set(SITES)
    assert all(torch.equal(shards.labels(5)[key], Shards(tmp_path, sites=SITES[1:]).labels(5)[key]) for key in LABELS)

    done = stamps(tmp_path)
    with pytest.raises(ArtefactError, match="activations of another model, text, site or dtype: remove the folder"):
        write_sites(of, tmp_path, SITES[:1], lambda sites: f"of another model {sites}", shard_mib=SMALL)
    assert stamps(tmp_path) == done
    assert missing(tmp_path, SITES[1:], inputs_of) == []  # a study that drops a site finds the other
    assert write_sites(of, tmp_path, SITES[::-1], inputs_of, shard_mib=SMALL)
    assert stamps(tmp_path) == done


def test_a_site_of_other_text_is_not_put_beside(live, contexts, tmp_path):
    def of(sites):
        return Live(live.lm, contexts, sites, "float16")

    write_sites(of, tmp_path, SITES[:1])
    with pytest.raises(ArtefactError, match="holds activations of another model, text, site or dtype: remove"):
        write_sites(lambda sites: Live(live.lm, contexts, sites), tmp_path, SITES)
    with pytest.raises(ArtefactError, match="holds activations of another model, text, site or dtype: remove"):
        write_sites(lambda sites: Live(live.lm, contexts, sites), tmp_path, SITES[1:])
