"""Standard input: read once, stored in the run's folder."""

from __future__ import annotations

import io
import sys

import pytest

from jumpahead.errors import DataError
from jumpahead.progress import SilentProgress
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents
from jumpahead.text.sources import source_of


@pytest.fixture
def piped(tmp_path, monkeypatch):
    """Return a function from the piped content (None: a terminal) to the prepared source of a run."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def prepared(content):
        stdin = Terminal() if content is None else io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr(sys, "stdin", stdin)
        source = source_of(TextConfig(source="-", separator="<|x|>"), tmp_path / "run")
        source.prepare(SilentProgress())
        return source

    return prepared


def texts(source):
    return sorted(document.text for document in documents(source))


def test_the_text_is_stored_and_need_not_be_piped_again(piped, tmp_path):
    first = piped("one<|x|>two\r\n<|x|>drei ä".encode())
    assert texts(first) == ["drei ä", "one", "two"]
    assert first.bytes_read == first.total_bytes - 1  # a line end was normalised
    known, path = first.fingerprint(), tmp_path / "run" / "stdin.txt"
    time = path.stat().st_mtime_ns
    for again in (None, b"", "one<|x|>two\r\n<|x|>drei ä".encode()):
        source = piped(again)
        assert source.fingerprint() == known
        assert texts(source) == texts(first)
    assert path.stat().st_mtime_ns == time
    assert [p.name for p in path.parent.iterdir()] == ["stdin.txt"]


def test_another_input_replaces_the_text(piped):
    known = piped(b"one<|x|>two").fingerprint()
    other = piped(b"three<|x|>two")
    assert other.fingerprint() != known
    assert texts(other) == ["three", "two"]


@pytest.mark.parametrize("content", [None, b""])
def test_empty_input_is_refused(piped, content):
    source = piped(content)
    assert source.total_bytes is None
    with pytest.raises(DataError, match=r"standard input was empty: pipe text into `jumpahead run`"):
        texts(source)


def test_input_that_is_not_utf8_is_named(piped):
    with pytest.raises(DataError, match=r"stdin\.txt is not UTF-8 \(byte 0xe9 at 3\)"):
        texts(piped(b"caf\xe9"))
