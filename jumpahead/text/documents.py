"""Documents: the units of a study's text, of which a fixed share is held out. No torch here.

A document is a file, a row of a dataset, or a part of either between separators. A hash of its identity alone decides
whether it is held out (the relative path for files, the content for rows and parts): the split does not depend on
order, on the machine or on other documents. Exact duplicates are dropped; a set keeps 16 bytes of each document's hash.
`sources/` defines what can be read, and in which order.
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
"""Maximum characters that are tokenised at once: a tokenizer needs some 130 bytes of memory for each."""


def is_held_out(identity: str, share: float) -> bool:
    """Return True for a `share` of all identities, decided by the SHA-256 of `jumpahead/<identity>` alone."""
    digest = hashlib.sha256(f"jumpahead/{identity}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def documents(text: TextConfig | Source, folder: Path | None = None) -> Iterator[Document]:
    """Yield every distinct document of a study's text, training and held-out, in a fixed order.

    folder: the run's. Raises DataError, naming the file, if the source is missing, not UTF-8 text, or empty.
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
    """Yield a document's text in pieces of at most `MAX_PIECE_CHARACTERS` characters; mostly there is one.

    Pieces end after a line break if there is one.
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
    """Yield the document, or with a separator its parts, without line breaks at their ends; skips white space.

    Parts come in the order of their hashes; those of a document that is too long for memory, in order of appearance.
    """
    if separator is None:
        if document.continuation or document.text.strip():
            yield document
        return
    numbered = enumerate(_split_at_separator(document, separator), start=1)
    parts = (_part_document(document, part.strip("\r\n"), number) for number, part in numbered if part.strip())
    yield from parts if document.continuation else sorted(parts, key=lambda part: order_key(part.identity))


def _part_document(document: Document, text: str, number: int) -> Document:
    """Return a part of a document as a document of its own, identified by the SHA-256 of its text."""
    content_hash = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(content_hash, text, f"{document.name}, part {number}")


def _split_at_separator(document: Document, separator: str) -> Iterator[str]:
    """Yield the texts between separators. Raises DataError if one is too long for memory."""
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
