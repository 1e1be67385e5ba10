"""Activations from anywhere: the rows that were given come back, the held-out ones are never trained on, and whatever
is wrong with them is a sentence."""

from __future__ import annotations

import itertools
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jumpahead.activations import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.origins.tensors import is_group_held_out, rows_for, spool
from jumpahead.activations.stream import Stream
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.formatting import size

GROUP = 16


def rows(n, d=5, seed=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def config(source="", site="pictures", dtype="float32", **options):
    options = {"source": str(source), "rows": GROUP, "held_out": 0.25, **options}
    return ActivationsConfig(sites=(site,), origin="tensors", dtype=dtype, block=4, options=options)


def opened(source="", folder=None, **options):
    return ORIGINS.get("tensors").open(config(source, **options), folder=folder)


def everything(data):
    """The rows of all groups, by their site."""
    parts = [data.rows(group) for group in range(len(data.rows_per_group))]
    return {site: torch.cat([part[site] for part in parts]) for site in data.widths}


def split(x):
    """The rows of the groups that are trained on, and of those held out; worked out here by hand."""
    parts = [[], []]
    for number, start in enumerate(range(0, len(x), GROUP)):
        parts[is_group_held_out(number, 0.25)].append(x[start : start + GROUP])
    return [torch.cat(part) for part in parts]


def test_an_array_is_read_in_groups_of_which_some_are_held_out(tmp_path):
    x = rows(203)  # 13 groups, the last one of 11
    np.save(tmp_path / "x.npy", x.numpy())
    data = opened(tmp_path / "x.npy")
    trained, held_out = split(x)
    assert 2 <= -(-len(held_out) // GROUP) <= 6
    assert torch.equal(everything(data)["pictures"], trained)
    assert torch.equal(everything(data.held_out)["pictures"], held_out)
    assert data.total + data.held_out.total == 203
    assert data.documents(2).tolist() == [2] * GROUP
    assert data.digest != data.held_out.digest
    batch = next(Stream(data, 20, seed=4).batches())["pictures"]
    known = {tuple(row) for row in trained.tolist()}
    assert all(tuple(row) in known for row in batch.tolist())


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_folder_of_files_is_one_after_the_other(tmp_path, kind):
    parts = [rows(40, seed=1), rows(16, seed=2), rows(37, seed=3)]  # 3 + 1 + 3 groups
    for name, x in zip("bac", parts, strict=True):
        path = tmp_path / f"{name}.{kind}"
        np.save(path, x.double().numpy()) if kind == "npy" else save_file({"x": x.bfloat16()}, path)
    (tmp_path / "readme.txt").write_text("not activations")
    data = opened(tmp_path, held_out=0.5)
    assert len(data.rows_per_group) + len(data.held_out.rows_per_group) == 7
    numbers = [number for number in range(7) if not is_group_held_out(number, 0.5)]
    groups = [
        part[start : start + GROUP] for part in (parts[1], parts[0], parts[2]) for start in range(0, len(part), 16)
    ]
    for group, number in enumerate(numbers):
        expected = groups[number] if kind == "npy" else groups[number].bfloat16().float()
        assert torch.equal(data.rows(group)["pictures"], expected)


def test_a_tensor_per_site(tmp_path):
    save_file({"early": rows(64, 3), "late": rows(64, 7), "label": torch.arange(64)}, tmp_path / "x.safetensors")
    given = config(tmp_path / "x.safetensors").model_copy(update={"sites": ("late", "early")})
    data = ORIGINS.get("tensors").open(given)
    assert data.widths == {"late": 7, "early": 3}
    assert torch.equal(everything(data)["early"], split(rows(64, 3))[0])
    with pytest.raises(StudyError, match=r"has no tensor 'pictures', it has early, late, label: name it"):
        opened(tmp_path / "x.safetensors")


def test_the_digest_is_of_the_rows_and_their_groups(tmp_path):
    np.save(tmp_path / "x.npy", rows(203).numpy())
    digests = [opened(tmp_path / "x.npy", **other).digest for other in ({}, {"rows": 8}, {"dtype": "bfloat16"})]
    np.save(tmp_path / "x.npy", rows(203, seed=4).numpy())
    digests.append(opened(tmp_path / "x.npy").digest)
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda path: None, StudyError, r"source = .* does not exist: give an \.npy or \.safetensors file"),
        (lambda path: path.write_bytes(b"no"), DataError, r"is not an \.npy file of plain numbers"),
        (lambda path: np.save(path, np.array([{}, {}]), allow_pickle=True), DataError, "of plain numbers"),
        (lambda path: np.save(path, np.zeros(300)), DataError, r"holds float64 of shape \[300\] where floating-point"),
        (lambda path: np.save(path, np.zeros((300, 4), np.int32)), DataError, r"holds int32 of shape \[300, 4\]"),
        (lambda path: np.save(path, np.zeros((300, 4, 2))), DataError, r"of shape \[300, 4, 2\]"),
        (lambda path: np.save(path, np.zeros((9, 4))), DataError, "9 rows in 1 groups, and none is"),
    ],
)
def test_files_that_will_not_do_are_named(tmp_path, make, error, says):
    make(tmp_path / "x.npy")
    with pytest.raises(error, match=says):
        opened(tmp_path / "x.npy")


