"""What a source of text is, and what the kinds share: documents, files of a folder, rows with a column.

    files, stdlib, stdin    a document is a file, in an order that is a hash of its path
    jsonl, parquet, hub     a document is a row, in the order in which rows stand there: they are read one by one;
                            with `text.chat` each holds a conversation

Whatever the order here, contexts are shuffled (`contexts.ORDER`); it decides only which text `text.max_tokens` takes.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jumpahead.errors import DataError
from jumpahead.progress import Progress
from jumpahead.text.chat import Conversation, conversation
from jumpahead.text.config import TextConfig

_BESIDE = re.compile(r"(readme|licen[cs]e|dataset_infos?)\b.*", re.IGNORECASE)
"""Files that describe a folder of rows and are none."""


class Document(NamedTuple):
    """One text."""

    identity: str
    """What decides the split: a relative path, or the SHA-256 of a part's or a row's content."""
    text: str
    label: str = ""
    """What names a part in messages, for instance `stories.txt, part 17`; empty where the identity does."""
    rest: Iterable[str] = ()
    """How the text goes on, piece by piece, where it is too long to be held at once."""
    content: bytes = b""
    """SHA-256 of the whole text where it has a `rest`, and of a conversation."""
    chat: Conversation | None = None
    """What is tokenised in the text's place, which then is what the messages say: of a size to plan with."""

    @property
    def name(self) -> str:
        """What names the document in messages."""
        return self.label or self.identity


class Source(ABC):
    """A study's text, read from the beginning by every call of `documents`."""

    ends_with_training: ClassVar[bool] = False
    """Whether reading stops once there is enough training text, for it may go on for ever."""
    has_rows: ClassVar[bool] = False
    """Whether documents are rows, whose column may hold conversations."""

    def __init__(self, config: TextConfig, files: Mapping[str, Path], folder: Path | None) -> None:
        self.config, self.files, self.folder = config, files, folder
        self.done = 0
        """How much of `total` has been read."""
        self.roles: set[str] = set()
        """Of the messages that have been read."""

    @classmethod
    @abstractmethod
    def recognises(cls, source: str, files: Mapping[str, Path]) -> bool:
        """Whether a `text.source` is of this kind. Asked without `files` first, then with those that are there."""

    def objection(self) -> str | None:
        """What is wrong with the source at first sight, as `which …`; nothing is read for it."""
        if self.config.chat and not self.has_rows:
            return "which is text: text.chat needs rows of messages, in JSON Lines, Parquet or a Hugging Face dataset"
        return None

    def prepare(self, progress: Progress) -> None:  # noqa: B027 - most have nothing to keep
        """Keeps what can be read only once in the run's folder."""

    @property
    def total(self) -> int | None:
        """Bytes there are to read; None where that is not known."""
        return sum(path.stat().st_size for path in self.files.values())

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Every file or row that is not empty, in a fixed order; DataError names the one that cannot be used."""

    def fingerprint(self) -> Any:
        """JSON that changes when the text does, without reading it: names, sizes and times of the files."""
        return stamps(self.files)

    def row(self, value: Any, where: str) -> Document | None:
        """The document in a row's column, known by its content; None where it has none. `where` names the row."""
        column = self.config.column
        if value is None:
            raise DataError(f"{where} has nothing in its column '{column}'.")
        try:
            if self.config.chat:
                return self._conversation(conversation(value, self.config.chat, where, column), where)
            return _text(value, where, column)
        except UnicodeEncodeError as exc:
            raise DataError(
                f"{where} has half of a character ({exc.object[exc.start]!r}) in its column '{column}': it is no "
                "Unicode text."
            ) from exc

    def _conversation(self, found: Conversation, where: str) -> Document | None:
        self.roles |= {message["role"] for message in found.messages}
        if not found.chosen.strip():
            return None
        return Document(found.digest.hex(), found.text, where, content=found.digest, chat=found)


class RowFiles(Source):
    """Files that hold rows: one of them, or a folder in which all are of the kind."""

    has_rows = True
    suffixes: ClassVar[tuple[str, ...]]

    @classmethod
    def recognises(cls, source: str, files: Mapping[str, Path]) -> bool:
        names = [name for name in files if not _BESIDE.fullmatch(name.rpartition("/")[2])]
        return bool(names) and all(name.lower().endswith(cls.suffixes) for name in names)

    def documents(self) -> Iterator[Document]:
        self.done = 0
        for name in sorted(name for name in self.files if name.lower().endswith(self.suffixes)):
            before = self.done
            yield from self.rows(name, self.files[name])
            self.done = before + self.files[name].stat().st_size

    @abstractmethod
    def rows(self, name: str, path: Path) -> Iterator[Document]:
        """The documents of one file; keeps `done` where that is cheap."""


# ---------------------------------------------------------------------------------------------- files


def found_files(config: TextConfig) -> dict[str, Path]:
    """By identity, the file that `text.source` is, or every file of the folder whose name matches; {} for neither."""
    source = Path(config.source).expanduser()
    if source.is_file():
        return {source.name: source}
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in fnmatch.filter(names, config.pattern):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                files[path.relative_to(source).as_posix()] = path
    return files


def stamps(files: Mapping[str, Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of every file, in the order of names."""
    stats = {name: path.stat() for name, path in files.items()}
    return [(name, stats[name].st_size, stats[name].st_mtime_ns) for name in sorted(stats)]


def rank(identity: str) -> bytes:
    """Where a document comes in the order by hash; independent of whether it is held out."""
    return hashlib.sha256(f"jumpahead order/{identity}".encode("utf-8", "surrogatepass")).digest()


# ---------------------------------------------------------------------------------------------- rows


def _text(value: Any, where: str, column: str) -> Document | None:
    """None for white space."""
    if isinstance(value, list):
        raise holds_messages(f"{where} has a list in its column '{column}'")
    if not isinstance(value, str):
        raise DataError(f"{where} has a {type(value).__name__} in its column '{column}', not text.")
    if not value.strip():
        return None
    return Document(hashlib.sha256(value.encode()).hexdigest(), value, where)


def holds_messages(what: str) -> DataError:
    """What a column of lists gets without `text.chat`."""
    return DataError(f'{what}, not text: if these are messages, text.chat = ["assistant"] takes the assistant\'s.')


def no_column(column: str, columns: Iterable[str], where: str) -> DataError:
    """What a wrong `text.column` gets: the columns there are, the nearest first."""
    known = sorted(columns, key=lambda name: -difflib.SequenceMatcher(None, column, name).ratio())
    return DataError(f"{where} has no column '{column}' (text.column), but {', '.join(known) or 'none at all'}.")


def lacks(package: str) -> str | None:
    """`which …` where the package that reads a source is not installed."""
    if importlib.util.find_spec(package) is None:
        return f"which needs the package {package}: pip install 'jumpahead[data]'"
    return None
