"""Verbs that take a run: show, report."""

from __future__ import annotations

from typing import Annotated

import typer
import typer.main

from jumpahead import api
from jumpahead.cli.commands import (
    RunFolder,
    verb,
)


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
