"""Sanitize untrusted text and numbers of a run before they are shown."""

from __future__ import annotations

import math
import unicodedata
from typing import Any


def sanitize(value: Any) -> Any:
    """Return a copy of a JSON value that is safe to show: misleading characters are escaped; nan and ±inf become None.

    Control, bidirectional-format, line-separator and lone surrogate characters are replaced by their code point, such
    as ⟨U+202E⟩; newline and tab are kept. HTML is not escaped here: the template does it, and scripts set text only.
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
    """Return False if a character is invisible or changes how the surrounding text is shown."""
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
