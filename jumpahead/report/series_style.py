"""Colour, dash, symbol and order of series in figures, legends and tables, by name of architecture.

A series is an architecture with its options. Architectures that are not listed here, such as architectures registered
by other packages, get colours, dashes and symbols that no other series of the page has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.report.colours import DARK_BACKGROUND, LIGHT_BACKGROUND, PALETTE, ensure_contrast

Json = Mapping[str, Any]

# SVG for legends: stroke patterns of lines 2 px wide, and symbol paths of radius 4.5 around (0, 0). Names as in plotly.
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


class MarkStyle(NamedTuple):
    """Colour, dash and symbol of a series in figures."""

    colour: str
    """`#rrggbb`, before the contrast with the background is adjusted."""
    dash: str
    """A key of DASHES."""
    symbol: str
    """A key of SYMBOLS."""


ARCHITECTURE_MARKS = {
    "jumprelu": MarkStyle("#0072b2", "solid", "circle"),
    "gated": MarkStyle("#d55e00", "dash", "square"),
    "topk": MarkStyle("#009e73", "dot", "triangle-up"),
    "relu": MarkStyle("#cc79a7", "longdash", "diamond"),
    "batchtopk": MarkStyle("#e69f00", "dashdot", "triangle-down"),
    "matryoshka": MarkStyle("#56b4e9", "longdashdot", "hexagon"),
    "anthropic": MarkStyle("#000000", "longdash", "star"),
}
"""Mark styles by architecture, in the order of legends and tables."""


class SeriesStyle(NamedTuple):
    """Names and mark style of a series. Only `name` and `title` are untrusted text; other fields are safe in CSS."""

    name: str
    """Name of the series in the study. Untrusted text."""
    title: str
    """Name of the series for readers. Untrusted text."""
    paper: str
    """Colour `#rrggbb` on a light background (and in print)."""
    screen: str
    """Colour `#rrggbb` on a dark background."""
    dash: str
    """A key of DASHES."""
    symbol: str
    """A key of SYMBOLS."""


def architecture_rank(architecture: str) -> int:
    """Return the sort rank of an architecture in legends and tables; unlisted architectures share the last rank."""
    names = list(ARCHITECTURE_MARKS)
    return names.index(architecture) if architecture in names else len(names)


def sort_series(series: Iterable[Json]) -> list[Json]:
    """Return series {name, title, architecture} sorted by architecture rank; the sort is stable."""
    return sorted(series, key=lambda item: architecture_rank(item["architecture"]))


def series_styles(series: Sequence[Json]) -> list[SeriesStyle]:
    """Return the style of each series {name, title, architecture}, in the given order.

    The first series of a listed architecture gets the mark style of the architecture. Other series get unused colours,
    dashes and symbols; if all are used, they are assigned again from the start.
    """
    first = {one["architecture"]: i for i, one in reversed(list(enumerate(series)))}
    fixed = {i: ARCHITECTURE_MARKS[name] for name, i in first.items() if name in ARCHITECTURE_MARKS}
    others = [i for i in range(len(series)) if i not in fixed]
    free = zip(
        *(_pick_unused_first(part, len(others), known) for part, known in _used_and_known_values(fixed.values())),
        strict=True,
    )
    marks = fixed | {i: MarkStyle(*values) for i, values in zip(others, free, strict=True)}
    return [
        SeriesStyle(
            name=str(one["name"]),
            title=str(one["title"]),
            paper=ensure_contrast(marks[i].colour, LIGHT_BACKGROUND),
            screen=ensure_contrast(marks[i].colour, DARK_BACKGROUND),
            dash=marks[i].dash,
            symbol=marks[i].symbol,
        )
        for i, one in enumerate(series)
    ]


def _used_and_known_values(fixed: Iterable[MarkStyle]) -> list[tuple[set[str], Sequence[str]]]:
    """Return (used values, all values) for colours, for dashes and for symbols. fixed: the mark styles in use."""
    fixed = list(fixed)
    known = (PALETTE, tuple(DASHES), tuple(SYMBOLS))
    return [({marks[i] for marks in fixed}, values) for i, values in enumerate(known)]


def _pick_unused_first(taken: set[str], count: int, known: Sequence[str]) -> list[str]:
    """Return `count` values of `known`: first values that are not in `taken`, then all of `known` cyclically."""
    free = [value for value in known if value not in taken]
    return [free[i] if i < len(free) else known[(i - len(free)) % len(known)] for i in range(count)]
