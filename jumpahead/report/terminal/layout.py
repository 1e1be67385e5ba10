"""Helpers for tables, headings and paragraphs of terminal output."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def make_table(first: str, *headings: str, last: str | None = None, gap: int = 2) -> Table:
    """Return an empty table without borders and with `gap` spaces between columns.

    The columns `first` and `last` are aligned left, the columns `headings` are aligned right.
    """
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(compact_percent(heading), justify="right", overflow="fold")
    if last is not None:
        table.add_column(last, overflow="fold")
    return table


def compact_percent(text: str) -> str:
    """Return text with ` %` replaced by `%`, so that `0.06%` never breaks across lines and can be pasted as input."""
    return text.replace(" %", "%")


def stack_words(heading: str) -> str:
    """Return a heading with each word on its own line, which keeps columns of numbers narrow."""
    return compact_percent(heading).replace(" ", "\n")


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a paragraph in a rich style."""
    console.print(Text(compact_percent(text), style))


def print_heading(console: Console, text: str) -> None:
    """Print a heading after an empty line."""
    console.print()
    print_line(console, text, "bold")


def print_item(console: Console, text: str, path: str | None = None) -> None:
    """Print an indented sentence, followed by `path` on an unwrapped line, so that the path can be copied."""
    console.print(Padding(Text(compact_percent(text)), (0, 0, 0, 2)))
    if path:
        console.print(Text(f"    {path}"), soft_wrap=True)


def lm_name(name: str | None) -> str:
    """Return the name of a language model for a heading: `LM tiny`; `no LM` if `name` is None or empty."""
    return f"LM {name}" if name else "no LM"
