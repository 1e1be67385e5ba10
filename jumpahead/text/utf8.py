"""Reading UTF-8 text files, in pieces if they are long. No torch here."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.source import Document

MAX_BYTES_IN_MEMORY = 2**28
"""A longer file is never held in memory as a whole; it is read twice, the first time for its hash."""
_BYTES_AT_ONCE = 2**23
_ADVICE = "convert it to UTF-8, or leave it out with text.pattern."
_COMPRESSION_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"PK\3\4": "zip",
}


def read_document(identity: str, path: Path, on_read: Callable[[int], None]) -> Document:
    """Return a text file as one document. `on_read` is called with the number of bytes of each piece that is read."""

    def counted() -> Iterator[str]:
        for piece in read_utf8(path):
            on_read(len(piece.encode()))
            yield piece

    if path.stat().st_size <= MAX_BYTES_IN_MEMORY:
        return Document(identity, "".join(counted()))
    sha = hashlib.sha256()
    for piece in read_utf8(path):
        sha.update(piece.encode())
    return Document(identity, "", continuation=counted(), content_hash=sha.digest())


def read_utf8(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file piece by piece, with line ends as newlines and without a byte order mark.

    Raises DataError if it is not UTF-8 text; the message names the file and the format that it seems to have.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    try:
        with open(path, "rb") as file:
            content = file.read(_BYTES_AT_ONCE)
            _refuse_other_formats(path, content)
            bom = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
            content, read = content[bom:], bom
            while True:
                read += len(content)
                text = _decode(decoder, content, path, read)
                if text:
                    yield text
                if not content:
                    return
                content = file.read(_BYTES_AT_ONCE)
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}.") from exc


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise DataError if the first bytes of a file are those of UTF-16 or of a compressed format."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: {_ADVICE}")
    for magic, name in _COMPRESSION_MAGIC.items():
        if start.startswith(magic) and (b"\0" in start or name == "gzip"):
            raise DataError(f"{path} is compressed ({name}): unpack it, or leave it out with text.pattern.")


def _decode(decoder: io.IncrementalNewlineDecoder, content: bytes, path: Path, read: int) -> str:
    """Return the next piece of text. `read` is the number of bytes of the file up to the end of `content`."""
    try:
        text = decoder.decode(content, final=not content)
    except UnicodeDecodeError as exc:
        wrong = exc.object  # starts with the bytes of an incomplete character that the decoder held back
        at = read - len(wrong) + exc.start
        what = "is binary" if b"\0" in wrong else f"is not UTF-8 (byte 0x{wrong[exc.start]:02x} at {at})"
        raise DataError(f"{path} {what}: {_ADVICE}") from exc
    if "\0" in text:
        raise DataError(f"{path} is binary (it holds a zero byte): {_ADVICE}")
    return text
