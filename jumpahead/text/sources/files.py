"""A UTF-8 text file, or a folder of them: a document is a file, known by its path within the folder.

A file of more than `IN_MEMORY` bytes is never held at once; it is read twice, the first time for its hash.
"""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.source import Document, Source, rank

IN_MEMORY = 2**28
_AT_ONCE = 2**23
"""Bytes per piece."""
_WAY_OUT = "convert it to UTF-8, or leave it out with text.pattern."
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"PK\3\4": "zip"}


class Files(Source):
    """Text in files: whatever is no other kind of source."""

    @classmethod
    def recognises(cls, source: str, files: Mapping[str, Path]) -> bool:
        return False

    def objection(self) -> str | None:
        exists = self.files or Path(self.config.source).expanduser().exists()
        return super().objection() if exists else "which does not exist (seen from the current folder)"

    def documents(self) -> Iterator[Document]:
        source = self.config.source
        if not self.files:
            if Path(source).expanduser().is_dir():
                raise DataError(f"text.source = '{source}' is a folder without files named {self.config.pattern}.")
            raise DataError(f"text.source = '{source}' does not exist: give a text file, a folder, or 'stdlib'.")
        self.done = 0
        for identity in sorted(self.files, key=rank):
            yield self._document(identity, self.files[identity])

    def _document(self, identity: str, path: Path) -> Document:
        if path.stat().st_size <= IN_MEMORY:
            return Document(identity, "".join(self._counted(path)))
        sha = hashlib.sha256()
        for piece in pieces(path):
            sha.update(piece.encode())
        return Document(identity, "", rest=self._counted(path), content=sha.digest())

    def _counted(self, path: Path) -> Iterator[str]:
        for piece in pieces(path):
            self.done += len(piece.encode())
            yield piece


def pieces(path: Path) -> Iterator[str]:
    """A UTF-8 file with any line ends, piece by piece; a DataError names it and says what it seems to be."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    try:
        with open(path, "rb") as file:
            content = file.read(_AT_ONCE)
            _refuse(path, content)
            mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
            content, read = content[mark:], mark
            while True:
                read += len(content)
                text = _decoded(decoder, content, path, read)
                if text:
                    yield text
                if not content:
                    return
                content = file.read(_AT_ONCE)
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}.") from exc


def _refuse(path: Path, start: bytes) -> None:
    """What the first bytes give away."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: {_WAY_OUT}")
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark) and (b"\0" in start or name == "gzip"):
            raise DataError(f"{path} is compressed ({name}): unpack it, or leave it out with text.pattern.")


def _decoded(decoder: io.IncrementalNewlineDecoder, content: bytes, path: Path, read: int) -> str:
    """The next piece; `read` bytes have been read up to its end."""
    try:
        text = decoder.decode(content, final=not content)
    except UnicodeDecodeError as exc:
        wrong = exc.object  # begins with what may have been the start of a character when it was held back
        at = read - len(wrong) + exc.start
        what = "is binary" if b"\0" in wrong else f"is not UTF-8 (byte 0x{wrong[exc.start]:02x} at {at})"
        raise DataError(f"{path} {what}: {_WAY_OUT}") from exc
    if "\0" in text:
        raise DataError(f"{path} is binary (it holds a zero byte): {_WAY_OUT}")
    return text


SOURCE = Files
