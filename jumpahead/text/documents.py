"""Documents: what a study's text is made of, and which documents are held out.

A document is a file, a row of a dataset, or a part of either between separators. Whether it is held out is decided by
a hash of its identity alone (the relative path for files, the content for rows and parts), so that the split never
depends on order, on the machine or on which other documents exist. Exact duplicates are dropped: a set holds 16 bytes
of each document's hash. `sources/` says what there is to read, and in which order. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.config import TextConfig
from jumpahead.text.source import Document, Source, rank
from jumpahead.text.sources import source_of
from jumpahead.text.sources.files import IN_MEMORY

STRETCH = 2**24
"""Characters that are tokenised at once, at most: a tokenizer needs some 130 bytes for each of them."""


def is_held_out(identity: str, share: float) -> bool:
    """True for a `share` of all identities, decided by the SHA-256 of `jumpahead/<identity>` alone."""
    digest = hashlib.sha256(f"jumpahead/{identity}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def documents(text: TextConfig | Source, folder: Path | None = None) -> Iterator[Document]:
    """Every distinct document of the study's text, trained on and held out, in a fixed order.

    `folder` is the run's. Raises DataError where the source is missing, not UTF-8 text, or empty; it names the file.
    """
    source = text if isinstance(text, Source) else source_of(text, folder)
    seen: set[bytes] = set()
    for whole in source.documents():
        for document in _parts(whole, source.config.separator):
            content = document.content or hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
            if content[:16] not in seen:
                seen.add(content[:16])
                yield document
    if not seen and source.roles:
        asked, there = ", ".join(source.config.chat or ()), ", ".join(sorted(source.roles))
        raise DataError(
            f"text.source = '{source.config.source}' holds nothing that is said by {asked} (text.chat): its messages "
            f"are by {there}."
        )
    if not seen:
        raise DataError(
            f"text.source = '{source.config.source}' holds no text: nothing but white space was found there."
        )


def stretches(document: Document) -> Iterator[str]:
    """Its text in pieces of at most `STRETCH` characters, cut after line breaks where there are any: mostly one."""
    kept = ""
    for piece in chain([document.text], document.rest):
        kept += piece
        while len(kept) > STRETCH:
            cut = kept.rfind("\n", 0, STRETCH) + 1 or STRETCH
            yield kept[:cut]
            kept = kept[cut:]
    if kept:
        yield kept


def _parts(document: Document, separator: str | None) -> Iterator[Document]:
    """The document itself, or its parts between separators, the line breaks around them taken off; white space is none.

    Parts come in the order of their hashes; those of a document that is too long to be held at once, in its own.
    """
    if separator is None:
        if document.rest or document.text.strip():
            yield document
        return
    numbered = enumerate(_between(document, separator), start=1)
    parts = (_part(document, part.strip("\r\n"), number) for number, part in numbered if part.strip())
    yield from parts if document.rest else sorted(parts, key=lambda part: rank(part.identity))


def _part(document: Document, text: str, number: int) -> Document:
    content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(content, text, f"{document.name}, part {number}")


def _between(document: Document, separator: str) -> Iterator[str]:
    """What stands between the separators of a text that may come piece by piece."""
    kept = ""
    for piece in chain([document.text], document.rest):
        *whole, kept = (kept + piece).split(separator)
        yield from whole
        if len(kept) > IN_MEMORY:
            raise DataError(
                f"{document.name} goes on for {len(kept):,} characters without {separator!r} (text.separator): no "
                "document may be that long; check the separator."
            )
    yield kept
