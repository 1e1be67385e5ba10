"""Iterators of tensors are written to files: the rows come back, and a failure leaves no files."""

from __future__ import annotations

import itertools
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from jumpahead.activations.tensor_writer import write_iterator
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.formatting import format_bytes
from tests.activations.origins.test_tensors import GROUP, everything, opened, rows, split


def written(tensors, folder, n=203, **other):
    write_iterator(tensors, folder, site="pictures", rows=n, rows_per_group=GROUP, **other)
    return opened(folder=folder)


@pytest.mark.parametrize("sizes", [[300], [1] * 203, [7, 16, 32, 100, 90], [203], [16] * 13])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, np.float64])
def test_the_rows_of_an_iterator_come_back(tmp_path, sizes, kind, monkeypatch):
    monkeypatch.setattr("jumpahead.activations.tensor_writer.FILE_MIB", 3.2 * GROUP * 5 * 4 / 2**20)  # 3 groups a file
    x = rows(300)
    parts = x[: sum(sizes)].split(sizes)
    tensors = (part.numpy().astype(kind) if kind is np.float64 else part.to(kind) for part in parts)
    data = written(tensors, tmp_path)
    expected = x[:203] if kind is np.float64 else x[:203].to(kind).float()
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert torch.equal(everything(data)["pictures"], split(expected)[0])
    assert torch.equal(everything(data.held_out)["pictures"], split(expected)[1])


def test_files_are_used_again_if_the_iterator_gives_the_same_rows(tmp_path):
    first = written(iter([rows(300)]), tmp_path).digest
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    endless = itertools.chain([rows(300)], (pytest.fail("more was taken than is needed") for _ in itertools.count()))
    assert written(endless, tmp_path).digest == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    for other in ({"tensors": iter([rows(300, seed=4)])}, {"n": 204}, {"dtype": torch.bfloat16}):
        with pytest.raises(ArtefactError, match="holds other activations: remove it, or name another `out`"):
            written(**{"tensors": iter([rows(300)]), **other}, folder=tmp_path)
    assert written(iter([rows(300, seed=4)]), tmp_path / "other").digest != first


def test_changed_bytes_are_detected(tmp_path):
    data = written(iter([rows(300)]), tmp_path)
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
def test_an_unusable_iterator_leaves_no_files(tmp_path, tensors, says):
    with pytest.raises(DataError, match=says):
        written(iter(tensors), tmp_path / "new")
    assert not list(tmp_path.rglob("*.*"))


def test_free_disk_space_is_checked_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 203 * 5 * 4 - 1))
    with pytest.raises(StudyError, match=rf"of free disk, and 203 rows of width 5 need {format_bytes(4060)}: give"):
        written(iter([rows(300)]), tmp_path)
    assert written(iter([rows(300)]), tmp_path, n=202)
