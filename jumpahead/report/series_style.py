"""How each series looks: its colour on paper and on a dark screen, its dash and its symbol, as the JSON names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PAPER, SCREEN = "#ffffff", "#15181d"  # the two backgrounds, as in page.css
CONTRAST = 3.0  # of lines and marks against their background: WCAG 2.2, criterion 1.4.11

# Okabe and Ito's colours that stay apart under every colour blindness: for a series whose JSON names no usable colour.
FALLBACK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

# Stroke patterns of a line 2 px wide and marks of radius 4.5 around (0, 0), for the legends; plotly has the same names.
DASHES = {"solid": "", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "14 5", "longdashdot": "14 4 2 4"}
SYMBOLS = {
    "circle": "M-4.5 0A4.5 4.5 0 1 1 4.5 0A4.5 4.5 0 1 1-4.5 0Z",
    "square": "M-4-4H4V4H-4Z",
    "diamond": "M0-5.5 5.5 0 0 5.5-5.5 0Z",
    "triangle-up": "M0-5 5.2 4H-5.2Z",
    "triangle-down": "M0 5-5.2-4H5.2Z",
    "cross": "M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",
    "x": "M-4.8-2.3-2.3-4.8 0-2.5 2.3-4.8 4.8-2.3 2.5 0 4.8 2.3 2.3 4.8 0 2.5-2.3 4.8-4.8 2.3-2.5 0Z",
    "pentagon": "M0-5 4.8-1.5 2.9 4.1H-2.9L-4.8-1.5Z",
    "hexagon": "M4.3-2.5V2.5L0 5-4.3 2.5V-2.5L0-5Z",
    "star": "M0-6 1.4-1.9 5.7-1.9 2.3.8 3.5 4.9 0 2.4-3.5 4.9-2.3.8-5.7-1.9-1.4-1.9Z",
}


class Look(NamedTuple):
    """What is drawn for a series. Everything in it is one of our own words or a checked colour: safe in CSS and SVG."""

    name: str
    """As the study calls it (hostile text)."""
    title: str
    """As a reader sees it (hostile text)."""
    paper: str
    """`#rrggbb` on a white background."""
    screen: str
    """`#rrggbb` on a dark background."""
    dash: str
    """A key of DASHES."""
    symbol: str
    """A key of SYMBOLS."""


def looks(series: Iterable[Mapping[str, Any]]) -> list[Look]:
    """One per series, in the order in which legends and tables name them.

    The first series of an architecture looks as the architecture does; further ones (other options) take a colour, a
    dash and a symbol that no series has, as long as there are any.
    """
    ordered = sorted(series, key=lambda one: one.get("order") or 0)
    colours = [checked(one.get("colour")) or FALLBACK[i % len(FALLBACK)] for i, one in enumerate(ordered)]
    dashes = _known([str(one.get("dash", "")) for one in ordered], list(DASHES))
    symbols = _known([str(one.get("symbol", "")) for one in ordered], list(SYMBOLS))
    again = [colour in colours[:i] for i, colour in enumerate(colours)]
    colours, dashes, symbols = (
        _apart(values, again, known)
        for values, known in ((colours, FALLBACK), (dashes, tuple(DASHES)), (symbols, tuple(SYMBOLS)))
    )
    return [
        Look(
            name=str(one["name"]),
            title=str(one.get("title") or one["name"]),
            paper=visible(colour, PAPER),
            screen=visible(colour, SCREEN),
            dash=dash,
            symbol=symbol,
        )
        for one, colour, dash, symbol in zip(ordered, colours, dashes, symbols, strict=True)
    ]


def _known(values: list[str], known: list[str]) -> list[str]:
    """The values, and the i-th known one in the place of an unknown i-th."""
    return [value if value in known else known[i % len(known)] for i, value in enumerate(values)]


def _apart(values: list[str], again: list[bool], known: Iterable[str]) -> list[str]:
    """The values, and known ones that nobody has in the place of those that come `again`."""
    free = [one for one in known if one not in values]
    return [free.pop(0) if is_again and free else value for value, is_again in zip(values, again, strict=True)]


def checked(colour: Any) -> str | None:
    """`#rrggbb` in small letters, if it is a colour."""
    text = str(colour).lower()
    return text if re.fullmatch(r"#[0-9a-f]{6}", text) else None


def visible(colour: str, background: str) -> str:
    """`colour`, mixed with black or white in steps of 5 % until it stands out from `background` by CONTRAST."""
    goal = "#000000" if _luminance(background) > 0.5 else "#ffffff"
    mixed = (_mix(colour, goal, 0.05 * step) for step in range(21))
    return next(one for one in mixed if contrast(one, background) >= CONTRAST)


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two `#rrggbb` colours, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mix(colour: str, goal: str, part: float) -> str:
    pairs = zip(_channels(colour), _channels(goal), strict=True)
    return "#" + "".join(f"{round(255 * ((1 - part) * a + part * b)):02x}" for a, b in pairs)
