"""Base classes of sources whose documents are rows: JSON Lines, Parquet, Hugging Face datasets. No torch here.

The column `text.column` of a row holds the text, or with `text.chat` a conversation.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jumpahead.errors import DataError
from jumpahead.text.chat import Conversation, parse_conversation
from jumpahead.text.source import Document, Source

_DESCRIPTION_FILES = re.compile(r"(readme|licen[cs]e|dataset_infos?)\b.*", re.IGNORECASE)
"""Names of files in a dataset's folder that hold no rows."""


class RowSource(Source):
    """Base class of sources whose documents are rows."""

    has_rows = True

    def row_document(self, value: Any, where: str) -> Document | None:
        """Return a row as a document identified by the hash of its content, or None if the row has no usable text.

        value: content of the row's column. where: name of the row, for error messages. Raises DataError if the value is
        not text, or with `text.chat` not a list of messages.
        """
        column = self.config.column
        if value is None:
            raise DataError(f"{where} has nothing in its column '{column}'.")
        try:
            if self.config.chat:
                return self._conversation_document(parse_conversation(value, self.config.chat, where, column), where)
            return _text_document(value, where, column)
        except UnicodeEncodeError as exc:
            raise DataError(
                f"{where} has half of a character ({exc.object[exc.start]!r}) in its column '{column}': it is not "
                "valid Unicode."
            ) from exc

    def _conversation_document(self, conversation: Conversation, where: str) -> Document | None:
        """Return a conversation as a document, or None if it has no text by a trained role.

        where: name of the row, for error messages.
        """
        self.roles_seen |= {message["role"] for message in conversation.messages}
        if not conversation.trained_text.strip():
            return None
        digest = conversation.digest
        return Document(digest.hex(), conversation.text, where, content_hash=digest, conversation=conversation)


class RowFiles(RowSource):
    """Base class of sources that read rows from one file or from a folder of files of one format."""

    suffixes: ClassVar[tuple[str, ...]]
    """File name endings of the format, in lower case."""

    @classmethod
    def recognises_files(cls, files: Mapping[str, Path]) -> bool:
        """Return True if all files except dataset descriptions (README, licence) have one of `suffixes`."""
        names = [name for name in files if not _DESCRIPTION_FILES.fullmatch(name.rpartition("/")[2])]
        return bool(names) and all(name.lower().endswith(cls.suffixes) for name in names)

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all files, in the order of file names."""
        self.bytes_read = 0
        for name in sorted(name for name in self.files if name.lower().endswith(self.suffixes)):
            before = self.bytes_read
            yield from self.file_documents(name, self.files[name])
            self.bytes_read = before + self.files[name].stat().st_size

    @abstractmethod
    def file_documents(self, name: str, path: Path) -> Iterator[Document]:
        """Yield the documents of one file; implementations may update `bytes_read` while they read."""


def _text_document(value: Any, where: str, column: str) -> Document | None:
    """Return a row's text as a document, or None if the text is blank. Raises DataError if `value` is not text."""
    if isinstance(value, list):
        raise messages_error(f"{where} has a list in its column '{column}'")
    if not isinstance(value, str):
        raise DataError(f"{where} has a {type(value).__name__} in its column '{column}', not text.")
    if not value.strip():
        return None
    return Document(hashlib.sha256(value.encode()).hexdigest(), value, where)


def messages_error(subject: str) -> DataError:
    """Return the DataError for a column of lists in a study without `text.chat`; its message begins with `subject`."""
    return DataError(
        f'{subject}, not text. If these are messages, text.chat = ["assistant"] trains on the assistant\'s.'
    )


def unknown_column_error(column: str, columns: Iterable[str], where: str) -> DataError:
    """Return the DataError for a missing `text.column`; it lists the existing columns, the most similar first."""
    known = sorted(columns, key=lambda name: -difflib.SequenceMatcher(None, column, name).ratio())
    return DataError(f"{where} has no column '{column}' (text.column), but {', '.join(known) or 'none at all'}.")


def missing_package_clause(package: str) -> str | None:
    """Return an error clause that begins with `which` if the Python package is not installed, else None."""
    if importlib.util.find_spec(package) is None:
        return f"which needs the package {package}: pip install 'jumpahead[data]'"
    return None
