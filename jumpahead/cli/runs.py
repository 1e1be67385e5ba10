"""Verbs that take a run: show, report, verify, clean."""

from __future__ import annotations

from typing import Annotated

import typer
import typer.main

from jumpahead import api
from jumpahead.cli.commands import (
    RunFolder,
    stopped,
    verb,
)
from jumpahead.formatting import format_bytes


@verb
def show(
    run: RunFolder,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all SAEs and metrics as CSV.")] = False,
) -> None:
    """Show the frontier in the terminal."""
    if as_csv:
        print(api.load_frontier(run).to_csv(), end="")
        return
    api.show(run)


@verb
def report(
    run: RunFolder,
    is_opened: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write figures for a paper, as PDF and PNG.")] = False,
) -> None:
    """Write the page of a run again."""
    path = api.report(run, pdf=pdf)
    print(f"report: {path}")
    if pdf:
        from jumpahead.storage.layout import RunPaths

        print(f"figures: {RunPaths(run).figures}")
    if is_opened:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


@verb
def verify(run: RunFolder) -> None:
    """Check every file of a run against its checksum."""
    found = api.verify(run)
    for problem in found.problems:
        print(problem)
    counted = f"{found.files:,} files ({format_bytes(found.bytes)})"
    if found.problems:
        number = len(found.problems)
        raise stopped(f"{number} problem{'s' * (number > 1)} in {counted}; `jumpahead run` makes them again.", 1)
    print(f"{counted}: all are as they were written.")


@verb
def clean(
    run: RunFolder,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove results that the run's study does not refer to."""
    found = api.clean(run, dry_run=is_dry)
    for unused in found:
        print(f"{format_bytes(unused.bytes):>9}  {unused.path} ({unused.what})")
    total = format_bytes(sum(unused.bytes for unused in found))
    done = "would be" if is_dry else "were"
    print(f"{total} {done} removed." if found else "Nothing to remove: the study refers to everything.")
