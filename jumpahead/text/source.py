"""The base class of text sources, and the documents that they yield. No torch here.

    files, stdlib, stdin    a document is a file; files are ordered by a hash of their path
    jsonl, parquet, hub     a document is a row, in the order of the rows; rows are read a few at a time (rows.py)

Contexts are shuffled whatever this order (packing.py); it only decides which text `text.max_tokens` takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jumpahead.progress import Progress
from jumpahead.text.chat import Conversation
from jumpahead.text.config import TextConfig
from jumpahead.text.files import file_stats


class Document(NamedTuple):
    """One document of a text."""

    identity: str
    """What decides whether it is held out: a relative path, or the SHA-256 of a part's or a row's content."""
    text: str
    label: str = ""
    """Name in messages, for instance `stories.txt, part 17`; empty if the identity is the name."""
    continuation: Iterable[str] = ()
    """The text after `text`, piece by piece, if the document is too long to be held in memory."""
    content_hash: bytes = b""
    """SHA-256 of the whole text if it has a continuation, and of a conversation; else empty."""
    conversation: Conversation | None = None
    """The messages, which are tokenised instead of `text`; `text` then only shows how long they are."""

    @property
    def name(self) -> str:
        """Return the name of the document in messages."""
        return self.label or self.identity


class Source(ABC):
    """A study's text. Every call of `documents` reads it from the beginning.

    A new kind of source extends this class, says which `text.source` it recognises, and yields documents.
    """

    is_streamed: ClassVar[bool] = False
    """The source may be endless, or too long to read: reading stops when there is enough training text."""
    has_rows: ClassVar[bool] = False
    """Documents are rows, whose column may hold conversations (`text.chat`)."""

    def __init__(self, config: TextConfig, files: Mapping[str, Path], folder: Path | None) -> None:
        """files: by relative path, if it was recognised by its files. folder: of the run, if there is one."""
        self.config, self.files, self.folder = config, files, folder
        self.bytes_read = 0
        """Bytes of `total_bytes` that the current pass has read."""
        self.roles_seen: set[str] = set()
        """Roles of the messages that were read."""

    @classmethod
    def recognises(cls, source: str) -> bool:
        """Return True if a `text.source` is of this kind by its spelling alone, such as a prefix."""
        return False

    @classmethod
    def recognises_files(cls, files: Mapping[str, Path]) -> bool:
        """Return True if these files, by relative path and at least one, are of this kind.

        Called only if no kind recognises the source by its spelling.
        """
        return False

    def problem(self) -> str | None:
        """Return why the source cannot be used, as a clause that begins with `which`; None if it seems usable.

        Reads no text.
        """
        if self.config.chat and not self.has_rows:
            return "which is text: text.chat needs rows of messages, in JSON Lines, Parquet or a Hugging Face dataset"
        return None

    def prepare(self, progress: Progress) -> None:  # noqa: B027 - most kinds have nothing to store
        """Store text that can be read only once in the run's folder."""

    @property
    def total_bytes(self) -> int | None:
        """Return the size of the text in bytes; None if it is not known."""
        return sum(path.stat().st_size for path in self.files.values())

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every file or row that is not empty, in a fixed order. Raises DataError if one is unusable."""

    def fingerprint(self) -> Any:
        """Return JSON that changes when the text does, without reading it: names, sizes and times of the files."""
        return file_stats(self.files)
