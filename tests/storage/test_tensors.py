"""Tensors in safetensors files come back bitwise; a torn or changed file is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jumpahead.errors import ArtefactError
from jumpahead.storage.tensors import read_arrays, read_tensors, read_tensors_info, write_tensors


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


def test_one_flipped_bit_is_seen(tmp_path: Path):
    path = write_tensors(tmp_path / "w.safetensors", {"b": torch.arange(3.0), "w": torch.arange(12.0)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"damaged: 'w' does not match its checksum"):
        read_tensors(path)


def test_a_foreign_file_has_no_checksum_and_is_read(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"W": torch.arange(6.0)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["W"], torch.arange(6.0))
    assert read_tensors_info(tmp_path / "x.safetensors") == {}
