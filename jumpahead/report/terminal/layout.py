"""Tables, headings and lines of terminal output."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def make_table(first: str, *headings: str, last: str | None = None, gap: int = 2) -> Table:
    """Return a table without box, `gap` spaces between columns; numbers right, the first and last column left."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(without_space(heading), justify="right", overflow="fold")
    if last is not None:
        table.add_column(last, overflow="fold")
    return table


def without_space(text: str) -> str:
    """Return `0.06%` for `0.06 %`: as it is typed, and never broken over two lines."""
    return text.replace(" %", "%")


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a paragraph."""
    console.print(Text(without_space(text), style))


def print_heading(console: Console, text: str) -> None:
    """Print a heading after an empty line."""
    console.print()
    print_line(console, text, "bold")


def print_item(console: Console, text: str, path: str | None = None) -> None:
    """Print an indented sentence, and a path on a line of its own, never broken, so that it can be copied."""
    console.print(Padding(Text(without_space(text)), (0, 0, 0, 2)))
    if path:
        console.print(Text(f"    {path}"), soft_wrap=True)


def lm_name(name: str | None) -> str:
    """Return `LM tiny`, or `no LM`."""
    return f"LM {name}" if name else "no LM"
