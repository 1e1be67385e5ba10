"""Forged files: every reader says one sentence, in bounded time and memory."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jumpahead.activations.row_files import RowFileReader
from jumpahead.activations.tensor_files import open_tensor_file
from jumpahead.errors import JumpaheadError
from jumpahead.interchange.weights import WeightsFile
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_shape import read_model_shape
from jumpahead.storage.json_files import read_json, read_json_lines
from jumpahead.storage.tensors import map_array, read_arrays, read_tensors, read_tensors_info, verify_tensors
from jumpahead.study.load import load
from tests.faults.small_run import IS_COMPLETE

MAX_SENTENCE = 400
TENSOR_READERS: list[Callable[[Path], Any]] = [
    read_tensors,
    read_arrays,
    read_tensors_info,
    verify_tensors,
    lambda path: map_array(path, "W_enc"),
    lambda path: RowFileReader(path, is_own=True),
]


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return the bytes of a safetensors file with a forged header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """Return the header entry of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


OWN = {"jumpahead": json.dumps({"crc32": {"W_enc": zlib.crc32(bytes(8))}, "info": {}, "sha256": "0" * 64})}
FORGED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "length beyond the file": safetensors({}, length=2**40),
    "length of 2^63": safetensors({}, length=2**63 + 1),
    "no JSON": safetensors(b"{'a': 1}"),
    "a list": safetensors([1, 2]),
    "a number": safetensors(3),
    "nested deep": safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "17 TB": safetensors({"W_enc": entry(shape=[2**42], offsets=[0, 2**44])}, bytes(8)),
    "17 TB in 8 bytes": safetensors({"W_enc": entry(shape=[2**42], offsets=[0, 8])}, bytes(8)),
    "overflowing shape": safetensors({"W_enc": entry(shape=[2**32, 2**32], offsets=[0, 8])}, bytes(8)),
    "many dimensions": safetensors({"W_enc": entry(shape=[1] * 100_000 + [2])}, bytes(8)),
    "huge numbers": safetensors({"W_enc": entry(shape=[10**300] * 50)}, bytes(8)),
    "negative shape": safetensors({"W_enc": entry(shape=[-2])}, bytes(8)),
    "shape of text": safetensors({"W_enc": entry(shape=["2"])}, bytes(8)),
    "shape of fractions": safetensors({"W_enc": entry(shape=[2.5])}, bytes(8)),
    "no shape": safetensors({"W_enc": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "no dtype": safetensors({"W_enc": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no offsets": safetensors({"W_enc": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "unknown dtype": safetensors({"W_enc": entry("F31")}, bytes(8)),
    "dtype is a list": safetensors({"W_enc": entry(["F32"])}, bytes(8)),
    "offsets backwards": safetensors({"W_enc": entry(offsets=[8, 0])}, bytes(8)),
    "negative offsets": safetensors({"W_enc": entry(offsets=[-8, 0])}, bytes(8)),
    "three offsets": safetensors({"W_enc": entry(offsets=[0, 8, 8])}, bytes(8)),
    "offsets beyond the file": safetensors({"W_enc": entry(offsets=[0, 8])}, bytes(4)),
    "bytes left over": safetensors({"W_enc": entry(offsets=[0, 8])}, bytes(16)),
    "overlap": safetensors({"W_enc": entry(), "W_dec": entry(offsets=[0, 8])}, bytes(8)),
    "half overlap": safetensors({"W_enc": entry(), "W_dec": entry(offsets=[4, 12])}, bytes(12)),
    "a hole": safetensors({"W_enc": entry(), "W_dec": entry(offsets=[16, 24])}, bytes(24)),
    "F64": safetensors({"W_enc": entry("F64", [1])}, bytes(8)),
    "I32": safetensors({"W_enc": entry("I32")}, bytes(8)),
    "metadata null": safetensors({"__metadata__": None, "W_enc": entry()}, bytes(8)),
    "metadata a list": safetensors({"__metadata__": [], "W_enc": entry()}, bytes(8)),
    "metadata of numbers": safetensors({"__metadata__": {"jumpahead": 3}, "W_enc": entry()}, bytes(8)),
    "own, no JSON": safetensors({"__metadata__": {"jumpahead": "{"}, "W_enc": entry()}, bytes(8)),
    "own, a list": safetensors({"__metadata__": {"jumpahead": "[]"}, "W_enc": entry()}, bytes(8)),
    "own, empty": safetensors({"__metadata__": {"jumpahead": "{}"}, "W_enc": entry()}, bytes(8)),
    "own, deep": safetensors({"__metadata__": {"jumpahead": "[" * 50_000}, "W_enc": entry()}, bytes(8)),
    "own, wrong digest": safetensors({"__metadata__": OWN, "W_enc": entry()}, bytes(8)),
    "own, NaN": safetensors({"__metadata__": {"jumpahead": '{"info": NaN, "sha256": ""}'}, "W_enc": entry()}, bytes(8)),
    "an entry is a number": safetensors({"W_enc": 3}, bytes(8)),
    "an entry is null": safetensors({"W_enc": None}, bytes(8)),
    "20,000 empty tensors": safetensors({f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(20_000)}),
    "twice the same name": safetensors(
        b'{"a": 1, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)
    ),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\x03\x04" + bytes(60),
    "HTML": b"<html><script>alert(1)</script></html>",
}


def assert_refused(read: Callable[[Path], Any], path: Path) -> None:
    """Assert that a reader raises an error of this package, in one sentence that names the file."""
    with pytest.raises(JumpaheadError) as caught:
        read(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < MAX_SENTENCE + len(str(path))


@pytest.mark.parametrize("name", FORGED)
def test_forged_safetensors(tmp_path: Path, name: str):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(FORGED[name])
    for read in TENSOR_READERS:
        assert_refused(read, path)
    for read in (RowFileReader, WeightsFile.read):  # of another library: may be read
        assert_read_or_refused(read, path)


def assert_read_or_refused(read: Callable[[Path], Any], path: Path) -> None:
    """Assert that a reader raises nothing but an error of this package that names the file."""
    try:
        read(path)
    except JumpaheadError as error:
        named = path.name in str(error)
    else:
        named = True
    assert named


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """Return the bytes of an .npy file with a forged header."""
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


NPY = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "version 9": npy("{}", version=9),
    "negative shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}\n", bytes(64)),
    "17 TB": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4398046511104,)}\n", bytes(64)),
    "overflow": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9)}\n", bytes(64)),
    "deep": npy("(" * 9000 + ")" * 9000),
    "deeper": npy("[" * 60_000, version=2),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}\n", bytes(64)),
    "records": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}\n", bytes(64)),
    "a call": npy("__import__('os').system('true')\n", bytes(64)),
    "text": npy("{'descr': '<U4', 'fortran_order': False, 'shape': (4,)}\n", bytes(64)),
    "truncated": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4)}\n", bytes(8)),
    "shape of text": npy("{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}\n", bytes(64)),
    "no shape": npy("{'descr': '<f4', 'fortran_order': False}\n", bytes(64)),
    "extra key": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'x': 1}\n", bytes(64)),
}


