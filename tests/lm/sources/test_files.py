"""Text files: what is refused by its first bytes, and files that are never held at once."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

import pytest

from jumpahead.errors import DataError
from jumpahead.text import documents as module
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents, stretches
from jumpahead.text.sources import files, source_of


def read(path, **options):
    return list(documents(TextConfig(source=str(path), **options)))


def zipped(content):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        file.writestr("a.txt", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (zipped, "zip")]
)
def test_an_archive_is_called_what_it_is(tmp_path, pack, name):
    (tmp_path / "x.txt").write_bytes(pack(b"some text " * 99))
    with pytest.raises(DataError, match=rf"x\.txt is compressed \({name}\): unpack it, or leave it out"):
        read(tmp_path / "x.txt")
    (tmp_path / "y.txt").write_text("BZh and PK are letters.")
    assert read(tmp_path / "y.txt")[0].text == "BZh and PK are letters."


CONTENT = "\r\n".join(f"line {i} ä\u2028 \U0001f600" for i in range(400)).encode() + b"\rend\r"
TEXT = "\n".join(f"line {i} ä\u2028 \U0001f600" for i in range(400)) + "\nend\n"


@pytest.fixture(params=[1, 7, 64, 1000])
def small_pieces(monkeypatch, request):
    """Files of more than 3000 bytes are long, and come in pieces of so many bytes."""
    monkeypatch.setattr(files, "IN_MEMORY", 3000)
    monkeypatch.setattr(files, "_AT_ONCE", request.param)


def test_pieces_make_the_same_text_wherever_they_are_cut(tmp_path, small_pieces):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + CONTENT if files._AT_ONCE >= 3 else CONTENT)
    assert "".join(files.pieces(tmp_path / "x.txt")) == TEXT


def test_a_long_file_is_one_document_that_goes_on(tmp_path, small_pieces, monkeypatch):
    (tmp_path / "x.txt").write_bytes(CONTENT)
    (tmp_path / "same.txt").write_bytes(CONTENT)
    (tmp_path / "short.txt").write_text("short")
    found = {document.identity: document for document in read(tmp_path)}
    assert len(found) == 2  # the longer one once, although it was never held at once
    (long,) = found.keys() - {"short.txt"}
    monkeypatch.setattr(module, "STRETCH", 100)
    cut = list(stretches(read(tmp_path / long)[0]))
    assert "".join(cut) == TEXT
    assert all(len(piece) <= 100 and piece.endswith("\n") for piece in cut)
    source = source_of(TextConfig(source=str(tmp_path / long)))
    seen = [source.done for document in source.documents() for _ in document.rest]
    assert seen == sorted(seen)
    assert seen[-1] > 0.9 * source.total


def test_parts_of_a_long_file_come_in_its_order(tmp_path, small_pieces):
    (tmp_path / "x.txt").write_bytes(CONTENT.replace(b"\r\n", b"<|x|>"))
    found = read(tmp_path / "x.txt", separator="<|x|>")
    lines = TEXT.removesuffix("\nend\n").split("\n")
    assert [document.text for document in found] == [*lines[:-1], lines[-1] + "\nend"]
    assert [document.name for document in found[:2]] == ["x.txt, part 1", "x.txt, part 2"]
    assert all(len(document.identity) == 64 for document in found)


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b"caf\xe9 \xc3", r"is not UTF-8 \(byte 0xe9 at {at}\)"),
        (b"\xc3", r"is not UTF-8 \(byte 0xc3 at"),
        (b"a\0", "is binary"),
    ],
)
def test_what_is_wrong_at_the_end_of_a_long_file_is_found_first(tmp_path, small_pieces, tail, says):
    (tmp_path / "x.txt").write_bytes(CONTENT + tail)
    with pytest.raises(DataError, match=r"x\.txt " + says.format(at=len(CONTENT) + 3)):
        next(documents(TextConfig(source=str(tmp_path / "x.txt"))))


def test_a_separator_that_is_not_there_is_noticed_before_memory_is_full(tmp_path, small_pieces, monkeypatch):
    (tmp_path / "x.txt").write_bytes(CONTENT)
    monkeypatch.setattr(module, "IN_MEMORY", 3000)
    with pytest.raises(DataError, match=r"x\.txt goes on for 3,\d+ characters without '<\|y\|>' \(text\.separator\)"):
        read(tmp_path / "x.txt", separator="<|y|>")


def test_three_words_on_one_gigantic_line(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("three short words")
    assert [document.text for document in read(tmp_path / "x.txt")] == ["three short words"]
    (tmp_path / "x.txt").write_text("word " * 1000)
    monkeypatch.setattr(module, "STRETCH", 700)
    cut = list(stretches(read(tmp_path / "x.txt")[0]))
    assert "".join(cut) == "word " * 1000
    assert [len(piece) for piece in cut] == [*7 * [700], 100]
