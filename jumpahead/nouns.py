"""What the activations of a run are called: tokens of documents of a text, or without a language model, rows in groups.

Sentences, headings and meanings are written once, of a run with a language model; `Nouns` puts the right nouns into
them. It is for our own words alone, before anything of a run is filled in: names that users gave stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

ROWS = {
    "held-out text": "held-out rows",
    "training text": "training rows",
    "the same text": "the same rows",
    "documents": "groups of rows",
    "document": "group of rows",
    "tokens": "rows",
    "token": "row",
}
"""Said of a text → said of rows."""
_ANY = re.compile(rf"(?<![\w.])(?:{'|'.join(ROWS)})\b", re.IGNORECASE)  # `evaluate.tokens` is a key, no noun


class Nouns(NamedTuple):
    """Of one run."""

    of_rows: bool = False
    """Whether there was no language model."""

    @classmethod
    def of(cls, frontier: Mapping[str, Any]) -> Nouns:
        """Those of a frontier.json, where `lm.name` is null without a language model."""
        return cls((frontier.get("lm") or {}).get("name", "") is None)

    def __call__(self, words: str) -> str:
        """The same words of rows, where there was no language model; a capital stays one."""
        return _ANY.sub(_of_rows, words) if self.of_rows else words


def _of_rows(found: re.Match[str]) -> str:
    words = ROWS[found[0].lower()]
    return words[0].upper() + words[1:] if found[0][0].isupper() else words


TEXT = Nouns()
"""Of a run with a language model."""
