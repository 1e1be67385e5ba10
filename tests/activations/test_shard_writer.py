"""Writing shards: interrupted, in several processes, and with sites added later; nothing is written twice."""

import shutil
from collections import namedtuple

import pytest
import torch

from jumpahead.activations.origins.live import Live
from jumpahead.activations.origins.shards import Shards
from jumpahead.activations.row_files import RowFileReader
from jumpahead.activations.shard_folder import LABELS, missing_sites
from jumpahead.activations.shard_writer import write_missing_sites, write_shards
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.formatting import format_bytes
from jumpahead.progress import Progress, SilentProgress
from jumpahead.storage.digests import digest_json
from jumpahead.storage.locks import hold_lock
from tests.activations.origins.test_shards import SITES, SMALL, batches, contexts, files, live  # noqa: F401 - fixtures


class Killed(Exception):
    pass


class FailingLive(Live):
    """Raises Killed at group 11."""

    def rows(self, group):
        if group == 11:
            raise Killed
        return super().rows(group)


class RecordingProgress(Progress):
    """Progress that records its phases."""

    def __init__(self):
        self.phases = []

    def say(self, sentence):
        raise AssertionError(sentence)

    def phase(self, title, total, unit, done=0):
        self.phases.append((title, total, done))
        return SilentProgress().phase(title, total, unit, done)


def rows_of(live, files_done, folder):  # noqa: F811
    """Return the number of rows in some files."""
    counts = []
    for name in files_done:
        with RowFileReader(folder / name) as file:
            first, last = file.info["groups"]
        counts.append(int(live.rows_per_group[first:last].sum()))
    return sum(counts)


def test_a_killed_writer_continues(live, tmp_path):  # noqa: F811
    failing = FailingLive(live.lm, live.contexts, SITES, str(live.dtype)[6:])
    with pytest.raises(Killed):
        write_shards(failing, tmp_path, shard_mib=SMALL)
    done = files(tmp_path)
    assert done
    assert missing_sites(tmp_path, SITES, lambda _: "") == SITES
    with pytest.raises(ArtefactError, match=r"holds \d+ of \d+ files of activations: `jumpahead harvest` writes the"):
        Shards(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in done}
    recorded = RecordingProgress()
    assert write_shards(live, tmp_path, shard_mib=SMALL, progress=recorded)
    total = int(live.rows_per_group.sum())
    assert recorded.phases == [("activations", total, rows_of(live, done, tmp_path))]
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in done}  # not written twice
    write_shards(live, tmp_path / "straight", shard_mib=SMALL)
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert not list(tmp_path.rglob(".*"))


def test_several_processes_write_the_same_bytes_as_one(live, tmp_path):  # noqa: F811
    """In any order, one of them killed in between; none writes files of another."""
    write_shards(live, tmp_path / "one", shard_mib=SMALL, inputs="of these")
    folder, everything = tmp_path / "parts", files(tmp_path / "one")
    failing = FailingLive(live.lm, live.contexts, SITES, str(live.dtype)[6:])
    owner = next(i for i in range(3) if Killed in errors_of(failing, tmp_path / f"try-{i}", WriterRank(i + 1, 3)))
    order = [owner, *(i for i in range(3) if i != owner)]
    assert errors_of(failing, folder, WriterRank(owner + 1, 3)) == [Killed]
    assert set(files(folder)) < set(everything[owner::3])
    for position, i in enumerate(order):
        before = set(files(folder))
        done = write_shards(live, folder, shard_mib=SMALL, rank=WriterRank(i + 1, 3), inputs="of these")
        assert set(files(folder)) - before <= set(everything[i::3])
        assert set(everything[i::3]) <= set(files(folder))
        assert done == (missing_sites(folder, SITES, lambda _: "of these") == []) == (position == 2)
    assert missing_sites(folder, SITES, lambda _: "of others") == SITES
    for path in (tmp_path / "one").glob("[as]*"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def errors_of(live, folder, rank):  # noqa: F811
    try:
        write_shards(live, folder, shard_mib=SMALL, rank=rank, inputs="of these")
    except Killed:
        return [Killed]
    return []


def test_two_processes_never_write_the_same_files(live, tmp_path):  # noqa: F811
    with hold_lock(tmp_path / "part-2-of-4.lock", tmp_path):
        with pytest.raises(ArtefactError, match="is being written by process"):
            write_shards(live, tmp_path, rank=WriterRank(2, 4))
        with pytest.raises(ArtefactError, match=r"another number of parts \(2-of-4\): wait .* --shard I/4"):
            write_shards(live, tmp_path, rank=WriterRank(1, 3))
        with pytest.raises(ArtefactError, match="another number of parts"):
            write_shards(live, tmp_path)
        assert not files(tmp_path)
        write_shards(live, tmp_path, shard_mib=SMALL, rank=WriterRank(1, 4))
    mine = files(tmp_path)
    assert mine
    assert write_shards(live, tmp_path, shard_mib=SMALL)


def test_free_disk_space_is_checked_before_writing(live, tmp_path, monkeypatch):  # noqa: F811
    """Exactly rows × (Σ d · itemsize + 12) bytes; what is there already is not recorded again."""
    usage, free = namedtuple("usage", "total used free"), []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free[-1]))
    needed = int(live.rows_per_group.sum()) * ((24 + 24) * live.dtype.itemsize + 12)
    free.append(needed - 1)
    with pytest.raises(StudyError) as caught:
        write_shards(live, tmp_path / "new" / "er", shard_mib=SMALL)
    said = str(caught.value)
    assert f"has {format_bytes(needed - 1)} of free disk" in said
    assert f"need {format_bytes(needed)}" in said
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
    assert write_shards(live, tmp_path, shard_mib=SMALL)
    gone = tmp_path / files(tmp_path)[1]
    size = gone.stat().st_size
    gone.unlink()
    free.append(size // 3)
    with pytest.raises(StudyError, match="of free disk"):
        write_shards(live, tmp_path, shard_mib=SMALL)
    free.append(size)
    assert write_shards(live, tmp_path, shard_mib=SMALL)


def test_torn_files_are_written_again(live, tmp_path):  # noqa: F811
    """A file that is too short, and one of other groups."""
    write_shards(live, tmp_path, shard_mib=SMALL)
    one, two, three = (tmp_path / name for name in files(tmp_path)[:3])
    whole = [path.read_bytes() for path in (one, two, three)]
    one.write_bytes(whole[0][:-7])
    shutil.copy(three, two)
    assert write_shards(live, tmp_path, shard_mib=SMALL)
    assert [path.read_bytes() for path in (one, two, three)] == whole


def test_a_folder_of_other_activations_is_refused(live, tmp_path):  # noqa: F811
    write_shards(live, tmp_path)
    other = Live(live.lm, live.contexts, SITES[:1])
    with pytest.raises(
        ArtefactError, match="holds activations of another model, text, site or dtype: remove the folder"
    ):
        write_shards(other, tmp_path)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("shard-*")}


