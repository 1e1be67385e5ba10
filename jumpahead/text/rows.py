"""Sources whose documents are rows with a column: JSON Lines, Parquet, Hugging Face datasets. No torch here.

With `text.chat` each row holds a conversation.
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
"""Files of a dataset's folder that hold no rows."""


class RowSource(Source):
    """A source whose documents are rows."""

    has_rows = True

    def row_document(self, value: Any, where: str) -> Document | None:
        """Return the document in a row's column, identified by its content; None if it has no text to use.

        where: the name of the row. Raises DataError if the value is neither text nor, with `text.chat`, messages.
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

    def _conversation_document(self, found: Conversation, where: str) -> Document | None:
        """Return a conversation as a document; None if the chosen roles say nothing in it."""
        self.roles_seen |= {message["role"] for message in found.messages}
        if not found.trained_text.strip():
            return None
        return Document(found.digest.hex(), found.text, where, content_hash=found.digest, conversation=found)


class RowFiles(RowSource):
    """Files of rows: one file, or a folder in which all files are of this kind."""

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of the files' names, in lower case."""

    @classmethod
    def recognises_files(cls, files: Mapping[str, Path]) -> bool:
        names = [name for name in files if not _DESCRIPTION_FILES.fullmatch(name.rpartition("/")[2])]
        return bool(names) and all(name.lower().endswith(cls.suffixes) for name in names)

    def documents(self) -> Iterator[Document]:
        self.bytes_read = 0
        for name in sorted(name for name in self.files if name.lower().endswith(self.suffixes)):
            before = self.bytes_read
            yield from self.file_documents(name, self.files[name])
            self.bytes_read = before + self.files[name].stat().st_size

    @abstractmethod
    def file_documents(self, name: str, path: Path) -> Iterator[Document]:
        """Yield the documents of one file, updating `bytes_read` if that is cheap."""


def _text_document(value: Any, where: str, column: str) -> Document | None:
    """Return a row's text as a document; None if it is empty or white space."""
    if isinstance(value, list):
        raise messages_error(f"{where} has a list in its column '{column}'")
    if not isinstance(value, str):
        raise DataError(f"{where} has a {type(value).__name__} in its column '{column}', not text.")
    if not value.strip():
        return None
    return Document(hashlib.sha256(value.encode()).hexdigest(), value, where)


def messages_error(subject: str) -> DataError:
    """Return the error for a column of lists in a study without `text.chat`. `subject` begins the sentence."""
    return DataError(
        f'{subject}, not text. If these are messages, text.chat = ["assistant"] trains on the assistant\'s.'
    )


def unknown_column_error(column: str, columns: Iterable[str], where: str) -> DataError:
    """Return the error for a `text.column` that does not exist; it lists those that do, the most similar first."""
    known = sorted(columns, key=lambda name: -difflib.SequenceMatcher(None, column, name).ratio())
    return DataError(f"{where} has no column '{column}' (text.column), but {', '.join(known) or 'none at all'}.")


def missing_package_clause(package: str) -> str | None:
    """Return a clause beginning with `which` if a package that reads a source is not installed; else None."""
    if importlib.util.find_spec(package) is None:
        return f"which needs the package {package}: pip install 'jumpahead[data]'"
    return None
