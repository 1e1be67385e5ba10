"""Tables that read the same in a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def render_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns: the first one left, the others right."""
    cells = [[one.replace("|", "\\|") for one in row] for row in (headings, *rows)]
    assert all(len(row) == len(headings) for row in cells), "a row with too few or too many cells"
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headings))]
    lines = [
        "| "
        + " | ".join(_pad(cell, width, column) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    rule = "|".join("-" * (width + 1) + ("-" if column == 0 else ":") for column, width in enumerate(widths))
    return "\n".join([lines[0] + " |", f"|{rule}|", *(line + " |" for line in lines[1:])])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def format_digits(value: float | None) -> str:
    """Format a number with three significant digits and thousands separators; `–` for None."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
