"""Colour, dash, symbol and order of series in figures, legends and tables, from the names of their architectures.

Architectures that are not listed here, such as those registered from outside the package, get colours, dashes and
symbols that no other series of the page has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.report.colours import PALETTE, PAPER, SCREEN, readable

Json = Mapping[str, Any]

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


class Marks(NamedTuple):
    """What is drawn for a series."""

    colour: str
    """`#rrggbb`, before it is adapted to the background."""
    dash: str
    """A key of DASHES."""
    symbol: str
    """A key of SYMBOLS."""


ARCHITECTURE_MARKS = {
    "jumprelu": Marks("#0072b2", "solid", "circle"),
    "gated": Marks("#d55e00", "dash", "square"),
    "topk": Marks("#009e73", "dot", "triangle-up"),
    "relu": Marks("#cc79a7", "longdash", "diamond"),
    "batchtopk": Marks("#e69f00", "dashdot", "triangle-down"),
    "matryoshka": Marks("#56b4e9", "longdashdot", "hexagon"),
    "anthropic": Marks("#000000", "longdash", "star"),
}
"""In the order of legends and tables."""


class SeriesStyle(NamedTuple):
    """How a series is named and drawn. Apart from its two names, everything comes from this package: safe in CSS."""

    name: str
    """As the study calls it. Untrusted text."""
    title: str
    """As a reader sees it. Untrusted text."""
    paper: str
    """`#rrggbb` on a light background."""
    screen: str
    """`#rrggbb` on a dark background."""
    dash: str
    """A key of DASHES."""
    symbol: str
    """A key of SYMBOLS."""


def architecture_rank(architecture: str) -> int:
    """Return the position of an architecture in legends and tables; unlisted ones are all last."""
    names = list(ARCHITECTURE_MARKS)
    return names.index(architecture) if architecture in names else len(names)


def sort_series(series: Iterable[Json]) -> list[Json]:
    """Return series {name, title, architecture} in the order of legends; within an architecture as given."""
    return sorted(series, key=lambda one: architecture_rank(one["architecture"]))


def series_styles(series: Sequence[Json]) -> list[SeriesStyle]:
    """Return the style of each series {name, title, architecture}.

    The first series of a listed architecture has the architecture's marks. All others get marks that no series of the
    page has; when none is left, the first ones again.
    """
    first = {one["architecture"]: i for i, one in reversed(list(enumerate(series)))}
    fixed = {i: ARCHITECTURE_MARKS[name] for name, i in first.items() if name in ARCHITECTURE_MARKS}
    others = [i for i in range(len(series)) if i not in fixed]
    free = zip(*(_free(part, len(others), known) for part, known in _parts(fixed.values())), strict=True)
    marks = fixed | {i: Marks(*found) for i, found in zip(others, free, strict=True)}
    return [
        SeriesStyle(
            name=str(one["name"]),
            title=str(one["title"]),
            paper=readable(marks[i].colour, PAPER),
            screen=readable(marks[i].colour, SCREEN),
            dash=marks[i].dash,
            symbol=marks[i].symbol,
        )
        for i, one in enumerate(series)
    ]


def _parts(fixed: Iterable[Marks]) -> list[tuple[set[str], Sequence[str]]]:
    """Return, for colours, dashes and symbols, those that are taken and all that there are."""
    fixed = list(fixed)
    known = (PALETTE, tuple(DASHES), tuple(SYMBOLS))
    return [({marks[i] for marks in fixed}, values) for i, values in enumerate(known)]


def _free(taken: set[str], count: int, known: Sequence[str]) -> list[str]:
    """Return `count` values: those of `known` that are not taken, then all of `known` again."""
    free = [value for value in known if value not in taken]
    return [free[i] if i < len(free) else known[(i - len(free)) % len(known)] for i in range(count)]
