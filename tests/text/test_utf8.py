"""Text files: formats that are refused, and files that are too long for memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

import pytest

from jumpahead.errors import DataError
from jumpahead.text import documents as documents_module
from jumpahead.text import utf8
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents, split_pieces
from jumpahead.text.sources import source_of
from jumpahead.text.utf8 import read_utf8


def read(path, **options):
    return list(documents(TextConfig(source=str(path), **options)))


def zipped(content):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        file.writestr("a.txt", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (zipped, "zip")]
)
def test_the_format_of_a_compressed_file_is_named(tmp_path, pack, name):
    (tmp_path / "x.txt").write_bytes(pack(b"some text " * 99))
    with pytest.raises(DataError, match=rf"x\.txt is compressed \({name}\): unpack it, or leave it out"):
        read(tmp_path / "x.txt")
    (tmp_path / "y.txt").write_text("BZh and PK are letters.")
    assert read(tmp_path / "y.txt")[0].text == "BZh and PK are letters."


CONTENT = "\r\n".join(f"line {i} ä\u2028 \U0001f600" for i in range(400)).encode() + b"\rend\r"
TEXT = "\n".join(f"line {i} ä\u2028 \U0001f600" for i in range(400)) + "\nend\n"


@pytest.fixture(params=[1, 7, 64, 1000])
def small_pieces(monkeypatch, request):
    """Files of more than 3000 bytes count as long, and are read in pieces of a few bytes."""
    monkeypatch.setattr(utf8, "MAX_BYTES_IN_MEMORY", 3000)
    monkeypatch.setattr(utf8, "_BYTES_AT_ONCE", request.param)


def test_pieces_make_the_same_text_wherever_they_are_cut(tmp_path, small_pieces):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + CONTENT if utf8._BYTES_AT_ONCE >= 3 else CONTENT)
    assert "".join(read_utf8(tmp_path / "x.txt")) == TEXT


def test_a_long_file_is_one_document_with_a_continuation(tmp_path, small_pieces, monkeypatch):
    (tmp_path / "x.txt").write_bytes(CONTENT)
    (tmp_path / "same.txt").write_bytes(CONTENT)
    (tmp_path / "short.txt").write_text("short")
    found = {document.identity: document for document in read(tmp_path)}
    assert len(found) == 2  # the long duplicate is dropped by its hash
    (long,) = found.keys() - {"short.txt"}
    monkeypatch.setattr(documents_module, "MAX_PIECE_CHARACTERS", 100)
    cut = list(split_pieces(read(tmp_path / long)[0]))
    assert "".join(cut) == TEXT
    assert all(len(piece) <= 100 and piece.endswith("\n") for piece in cut)
    source = source_of(TextConfig(source=str(tmp_path / long)))
    seen = [source.bytes_read for document in source.documents() for _ in document.continuation]
    assert seen == sorted(seen)
    assert seen[-1] > 0.9 * source.total_bytes


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
def test_errors_at_the_end_of_a_long_file_are_found_at_once(tmp_path, small_pieces, tail, says):
    (tmp_path / "x.txt").write_bytes(CONTENT + tail)
    with pytest.raises(DataError, match=r"x\.txt " + says.format(at=len(CONTENT) + 3)):
        next(documents(TextConfig(source=str(tmp_path / "x.txt"))))


def test_a_missing_separator_is_noticed_before_memory_is_full(tmp_path, small_pieces, monkeypatch):
    (tmp_path / "x.txt").write_bytes(CONTENT)
    monkeypatch.setattr(documents_module, "MAX_BYTES_IN_MEMORY", 3000)
    with pytest.raises(DataError, match=r"x\.txt has 3,\d+ characters without '<\|y\|>' \(text\.separator\)"):
        read(tmp_path / "x.txt", separator="<|y|>")


def test_a_long_line_is_cut_anywhere(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("three short words")
    assert [document.text for document in read(tmp_path / "x.txt")] == ["three short words"]
    (tmp_path / "x.txt").write_text("word " * 1000)
    monkeypatch.setattr(documents_module, "MAX_PIECE_CHARACTERS", 700)
    cut = list(split_pieces(read(tmp_path / "x.txt")[0]))
    assert "".join(cut) == "word " * 1000
    assert [len(piece) for piece in cut] == [*7 * [700], 100]
