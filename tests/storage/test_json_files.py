"""JSON and JSON lines: values that JSON lacks, torn and foreign files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jumpahead.errors import ArtefactError, DamagedError
from jumpahead.sae.recipe import Setting
from jumpahead.storage.json_files import read_json, read_json_lines, write_json, write_json_lines


def test_json_takes_numpy_and_writes_null_for_what_is_not_finite(tmp_path: Path):
    value = {
        "a": np.float64(2.5),
        "b": np.arange(3),
        "c": float("nan"),
        "d": [np.inf, 7],
        "e": Setting("k", 3)._asdict(),
    }
    path = write_json(tmp_path / "a.json", value)
    assert read_json(path) == {
        "a": 2.5,
        "b": [0, 1, 2],
        "c": None,
        "d": [None, 7],
        "e": {"kind": "k", "value": 3},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.json does not exist: `jumpahead run` makes it"),
        (b'{"schema": "x/1", "list": [1, 2', r"a\.json is torn"),
        (b"", r"a\.json is torn"),
        (b"\xff\xfe{}", r"a\.json is torn"),
        (b"[1]", r"a\.json holds a list"),
        (b"{}", r"a\.json does not say what it is, this version reads 'x/1'"),
        (b'{"schema": "x/2"}', r"a\.json says that it is 'x/2', this version reads 'x/1'"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        read_json(path, "x/1")


def test_lines_survive_a_torn_end_but_not_a_torn_middle(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    write_json_lines(path, [{"step": 10}, {"step": 20}])
    with open(path, "a") as file:
        file.write('{"step": 3')
    assert read_json_lines(path) == [{"step": 10}, {"step": 20}]
    write_json_lines(path, [read_json_lines(path)[0], {"step": 20, "fvu": float("nan")}])
    assert read_json_lines(path) == [{"step": 10}, {"step": 20, "fvu": None}]
    path.write_text('{"step": 10}\n{"st\n{"step": 30}\n')
    with pytest.raises(ArtefactError, match=r"train\.jsonl is torn in line 2"):
        read_json_lines(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_every_flipped_byte_of_a_json_file_is_seen(tmp_path: Path, indent: int | None):
    value = {"schema": "x/1", "t": 31, "list": [0.25, {"é": None}], "text": "a b"}
    path = write_json(tmp_path / "a.json", value, indent=indent)
    assert read_json(path, "x/1") == value
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (1, 4, 16):
            content = bytearray(whole)
            content[position] ^= bit
            path.write_bytes(content)
            with pytest.raises(DamagedError) as caught:
                read_json(path, "x/1")
            assert caught.value.path == path
    path.write_bytes(whole.replace(b"31", b"32"))
    with pytest.raises(DamagedError, match="does not match its checksum"):
        read_json(path)


def test_json_without_checksum_is_refused_unless_it_is_for_other_programs(tmp_path: Path):
    path = write_json(tmp_path / "a.json", {"a": 3}, has_checksum=False)
    with pytest.raises(DamagedError, match="has no checksum"):
        read_json(path)
    assert read_json(path, has_checksum=False) == {"a": 3}
    assert read_json(write_json(path, {})) == {}


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000])
def test_json_nested_deep_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedError, match="is torn or is not JSON"):
        read_json(tmp_path / "a.json")