def test_files_that_do_not_belong_together_are_named(tmp_path):
    np.save(tmp_path / "a.npy", rows(40))
    np.save(tmp_path / "b.npy", rows(40, 6))
    with pytest.raises(DataError, match="have the widths 5, 6"):
        opened(tmp_path)
    save_file({"x": rows(40)}, tmp_path / "b.safetensors")
    with pytest.raises(StudyError, match=r"holds both \.npy and \.safetensors files: give files of one kind"):
        opened(tmp_path)
    with pytest.raises(StudyError, match=r"is or holds no \.npy or \.safetensors file"):
        opened(shutil.move(tmp_path / "a.npy", tmp_path / "a.bin"))


def test_a_value_that_is_not_finite_is_found_when_it_is_read(tmp_path):
    x = rows(203).double().numpy()
    number = next(n for n in range(4, 12) if not is_group_held_out(n, 0.25))
    x[number * GROUP + 5, 2] = 1e39  # not finite in float32
    np.save(tmp_path / "x.npy", x)
    data = opened(tmp_path / "x.npy")
    group = sum(not is_group_held_out(n, 0.25) for n in range(number))
    assert data.rows(group - 1)
    with pytest.raises(DataError, match=rf"row {number * GROUP + 5} of .*x\.npy holds a value that is not finite"):
        data.rows(group)


# ---------------------------------------------------------------------------------------------- iterators


def spooled(tensors, folder, n=203, **other):
    spool(tensors, folder, site="pictures", rows=n, group=GROUP, **other)
    return opened(folder=folder)


@pytest.mark.parametrize("sizes", [[300], [1] * 203, [7, 16, 32, 100, 90], [203], [16] * 13])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, np.float64])
def test_what_an_iterator_gives_comes_back(tmp_path, sizes, kind, monkeypatch):
    monkeypatch.setattr(
        "jumpahead.activations.origins.tensors.FILE_MIB", 3.2 * GROUP * 5 * 4 / 2**20
    )  # 3 groups a file
    x = rows(300)
    parts = x[: sum(sizes)].split(sizes)
    tensors = (part.numpy().astype(kind) if kind is np.float64 else part.to(kind) for part in parts)
    data = spooled(tensors, tmp_path)
    expected = x[:203] if kind is np.float64 else x[:203].to(kind).float()
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert torch.equal(everything(data)["pictures"], split(expected)[0])
    assert torch.equal(everything(data.held_out)["pictures"], split(expected)[1])


def test_what_is_spooled_is_used_again_if_it_is_the_same(tmp_path):
    first = spooled(iter([rows(300)]), tmp_path).digest
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    endless = itertools.chain([rows(300)], (pytest.fail("more was taken than is needed") for _ in itertools.count()))
    assert spooled(endless, tmp_path).digest == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    for other in ({"tensors": iter([rows(300, seed=4)])}, {"n": 204}, {"dtype": torch.bfloat16}):
        with pytest.raises(ArtefactError, match="holds other activations: remove it, or name another `out`"):
            spooled(**{"tensors": iter([rows(300)]), **other}, folder=tmp_path)
    assert spooled(iter([rows(300, seed=4)]), tmp_path / "other").digest != first


def test_damage_is_found(tmp_path):
    data = spooled(iter([rows(300)]), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    at = whole.index(data.rows(3)["pictures"].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert opened(folder=tmp_path).rows(2)
    with pytest.raises(ArtefactError, match="is torn or damaged"):
        opened(folder=tmp_path).rows(3)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([], "gave nothing, 0 of 203 rows: an iterator can be used only once"),
        ([rows(30), rows(40)], r"ended after 70 of 203 rows: say rows=70"),
        ([rows(30), rows(40, 6)], "tensor 2 has the width 6, those before have 5"),
        ([rows(30), rows(40)[0]], r"tensor 2 has the shape \[5\]: it must be \[n, d\]"),
        ([rows(30), rows(0)], r"tensor 2 has the shape \[0, 5\]"),
        (
            [rows(30), rows(4).index_fill(0, torch.tensor(2), float("nan"))],
            "row 2 of tensor 2 holds a value",
        ),
        ([torch.ones(30, 5, dtype=torch.int64)], "tensor 1 holds int64: activations are floating-point numbers"),
        ([rows(30), "text"], "tensor 2 is a str: give torch tensors or numpy arrays"),
    ],
)
def test_an_iterator_that_will_not_do_leaves_nothing(tmp_path, tensors, says):
    with pytest.raises(DataError, match=says):
        spooled(iter(tensors), tmp_path / "new")
    assert not list(tmp_path.rglob("*.*"))


def test_the_disk_is_looked_at_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 203 * 5 * 4 - 1))
    with pytest.raises(StudyError, match=rf"of free disk, and 203 rows of width 5 need {size(4060)}: give"):
        spooled(iter([rows(300)]), tmp_path)
    assert spooled(iter([rows(300)]), tmp_path, n=202)


@pytest.mark.parametrize(("tokens", "share"), [(1, 0.25), (16, 0.25), (17, 0.25), (1000, 0.1), (1000, 0.7)])
def test_rows_for_a_number_of_tokens_are_just_enough(tokens, share):
    """Without the last group there are fewer rows to train on than asked for, with it there are enough."""
    total = rows_for(tokens, share, GROUP)
    kept = [n for n in range(total // GROUP) if not is_group_held_out(n, share)]
    assert len(kept) * GROUP >= tokens > (len(kept) - 1) * GROUP
    assert kept[-1] == total // GROUP - 1
