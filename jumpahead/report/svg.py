"""The figure of a panel as an SVG file: the fidelity metric against L0, for places where no script runs.

Both axes are logarithmic if all values are positive. Bars are the intervals of frontier.json. Colours, dashes and
symbols are those of the page on a light background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from jumpahead.formatting import typeset_exact
from jumpahead.report.sanitize import sanitize
from jumpahead.report.series_style import DASHES, SYMBOLS, SeriesStyle, series_styles

Json = Mapping[str, Any]
WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 20, 50
"""Margins; the legend stands in the right one."""
PADDING = 0.06
"""Share of the axis that is left free at each end."""
STEPS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8))
"""Ticks within a decade, for many decades, few, or one."""
FEWEST_TICKS = 4


class Scale(NamedTuple):
    """The map from values to pixels of one axis."""

    low: float
    high: float
    is_log: bool
    start: float
    end: float

    @classmethod
    def covering(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """Return the scale that shows all values, logarithmic if they are positive. start, end: pixels."""
        is_log = min(values) > 0
        low, high = (math.log10(f(values)) if is_log else f(values) for f in (min, max))
        pad = PADDING * (high - low) or 0.1
        return cls(low - pad, high + pad, is_log, start, end)

    def pixel(self, value: float) -> float:
        """Return the position of a value; of one that the logarithm does not have, the lower end."""
        if self.is_log:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return the values of the ticks, at most about a dozen."""
        if self.is_log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            found = [[step * 10.0**power for power in powers for step in steps] for steps in STEPS]
            inside = [[value for value in values if self.low <= math.log10(value) <= self.high] for values in found]
            return next((values for values in inside if len(values) >= FEWEST_TICKS), inside[-1])
        power = 10.0 ** math.floor(math.log10(self.high - self.low))
        step = next(step * power / 5 for step in (1, 2, 5, 10) if (self.high - self.low) / (step * power / 5) <= 10)
        first = math.ceil(self.low / step)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step) + 1)]


def frontier_svg(frontier: Json, panel: Json) -> str:
    """Return the SVG of a panel. frontier: content of frontier.json. panel: an element of its `panels`."""
    frontier, panel, key = sanitize(frontier), sanitize(panel), str(panel["fidelity"])
    points = [point for point in panel["points"] if all(point["metrics"].get(name) is not None for name in ("l0", key))]
    x = Scale.covering([point["metrics"]["l0"] for point in points] or [1.0, 10.0], LEFT, WIDTH - RIGHT)
    bounds = [bound for point in points for bound in _interval(point, key)]
    positive = [value for value in bounds if value > 0]
    is_log = all(point["metrics"][key] > 0 for point in points)
    y = Scale.covering((positive if is_log else bounds) or [0.1, 1.0], HEIGHT - BOTTOM, TOP)
    titles = {each["key"]: ", ".join(filter(None, (each["name"], each["unit"]))) for each in frontier["metrics"]}
    parts = [*_axes(x, y, titles["l0"], titles[key])]
    shown = [style for style in series_styles(frontier["series"]) if any(p["series"] == style.name for p in points)]
    for row, style in enumerate(shown):
        own = sorted((p for p in points if p["series"] == style.name), key=lambda p: p["metrics"]["l0"])
        parts += _curve(own, style, x, y, key)
        parts += _legend_entry(style, row)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222222">'
    )
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def _interval(point: Json, key: str) -> list[float]:
    """Return the value of a metric and the ends of its interval."""
    return [point["metrics"][key], *(point["intervals"].get(key) or ())]


def _axes(x: Scale, y: Scale, x_title: str, y_title: str) -> list[str]:
    """Return grid lines, tick labels and titles of both axes."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in x.ticks():
        at = x.pixel(value)
        parts.append(f'<path d="M{at} {TOP}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{typeset_exact(value)}</text>')
    for value in y.ticks():
        at = y.pixel(value)
        parts.append(f'<path d="M{LEFT} {at}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{typeset_exact(value)}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888888"/>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_title)}</text>')
    return [
        *parts,
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>',
    ]


def _curve(points: Sequence[Json], style: SeriesStyle, x: Scale, y: Scale, key: str) -> list[str]:
    """Return the line, the intervals and the marks of a series. points: sorted by L0."""
    places = [(x.pixel(point["metrics"]["l0"]), y.pixel(point["metrics"][key])) for point in points]
    line = "M" + "L".join(f"{at} {height}" for at, height in places)
    dash = DASHES[style.dash]
    parts = [f'<path d="{line}" fill="none" stroke="{style.paper}" stroke-width="2" stroke-dasharray="{dash}"/>']
    for point, (at, height) in zip(points, places, strict=True):
        ends = [y.pixel(value) for value in _interval(point, key)[1:]]
        if ends:
            parts.append(f'<path d="M{at} {min(ends)}V{max(ends)}" stroke="{style.paper}"/>')
        parts.append(f'<path transform="translate({at} {height})" d="{SYMBOLS[style.symbol]}" fill="{style.paper}"/>')
    return parts


def _legend_entry(style: SeriesStyle, row: int) -> list[str]:
    """Return a series' entry in the legend."""
    left, top = WIDTH - RIGHT + 16, TOP + 14 + 20 * row
    return [
        f'<path d="M{left} {top}h34" stroke="{style.paper}" stroke-width="2" stroke-dasharray="{DASHES[style.dash]}"/>',
        f'<path transform="translate({left + 17} {top})" d="{SYMBOLS[style.symbol]}" fill="{style.paper}"/>',
        f'<text x="{left + 42}" y="{top + 4}">{escape(style.title)}</text>',
    ]
