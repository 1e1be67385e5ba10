"""Untrusted text and numbers of a run, made safe to show."""

from __future__ import annotations

import math
import unicodedata
from typing import Any


def sanitize(value: Any) -> Any:
    """Return a JSON value with misleading characters made visible, and NaN and ±inf as None.

    Control, bidirectional-format, line-separator and lone surrogate characters become ⟨U+202E⟩ and the like; newline
    and tab stay. Markup needs nothing here: the template escapes it, and the page sets text, never HTML.
    """
    if isinstance(value, str):
        value = value.replace("\r\n", "\n")
        return "".join(c if _is_harmless(c) else f"⟨U+{ord(c):04X}⟩" for c in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {sanitize(str(key)): sanitize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize(item) for item in value]
    return value


def _is_harmless(character: str) -> bool:
    """Return False for characters that are invisible or change how text around them is shown."""
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
