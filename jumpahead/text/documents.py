"""Documents: the units of a study's text, of which a fixed fraction is held out. No torch here.

A document is a file, a row of a dataset, or a section of a file or row between separators. The hash of the document's
identity (relative path of a file, content hash of a row or section) decides whether the document is held out: the split
does not depend on order, machine or other documents. Exact duplicates are dropped; memory holds 16 bytes per document.
Held-out documents that are nearly copies of training text are left out later, by their tokens (near_duplicates.py).
`sources/` defines the readable formats and the order of documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.config import TextConfig
from jumpahead.text.files import order_key
from jumpahead.text.source import Document, Source
from jumpahead.text.sources import source_of
from jumpahead.text.utf8 import MAX_BYTES_IN_MEMORY

MAX_PIECE_CHARACTERS = 2**24
"""Maximum number of characters per tokenizer input: a tokenizer needs about 130 bytes of memory per character."""


def is_held_out(identity: str, share: float) -> bool:
    """Return True if a document is held out: for a fraction `share` of identities, chosen by a SHA-256 hash."""
    digest = hashlib.sha256(f"jumpahead/{identity}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def documents(text: TextConfig | Source, folder: Path | None = None) -> Iterator[Document]:
    """Yield every distinct document of a study's text, training and held-out, in a fixed order.

    folder: the run's folder, where standard input is stored. Raises DataError, naming the file, if the source is
    missing, not UTF-8 text, or empty.
    """
    source = text if isinstance(text, Source) else source_of(text, folder)
    seen: set[bytes] = set()
    for whole in source.documents():
        for document in _split_document(whole, source.config.separator):
            content = document.content_hash or hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
            if content[:16] not in seen:
                seen.add(content[:16])
                yield document
    if not seen and source.roles_seen:
        asked, found = ", ".join(source.config.chat or ()), ", ".join(sorted(source.roles_seen))
        raise DataError(
            f"text.source = '{source.config.source}' has no message by {asked} (text.chat). Choose among the roles of "
            f"its messages: {found}."
        )
    if not seen:
        raise DataError(f"text.source = '{source.config.source}' holds no text, or only white space.")


def split_pieces(document: Document) -> Iterator[str]:
    """Yield a document's text in pieces of at most `MAX_PIECE_CHARACTERS` characters.

    Each piece but the last ends after a line break, if the piece contains one.
    """
    buffer = ""
    for piece in chain([document.text], document.continuation):
        buffer += piece
        while len(buffer) > MAX_PIECE_CHARACTERS:
            cut = buffer.rfind("\n", 0, MAX_PIECE_CHARACTERS) + 1 or MAX_PIECE_CHARACTERS
            yield buffer[:cut]
            buffer = buffer[cut:]
    if buffer:
        yield buffer


def _split_document(document: Document, separator: str | None) -> Iterator[Document]:
    """Yield the document, or if `separator` is given, its sections as documents without outer line breaks.

    Skips blank documents and sections. Sections are sorted by hash, or in order of appearance if the document is too
    long for memory.
    """
    if separator is None:
        if document.continuation or document.text.strip():
            yield document
        return
    numbered = enumerate(_split_at_separator(document, separator), start=1)
    parts = (_part_document(document, part.strip("\r\n"), number) for number, part in numbered if part.strip())
    yield from parts if document.continuation else sorted(parts, key=lambda part: order_key(part.identity))


def _part_document(document: Document, text: str, number: int) -> Document:
    """Return section `number` of a document as a new document, identified by the SHA-256 of the section's text."""
    content_hash = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(content_hash, text, f"{document.name}, part {number}")


def _split_at_separator(document: Document, separator: str) -> Iterator[str]:
    """Yield the texts between separators. Raises DataError if a text between two separators is too long for memory."""
    buffer = ""
    for piece in chain([document.text], document.continuation):
        *complete, buffer = (buffer + piece).split(separator)
        yield from complete
        if len(buffer) > MAX_BYTES_IN_MEMORY:
            raise DataError(
                f"{document.name} has {len(buffer):,} characters without {separator!r} (text.separator), more than a "
                "document may have: check the separator."
            )
    yield buffer
