"""Tensors in safetensors files come back bitwise; a torn or changed file is refused by name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from jumpahead.errors import ArtefactError, DamagedError
from jumpahead.storage.tensors import read_arrays, read_tensors, read_tensors_digest, read_tensors_info, write_tensors


def test_tensors_come_back_bitwise_and_the_file_is_a_function_of_its_content(tmp_path: Path):
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "w": torch.randn(5, 3, generator=generator).T,  # not contiguous
        "half": torch.randn(7, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    info = {"architecture": "jumprelu", "width": 48, "nested": {"b": [1, 2], "a": None}}
    path = write_tensors(tmp_path / "w.safetensors", tensors, info)
    back = read_tensors(path)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert torch.equal(back[key], value)
        assert back[key].data_ptr() % 16 == 0
    assert read_tensors_info(path) == info
    again = write_tensors(tmp_path / "again.safetensors", dict(reversed(tensors.items())), info)
    assert again.read_bytes() == path.read_bytes()


def test_arrays_come_back_bitwise(tmp_path: Path):
    arrays = {
        "ids": np.arange(9, dtype=np.uint16)[::2],
        "start": np.array([2**40], np.int64),
        "trained": np.bool_([1, 0]),
    }
    back = read_arrays(write_tensors(tmp_path / "t.safetensors", arrays))
    for key, value in arrays.items():
        assert back[key].dtype == value.dtype
        assert np.array_equal(back[key], value)


def test_torn_tensors_are_named_at_every_length(tmp_path: Path):
    path = write_tensors(tmp_path / "w.safetensors", {"w": torch.arange(12.0)})
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match=r"w\.safetensors is torn .*`jumpahead run` makes it again"):
            read_tensors(path)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"w\.safetensors does not exist"):
        read_tensors(path)


def test_every_flipped_byte_is_seen_or_changes_nothing(tmp_path: Path):
    tensors, info = {"b": torch.arange(3.0), "w": torch.arange(12.0)}, {"step": 7, "l0": [0.25]}
    path = write_tensors(tmp_path / "w.safetensors", tensors, info)
    whole, damaged = path.read_bytes(), 0
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 4
        path.write_bytes(content)
        try:
            back = read_tensors(path)
        except DamagedError:
            damaged += 1
            continue
        assert all(torch.equal(value, tensors[key]) for key, value in back.items()), position
        assert read_tensors_info(path) == info, position
    assert damaged > 0.9 * len(whole)


def test_a_file_without_checksums_is_refused(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"W": torch.arange(6.0)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    for read in (read_tensors, read_tensors_info):
        with pytest.raises(DamagedError, match="has no checksums"):
            read(tmp_path / "x.safetensors")


def test_the_digest_is_of_the_content(tmp_path: Path):
    tensors = {"w": torch.arange(12.0)}
    path = write_tensors(tmp_path / "w.safetensors", tensors, {"step": 7})
    same = write_tensors(tmp_path / "same.safetensors", {"w": torch.arange(12.0)}, {"step": 7})
    assert read_tensors_digest(path) == read_tensors_digest(same)
    others = [({"w": torch.arange(12.0) + 1}, {"step": 7}), (tensors, {"step": 8}), ({"v": tensors["w"]}, {"step": 7})]
    others += [({"w": tensors["w"].view(3, 4)}, {"step": 7}), ({"w": tensors["w"].view(torch.int32)}, {"step": 7})]
    found = {read_tensors_digest(write_tensors(tmp_path / "o.safetensors", *other)) for other in others}
    assert len(found | {read_tensors_digest(path)}) == 6


def test_a_file_size_limit_is_a_sentence(tmp_path: Path):
    program = """
        import resource, sys, torch
        from pathlib import Path
        from jumpahead.errors import ArtefactError
        from jumpahead.storage.tensors import write_tensors
        path = Path(sys.argv[1])
        write_tensors(path, {"w": torch.arange(12.0)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_tensors(path, {"w": torch.zeros(100_000)})
        except ArtefactError as exc:
            print(exc)
    """
    path = tmp_path / "w.safetensors"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), path], capture_output=True, text=True)
    assert done.stdout == f"{path} cannot be written (File too large): make room, and the same command continues.\n"
    assert torch.equal(read_tensors(path)["w"], torch.arange(12.0))
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_can_be_read_by_whom_other_files_can_be_read(tmp_path):
    (tmp_path / "other").write_text("x")
    made = write_tensors(tmp_path / "a.safetensors", {"w": torch.full((3,), 2.5)})
    assert made.stat().st_mode == (tmp_path / "other").stat().st_mode
