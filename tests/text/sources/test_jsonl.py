"""JSON Lines: errors name the line."""

from __future__ import annotations

import gzip

import pytest

from jumpahead.errors import DataError
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents


def read(path):
    return [document.text for document in documents(TextConfig(source=str(path)))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a"}\n{"text": \n', r"line 2 of .*x\.jsonl is not JSON \(expecting value at 11\)"),
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"line 2 of .*x\.jsonl is not UTF-8 \(byte 0xe9 at 13 in it\)"),
        (b'{"text": "a"}\n\n["a"]\n', r"line 3 of .*x\.jsonl is a JSON list, not an object"),
        ('{"text": "a"}\n'.encode("utf-16"), r"x\.jsonl is UTF-16"),
        (b'{"text": "a\\ud800b"}\n', r"x\.jsonl, line 1 has half of a character \('\\ud800'\)"),
        (b'{"text": ["a"]}\n', r"x\.jsonl, line 1 has a list in its column 'text', not text"),
        (b"\x89PNG\0\0\xff\xfe\n", r"line 1 of .*x\.jsonl is not UTF-8"),
        (b"[" * 100_000, r"line 1 of .*x\.jsonl is not JSON"),
        (b"", r"holds no text"),
        (b"\n \n", r"holds no text"),
    ],
)
def test_lines_that_are_not_rows_are_named(tmp_path, content, says):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read(tmp_path / "x.jsonl")


def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}')
    assert read(tmp_path / "x.jsonl") == ["a", "b"]


def test_a_very_long_line_is_a_row(tmp_path):
    text = "word " * 500_000
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "%s"}\n{"text": "b"}' % text.encode())
    assert read(tmp_path / "x.jsonl") == [text, "b"]


@pytest.mark.parametrize(
    "harm", [lambda b: b[:-20], lambda b: b"not gzip at all", lambda b: b[:30] + b"\xff" * 9 + b[39:]]
)
def test_a_torn_archive_is_named(tmp_path, harm):
    whole = gzip.compress(b"".join(b'{"text": "row %d"}\n' % i for i in range(99)))
    (tmp_path / "x.jsonl.gz").write_bytes(harm(whole))
    with pytest.raises(DataError, match=r"x\.jsonl\.gz is torn or is not gzip|line \d+ of .*x\.jsonl\.gz is not"):
        read(tmp_path / "x.jsonl.gz")
