"""Documents: where text comes from, and which documents are held out.

A document is a file, or a part of a file between separators. Whether it is held out is decided by a hash of its
identity alone (the relative path for files, the content for parts), so that the split never depends on order, on the
machine or on which other documents exist. Documents come in the order of such a hash too: the first n are a fair
sample of all. Exact duplicates are dropped. No torch here.
"""

from __future__ import annotations

import codecs
import fnmatch
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jumpahead.errors import DataError

if TYPE_CHECKING:
    from jumpahead.lm.config import TextConfig

# Neither prose nor program: generated tables, the test suite, and what pip put there.
STDLIB_WITHOUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)


class Document(NamedTuple):
    """One text."""

    identity: str
    """What decides the split: a relative path, or the SHA-256 of a part's content."""
    text: str
    label: str = ""
    """What names a part in messages, for instance `stories.txt, part 17`; empty where the identity does."""

    @property
    def name(self) -> str:
        """What names the document in messages."""
        return self.label or self.identity


def is_held_out(identity: str, share: float) -> bool:
    """True for a `share` of all identities, decided by the SHA-256 of `jumpahead/<identity>` alone."""
    digest = hashlib.sha256(f"jumpahead/{identity}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def stdlib_root() -> Path:
    """Where the running Python's own library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_sources(root: Path) -> list[Path]:
    """Its `.py` files, in the order of relative paths, without the test suite and the like."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_WITHOUT]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def stdlib_documents(root: Path | None = None) -> Iterator[Document]:
    """The running Python's own library: one document per `.py` file, in the order of relative paths.

    Without the test suite, `encodings`, `lib2to3` and `site-packages`. Files that are not UTF-8 are passed over.
    """
    root = root or stdlib_root()
    for path in stdlib_sources(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)


def documents(config: TextConfig) -> Iterator[Document]:
    """Every distinct document of the study's text, trained on and held out, in a fixed order that looks random.

    Raises DataError where the source is missing, not UTF-8 text, or empty; it names the file.
    """
    found = _stdlib(config.separator) if config.source == "stdlib" else _from_files(config)
    seen: set[bytes] = set()
    for document in found:
        content = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
        if content not in seen:
            seen.add(content)
            yield document
    if not seen:
        raise DataError(f"text.source = '{config.source}' holds no text: nothing but white space was found there.")


def _stdlib(separator: str | None) -> Iterator[Document]:
    for document in sorted(stdlib_documents(), key=lambda document: _rank(document.identity)):
        yield from _parts(document, separator)


def _from_files(config: TextConfig) -> Iterator[Document]:
    """The documents of a file, or of all files of a folder whose names match."""
    files = text_files(config)
    for identity in sorted(files, key=_rank):
        yield from _parts(Document(identity, _read(files[identity])), config.separator)


def text_files(config: TextConfig) -> dict[str, Path]:
    """The files of `text.source` by identity: the file itself, or every file of the folder whose name matches."""
    source = Path(config.source).expanduser()
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise DataError(f"text.source = '{config.source}' does not exist: give a text file, a folder, or 'stdlib'.")
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in fnmatch.filter(names, config.pattern):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                files[path.relative_to(source).as_posix()] = path
    if not files:
        raise DataError(f"text.source = '{config.source}' is a folder without files named {config.pattern}.")
    return files


def _parts(document: Document, separator: str | None) -> Iterator[Document]:
    """The file itself, or its parts between separators, the line breaks around them taken off; white space is none."""
    if separator is None:
        if document.text.strip():
            yield document
        return
    parts = []
    for number, part in enumerate(document.text.split(separator), start=1):
        if part.strip():
            content = hashlib.sha256(part.strip("\r\n").encode("utf-8", "surrogatepass")).hexdigest()
            parts.append(Document(content, part.strip("\r\n"), f"{document.identity}, part {number}"))
    yield from sorted(parts, key=lambda part: _rank(part.identity))


def _rank(identity: str) -> bytes:
    """Where a document comes in the fixed order; independent of whether it is held out."""
    return hashlib.sha256(f"jumpahead order/{identity}".encode("utf-8", "surrogatepass")).digest()


def _read(path: Path) -> str:
    """A UTF-8 file with any line ends, or a DataError that names it and says what it seems to be."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}.") from exc
    way_out = "convert it to UTF-8, or leave it out with text.pattern."
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: {way_out}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        what = "is binary" if b"\0" in content else f"is not UTF-8 (byte 0x{content[exc.start]:02x} at {exc.start})"
        raise DataError(f"{path} {what}: {way_out}") from exc
    if "\0" in text:
        raise DataError(f"{path} is binary (it holds a zero byte): {way_out}")
    return text.replace("\r\n", "\n").replace("\r", "\n")
