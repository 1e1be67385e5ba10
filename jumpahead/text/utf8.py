"""Read UTF-8 text files, long files in pieces. No torch here."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.source import Document

MAX_BYTES_IN_MEMORY = 2**28
"""Size limit in bytes: a longer file is read in pieces, twice, the first time to compute its hash."""
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
    """Return a text file as one document. Raises DataError if the file is not UTF-8 text.

    on_read: called with the number of bytes of each piece after reading it.
    """

    def count_and_yield() -> Iterator[str]:
        for piece in read_utf8(path):
            on_read(len(piece.encode()))
            yield piece

    if path.stat().st_size <= MAX_BYTES_IN_MEMORY:
        return Document(identity, "".join(count_and_yield()))
    sha = hashlib.sha256()
    for piece in read_utf8(path):
        sha.update(piece.encode())
    return Document(identity, "", continuation=count_and_yield(), content_hash=sha.digest())


def read_utf8(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces, with all line ends converted to newlines and no byte order mark.

    Raises DataError, naming the file and its apparent format, if the file is not UTF-8 text.
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
    """Raise DataError if the first bytes of a file indicate UTF-16 or a compressed format."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: {_ADVICE}")
    for magic, name in _COMPRESSION_MAGIC.items():
        if start.startswith(magic) and (b"\0" in start or name == "gzip"):
            raise DataError(f"{path} is compressed ({name}): unpack it, or leave it out with text.pattern.")


def _decode(decoder: io.IncrementalNewlineDecoder, content: bytes, path: Path, bytes_read: int) -> str:
    """Decode the next bytes of a file and return the text. Raises DataError if they are not UTF-8 text.

    content: the next bytes; empty at the end of the file. bytes_read: number of bytes up to the end of `content`.
    """
    try:
        text = decoder.decode(content, final=not content)
    except UnicodeDecodeError as exc:
        wrong = exc.object  # starts with the bytes of an incomplete character that the decoder held back
        at = bytes_read - len(wrong) + exc.start
        what = "is binary" if b"\0" in wrong else f"is not UTF-8 (byte 0x{wrong[exc.start]:02x} at {at})"
        raise DataError(f"{path} {what}: {_ADVICE}") from exc
    if "\0" in text:
        raise DataError(f"{path} is binary (it holds a zero byte): {_ADVICE}")
    return text
