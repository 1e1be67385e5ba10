"""Colours of the report page: a colour-blind-safe palette, and contrast with both backgrounds (WCAG 2.2)."""

from __future__ import annotations

import re
from typing import Any

LIGHT_BACKGROUND, DARK_BACKGROUND = "#ffffff", "#15181d"
"""Background colours in light and dark mode; page.css has the same values."""
MIN_CONTRAST = 3.0
"""Minimum contrast ratio of lines and marks with the background: WCAG 2.2, criterion 1.4.11."""
PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
    "#332288", "#882255", "#999933", "#44aa99", "#aa4499", "#117733",
)  # fmt: skip
"""Okabe and Ito's palette, then Tol's muted palette; both are distinguishable with common colour blindness."""


def valid_colour(colour: Any) -> str | None:
    """Return `colour` as lower-case `#rrggbb`; None if it is not a hexadecimal colour."""
    text = str(colour).lower()
    return text if re.fullmatch(r"#[0-9a-f]{6}", text) else None


def ensure_contrast(colour: str, background: str) -> str:
    """Return `colour`, mixed with black or white in steps of 5 % until it has `MIN_CONTRAST` with `background`."""
    goal = "#000000" if _luminance(background) > 0.5 else "#ffffff"
    mixed = (_mix(colour, goal, 0.05 * step) for step in range(21))
    return next(candidate for candidate in mixed if contrast_ratio(candidate, background) >= MIN_CONTRAST)


def contrast_ratio(first: str, second: str) -> float:
    """Return the WCAG contrast ratio of two `#rrggbb` colours, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _rgb_channels(colour: str) -> list[float]:
    """Return red, green and blue of a `#rrggbb` colour, each 0 to 1."""
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    """Return the WCAG relative luminance of a `#rrggbb` colour, 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb_channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mix(colour: str, goal: str, part: float) -> str:
    """Return (1 − part)·colour + part·goal per channel, as `#rrggbb`."""
    pairs = zip(_rgb_channels(colour), _rgb_channels(goal), strict=True)
    return "#" + "".join(f"{round(255 * ((1 - part) * a + part * b)):02x}" for a, b in pairs)
