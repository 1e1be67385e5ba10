"""Standard input: read once, kept with the run."""

from __future__ import annotations

import io
import sys

import pytest

from jumpahead.errors import DataError
from jumpahead.progress import Silent
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents
from jumpahead.text.sources import source_of


@pytest.fixture
def piped(tmp_path, monkeypatch):
    """`piped(content)` is the source as a run in one folder sees it after it was prepared; None is a terminal."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def prepared(content):
        stdin = Terminal() if content is None else io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr(sys, "stdin", stdin)
        source = source_of(TextConfig(source="-", separator="<|x|>"), tmp_path / "run")
        source.prepare(Silent())
        return source

    return prepared


def texts(source):
    return sorted(document.text for document in documents(source))


def test_it_is_kept_and_need_not_come_again(piped, tmp_path):
    first = piped("one<|x|>two\r\n<|x|>drei ä".encode())
    assert texts(first) == ["drei ä", "one", "two"]
    assert first.done == first.total - 1  # a line end was normalised
    known, path = first.fingerprint(), tmp_path / "run" / "stdin.txt"
    stamp = path.stat().st_mtime_ns
    for again in (None, b"", "one<|x|>two\r\n<|x|>drei ä".encode()):
        source = piped(again)
        assert source.fingerprint() == known
        assert texts(source) == texts(first)
    assert path.stat().st_mtime_ns == stamp
    assert [p.name for p in path.parent.iterdir()] == ["stdin.txt"]


def test_another_input_is_another_text(piped):
    known = piped(b"one<|x|>two").fingerprint()
    other = piped(b"three<|x|>two")
    assert other.fingerprint() != known
    assert texts(other) == ["three", "two"]


@pytest.mark.parametrize("content", [None, b""])
def test_nothing_at_all_says_what_to_do(piped, content):
    source = piped(content)
    assert source.total is None
    with pytest.raises(DataError, match=r"nothing came from standard input: pipe text into `jumpahead run`"):
        texts(source)


def test_what_is_not_text_is_named(piped):
    with pytest.raises(DataError, match=r"stdin\.txt is not UTF-8 \(byte 0xe9 at 3\)"):
        texts(piped(b"caf\xe9"))
