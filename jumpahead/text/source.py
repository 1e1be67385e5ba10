"""The base class of text sources, and the documents that they yield. No torch here.

    files, stdlib, stdin    a document is a file; files are ordered by a hash of their path
    jsonl, parquet, hub     a document is a row, in the order of the rows; rows are read a few at a time (rows.py)

The order of documents only decides which text `text.max_tokens` includes: packing.py shuffles the contexts.
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
    """A document: a file, a row of a dataset, or a section between separators."""

    identity: str
    """Relative path of a file, or SHA-256 of a row's or section's content; decides if the document is held out."""
    text: str
    label: str = ""
    """Name for error messages, for instance `stories.txt, part 17`; empty if the identity serves as name."""
    continuation: Iterable[str] = ()
    """Text that follows `text`, as pieces read from disk; empty unless the document is too long for memory."""
    content_hash: bytes = b""
    """SHA-256 of a text with a continuation, or of a conversation; empty for any other document."""
    conversation: Conversation | None = None
    """Messages to tokenise instead of `text`; `text` then only serves to estimate their length."""

    @property
    def name(self) -> str:
        """Return the name of the document for error messages."""
        return self.label or self.identity


class Source(ABC):
    """Base class of text sources. Every call of `documents` reads the text from the beginning.

    A subclass implements `documents`, and `recognises` or `recognises_files` to select the values of `text.source`.
    """

    is_streamed: ClassVar[bool] = False
    """True if the source may be too long to read completely: reading stops once there is enough training text."""
    has_rows: ClassVar[bool] = False
    """True if documents are rows, which may hold conversations (`text.chat`)."""

    def __init__(self, config: TextConfig, files: Mapping[str, Path], folder: Path | None) -> None:
        """Create the source without reading text.

        files: paths by relative path if `recognises_files` selected the source, else empty. folder: the run's folder.
        """
        self.config, self.files, self.folder = config, files, folder
        self.bytes_read = 0
        """Number of bytes read so far by the current call of `documents`, out of `total_bytes`."""
        self.roles_seen: set[str] = set()
        """Roles of all messages read so far; empty if the text is not conversations."""

    @classmethod
    def recognises(cls, source: str) -> bool:
        """Return True if this class reads a `text.source`, judged by the string alone, for instance by a prefix."""
        return False

    @classmethod
    def recognises_files(cls, files: Mapping[str, Path]) -> bool:
        """Return True if this class reads these files, given by relative path; there is at least one.

        Called only if no source class recognises the string `text.source`.
        """
        return False

    def problem(self) -> str | None:
        """Return the reason why the source is unusable, as a clause that begins with `which`, or None if it is usable.

        The check reads no text.
        """
        if self.config.chat and not self.has_rows:
            return "which is text: text.chat needs rows of messages, in JSON Lines, Parquet or a Hugging Face dataset"
        return None

    def prepare(self, progress: Progress) -> None:  # noqa: B027 - most kinds have nothing to store
        """Copy text that can be read only once (standard input) into the run's folder; do nothing for other sources."""

    @property
    def total_bytes(self) -> int | None:
        """Return the size of the text in bytes, or None if the size is unknown."""
        return sum(path.stat().st_size for path in self.files.values())

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every file or row that is not blank, in a fixed order. Raises DataError if one of them is unusable."""

    def fingerprint(self) -> Any:
        """Return JSON values that change with the text: names, sizes and modification times of its files."""
        return file_stats(self.files)
