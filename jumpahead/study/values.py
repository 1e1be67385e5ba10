"""Values that no key of a study takes, refused before anything else looks at them: by dotted key, in one sentence."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jumpahead.errors import StudyError

MAX_DEPTH = 16
"""Tables and lists inside each other."""
MAX_INTEGER = 2**63
"""Integers have to be smaller, in size."""
_PATH_KEYS = ("lm.model", "text.source", "activations.options.source", "start_from")
"""The ends of keys that hold paths, in which `~name` stands for a user's folder."""


def check_values(raw: Any) -> None:
    """Raise StudyError for the first value in the tables that no key takes.

    These are dates, integers of 64 bits and more, text with a NUL character, tables nested deep, and users that do not
    exist.
    """
    for key, value in _leaves(raw, "", 0):
        if isinstance(value, datetime.date | datetime.time):
            raise StudyError(f"'{key}' must be a number, text or a table, not the date or time {value.isoformat()}.")
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise StudyError(f"'{key}' must be less than 2^63, not a number of {value.bit_length()} bits.")
        if isinstance(value, str) and "\0" in value:
            raise StudyError(f"'{key}' holds a NUL character, which no path, name or text may have.")
        if isinstance(value, str) and value.startswith("~") and key.endswith(_PATH_KEYS):
            _check_user(key, value)


def _leaves(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield every value that is neither table nor list, with its dotted key. Raises StudyError beyond MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise StudyError(f"'{key.partition('.')[0]}' holds tables or lists nested more than {MAX_DEPTH} deep.")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if "\0" in str(name):
                raise StudyError(f"a key below '{key}' holds a NUL character.")
            yield from _leaves(item, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key, depth + 1)
    else:
        yield key, value


def _check_user(key: str, value: str) -> None:
    """Raise StudyError if a path begins with the folder of a user that does not exist."""
    try:
        Path(value).expanduser()
    except RuntimeError as exc:
        raise StudyError(f"'{key}' names {value}, and there is no such user on this machine.") from exc
