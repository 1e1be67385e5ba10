"""The keys of `[text]` that a text needs, judged by its beginning: column, chat, separator; and its size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jumpahead.errors import JumpaheadError
from jumpahead.text.config import TextConfig
from jumpahead.text.source import Source
from jumpahead.text.sources import source_of

COLUMNS = ("text", "content", "messages", "conversations", "conversation")
"""Columns that datasets keep their text or conversations in, in the order tried."""
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>")
"""Separators of documents that text files commonly have."""
CHARACTERS_READ = 1_000_000
"""Number of characters of a file that are searched for separators."""
BYTES_PER_TOKEN = 4.0
"""Of English or code with tens of thousands of token ids."""


class TextHints(NamedTuple):
    """The keys of `[text]` that a text needs. Keys that stay at their defaults are None."""

    column: str | None = None
    chat: tuple[str, ...] | None = None
    separator: str | None = None
    tokens: int | None = None
    """Approximate number of tokens of the whole text; None if its size is unknown."""


def read_text_hints(source: str) -> TextHints:
    """Return the keys that a text needs, judged by its first document; defaults if it cannot be read from this machine.

    source: as `text.source` in a study. Datasets on the hub and standard input are not read.
    """
    text = source_of(TextConfig(source=source))
    if text.is_streamed or text.problem() is not None:
        return TextHints()
    tokens = int(text.total_bytes / BYTES_PER_TOKEN) if text.total_bytes else None
    if text.has_rows:
        keys = next(filter(_is_readable, _row_keys(source)), {})
        return TextHints(tokens=tokens, **{key: value for key, value in keys.items() if key != "source"})
    return TextHints(separator=_find_separator(text), tokens=tokens)


def _row_keys(source: str) -> Iterator[dict[str, Any]]:
    """Yield the keys that rows may need, the default ones first."""
    yield {"source": source}
    for column in COLUMNS:
        yield {"source": source, "column": column}
        yield {"source": source, "column": column, "chat": ("assistant",)}


def _is_readable(keys: dict[str, Any]) -> bool:
    """Return True if the text has a document with these keys of `[text]`."""
    with contextlib.suppress(JumpaheadError):
        return next(source_of(TextConfig(**keys)).documents(), None) is not None
    return False


def _find_separator(text: Source) -> str | None:
    """Return the common separator that occurs at least twice at the beginning of a file; None if none does."""
    if text.config.source == "stdlib":
        return None
    with contextlib.suppress(JumpaheadError):
        for document in text.documents():
            start = document.text[:CHARACTERS_READ]
            return next((each for each in SEPARATORS if start.count(each) >= 2), None)
    return None
