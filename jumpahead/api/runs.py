"""What takes a run: ask, show, report, verify, clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead.api.arguments import PathLike

if TYPE_CHECKING:
    from jumpahead.frontier import Answer
    from jumpahead.storage.verify import Unused, Verification


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


def verify(run: PathLike) -> Verification:
    """Read every file of a run that carries a checksum; return the files that are damaged and the SAEs that miss."""
    from jumpahead.storage.verify import verify_run

    return verify_run(Path(run))


def clean(run: PathLike, *, dry_run: bool = False) -> list[Unused]:
    """Remove what the study of a run does not refer to, such as SAEs that were set aside; return what was removed.

    dry_run: only return what would be removed.
    """
    from jumpahead.storage.run_folder import Run
    from jumpahead.storage.verify import remove_unused, unused_results

    target = Run.open(run)
    with target.lock():
        found = unused_results(target)
        if not dry_run:
            for unused in found:
                remove_unused(unused, target)
    return found