@pytest.mark.parametrize("name", NPY)
def test_forged_npy(tmp_path: Path, name: str):
    path = tmp_path / "x.npy"
    path.write_bytes(NPY[name])
    assert_refused(open_tensor_file, path)


CONFIGS = [
    "[]", "3", "null", '"x"', "{}", "{", "[" * 100_000, '{"text_config": []}',
    '{"num_hidden_layers": -3, "hidden_size": 8}',
    '{"num_hidden_layers": 3, "hidden_size": -8}', '{"num_hidden_layers": 0, "hidden_size": 8}',
    '{"num_hidden_layers": "3", "hidden_size": 8}', '{"num_hidden_layers": true, "hidden_size": 8}',
    '{"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 0}',
    '{"num_hidden_layers": 3, "hidden_size": 8, "vocab_size": -1}', '{"num_hidden_layers": [3], "hidden_size": {}}',
]  # fmt: skip


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_forged_model_configs(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(JumpaheadError):
        read_model_shape(LMConfig(model=str(tmp_path)))


FUZZ = settings(
    max_examples=2000 if IS_COMPLETE else 40, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ENTRY = (
    st.fixed_dictionaries({"dtype": JSON | st.sampled_from(["F32", "I8"]), "shape": JSON, "data_offsets": JSON}) | JSON
)


@given(content=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
@FUZZ
def test_any_bytes_as_json(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_json, lambda path: read_json(path, "x/1"), read_json_lines):
        assert_read_or_refused(read, path)


@given(
    header=st.dictionaries(st.sampled_from(["W_enc", "b", "__metadata__"]), ENTRY, max_size=3),
    data=st.binary(max_size=16),
)
@FUZZ
def test_any_header_as_safetensors(tmp_path: Path, header: Any, data: bytes):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, data))
    for read in (*TENSOR_READERS, RowFileReader):
        assert_read_or_refused(read, path)


@given(content=st.binary(max_size=200).map(lambda tail: np.lib.format.magic(1, 0) + tail) | st.binary(max_size=100))
@FUZZ
def test_any_bytes_as_npy(tmp_path: Path, content: bytes):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    assert_read_or_refused(open_tensor_file, path)


@given(content=st.text(max_size=200) | st.binary(max_size=100).map(lambda value: value.decode("latin1")))
@FUZZ
def test_any_text_as_a_study(tmp_path: Path, content: str):
    path = tmp_path / "a.toml"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(JumpaheadError):
        load(path)
