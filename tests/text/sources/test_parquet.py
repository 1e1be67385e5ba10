"""Parquet: kinds of text columns, and files that are torn."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from jumpahead.errors import DataError
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents


def read(path):
    return [document.text for document in documents(TextConfig(source=str(path)))]


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)
def test_every_kind_of_text_is_read(tmp_path, kind):
    rows = ["alpha", "beta", "gamma"] * 400
    table = pyarrow.table({"text": pyarrow.array([f"{row} {i % 1000}" for i, row in enumerate(rows)]).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == list(dict.fromkeys(f"{row} {i % 1000}" for i, row in enumerate(rows)))


def test_bytes_are_not_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"alpha"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: the column 'text' \(text\.column\) holds binary, not text"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "harm", [lambda b: b[:-20], lambda b: b"", lambda b: b"PAR1 and no more", lambda b: b[:8] + b"\xff" * 400 + b[408:]]
)
def test_a_torn_file_is_named(tmp_path, harm):
    rows = [f"row {i} of some text" for i in range(900)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "x.parquet", use_dictionary=False)
    path = tmp_path / "x.parquet"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.parquet is torn or is not Parquet: \S"):
        read(path)
