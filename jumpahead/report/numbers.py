"""Numbers and names as a reader sees them: three digits, marks for what is missing, hostile characters made visible.

`page.js` has the same formats for what it computes in the browser; a test holds the two together.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Any

MISSING = "–"
NBSP = "\u00a0"  # no line break between a number and its per cent sign
COUNTS = ("above_10pct", "above_1pct", "dead")  # metrics that count features; their shares are `share_…`


def short(value: float | None) -> str:
    """Three significant digits, without an exponent from 0.0001 up: `0.213`, `16.1`, `8,192`, `4.2e-5`, `−0.0100`."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.0001:
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= 999.5:
        text = f"{size:,.0f}"
    else:
        power = math.floor(math.log10(float(f"{size:.2e}")))  # of the rounded value: 9.996 is 10.0
        text = f"{size:.{2 - power}f}"
    return f"−{text}" if value < 0 else text


def percent(share: float | None) -> str:
    """A share of 1 as a percentage of two digits (three from 10 % on): `0.061 %`, `12.3 %`."""
    if share is None or not math.isfinite(share):
        return MISSING
    if share < 0:
        return f"−{percent(-share)}"
    size = 100 * share
    if size == 0:
        return f"0{NBSP}%"
    if size >= 9.95:
        return f"{size:.1f}{NBSP}%"
    power = max(math.floor(math.log10(float(f"{size:.1e}"))), -6)
    return f"{size:.{1 - power}f}{NBSP}%"


def count(value: float | None) -> str:
    """A number of features: whole where it is whole or at least 100, else (an interpolated one) with one decimal."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 or abs(value) >= 99.95 else f"{value:.1f}"


def exact(value: float) -> str:
    """A number that somebody chose, as they would write it: `16`, `0.2`, `8,192`, `0.00035`."""
    if value == 0 or abs(value) >= 0.0001:
        return f"{value:,.10f}".rstrip("0").rstrip(".")
    return f"{value:g}".replace("e-0", "e-")


def metric(key: str, value: float | None) -> str:
    """The value of the metric `key` in its own format, without its unit (a share carries its per cent sign)."""
    if key.startswith("share_"):
        return percent(value)
    return count(value) if key in COUNTS else short(value)


def interval(key: str, low: float | None, high: float | None) -> str:
    """`0.208 to 0.219`; empty where there is no interval."""
    if low is None or high is None:
        return ""
    return f"{metric(key, low)} to {metric(key, high)}"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def harmless(value: Any) -> Any:
    """A JSON value with what would mislead a reader or break a file made visible, and NaN and ±inf as None.

    Control, bidirectional-format, line-separator and lone surrogate characters become ⟨U+202E⟩ and the like; newline
    and tab stay. (Markup needs nothing here: the template escapes it, and the page sets text, never HTML.)
    """
    if isinstance(value, str):
        value = value.replace("\r\n", "\n")
        return "".join(c if _is_plain(c) else f"⟨U+{ord(c):04X}⟩" for c in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {harmless(str(key)): harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [harmless(item) for item in value]
    return value


def _is_plain(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
