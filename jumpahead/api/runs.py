"""What takes a run: ask, show, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead.api.arguments import PathLike

if TYPE_CHECKING:
    from jumpahead.frontier import Answer


def ask(run: PathLike, **question: Any) -> Answer:
    """Return the cost of each series of a run at a loss, L0 or other metric. question: keywords of `Frontier.ask`."""
    from jumpahead.frontier import Frontier

    return Frontier.load(run).ask(**question)


def show(run: PathLike) -> None:
    """Print the frontier of a run in the terminal."""
    from jumpahead.frontier import Frontier
    from jumpahead.report import terminal

    terminal.print_frontier(Frontier.load(run))


def report(run: PathLike) -> Path:
    """Write the page of a run again; return its path."""
    from jumpahead.report import write_report

    return write_report(Path(run))
