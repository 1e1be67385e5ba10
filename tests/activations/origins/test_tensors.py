"""Activations from files and iterators: the given rows come back, held-out ones are never trained on, and errors say
what is wrong with the data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.held_out_groups import is_group_held_out
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.stream import Stream
from jumpahead.errors import DataError, StudyError

GROUP = 16


def rows(n, d=5, seed=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def config(source="", site="pictures", dtype="float32", **options):
    options = {"source": str(source), "rows_per_group": GROUP, "held_out": 0.25, **options}
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
    assert data.total_rows + data.held_out.total_rows == 203
    assert data.document_ids(2).tolist() == [2] * GROUP
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
    digests = [
        opened(tmp_path / "x.npy", **other).digest for other in ({}, {"rows_per_group": 8}, {"dtype": "bfloat16"})
    ]
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
def test_errors_for_unusable_files(tmp_path, make, error, says):
    make(tmp_path / "x.npy")
    with pytest.raises(error, match=says):
        opened(tmp_path / "x.npy")


def test_errors_for_files_that_do_not_belong_together(tmp_path):
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