def test_a_site_added_later_is_written_to_a_folder_of_its_own(live, tmp_path):  # noqa: F811
    """Killed in between, in two parts: existing files stay, and the stream is that of all sites written at once."""

    def of(sites, kind=Live):
        return kind(live.lm, live.contexts, sites, str(live.dtype).removeprefix("torch."), block=12)

    def inputs_digest_of(sites):
        return digest_json(sorted(sites))

    assert write_missing_sites(of, tmp_path, SITES[:1], inputs_digest_of, shard_mib=SMALL)
    before = stamps(tmp_path)
    assert len(before) >= 4
    assert missing_sites(tmp_path, SITES, inputs_digest_of) == SITES[1:]
    with pytest.raises(ArtefactError, match=r"holds no activations at layers\.1\.attention: `jumpahead harvest`"):
        Shards(tmp_path, sites=SITES)
    with pytest.raises(Killed):
        write_missing_sites(lambda sites: of(sites, FailingLive), tmp_path, SITES, inputs_digest_of, shard_mib=SMALL)
    half = stamps(tmp_path)
    assert before.items() < half.items()
    assert missing_sites(tmp_path, SITES, inputs_digest_of) == SITES[1:]
    with pytest.raises(ArtefactError, match=r"added_sites.* holds [0-9]+ of [0-9]+ files of activations"):
        Shards(tmp_path, sites=SITES)
    assert list(Shards(tmp_path).widths) == SITES[:1]  # complete sites can be read already

    assert not write_missing_sites(of, tmp_path, SITES, inputs_digest_of, shard_mib=SMALL, rank=WriterRank(1, 2))
    assert write_missing_sites(of, tmp_path, SITES, inputs_digest_of, shard_mib=SMALL, rank=WriterRank(2, 2))
    assert missing_sites(tmp_path, SITES, inputs_digest_of) == []
    assert half.items() <= stamps(tmp_path).items()
    shards = Shards(tmp_path, block=12, sites=SITES)
    assert shards.widths == live.widths
    assert all(torch.equal(a[s], b[s]) for a, b in zip(batches(live), batches(shards), strict=True) for s in SITES)
    assert shards.rows(5).keys() == shards.gather([5]).keys() == set(SITES)
    assert all(torch.equal(shards.labels(5)[key], Shards(tmp_path, sites=SITES[1:]).labels(5)[key]) for key in LABELS)

    done = stamps(tmp_path)
    with pytest.raises(ArtefactError, match="activations of another model, text, site or dtype: remove the folder"):
        write_missing_sites(of, tmp_path, SITES[:1], lambda sites: f"of another model {sites}", shard_mib=SMALL)
    assert stamps(tmp_path) == done
    assert missing_sites(tmp_path, SITES[1:], inputs_digest_of) == []  # a study may drop a site
    assert write_missing_sites(of, tmp_path, SITES[::-1], inputs_digest_of, shard_mib=SMALL)
    assert stamps(tmp_path) == done


def test_a_site_of_other_text_is_refused(live, contexts, tmp_path):  # noqa: F811
    def of(sites):
        return Live(live.lm, contexts, sites, "float16")

    write_missing_sites(of, tmp_path, SITES[:1])
    with pytest.raises(ArtefactError, match="holds activations of another model, text, site or dtype: remove"):
        write_missing_sites(lambda sites: Live(live.lm, contexts, sites), tmp_path, SITES)
    with pytest.raises(ArtefactError, match="holds activations of another model, text, site or dtype: remove"):
        write_missing_sites(lambda sites: Live(live.lm, contexts, sites), tmp_path, SITES[1:])
