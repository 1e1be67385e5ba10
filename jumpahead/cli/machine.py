"""`jumpahead efficiency`: this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.main

from jumpahead import api
from jumpahead.cli.commands import (
    AsJSON,
    print_json,
    stopped,
    verb,
)


@verb
def efficiency(
    d: Annotated[int | None, typer.Option("--d", min=2, help="Dimension of an activation; by default 256.")] = None,
    width: Annotated[str | None, typer.Option("--width", help="Features: 4096,8192; by default 4096.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Tokens per step; by default 2048.")] = None,
    l0: Annotated[str | None, typer.Option("--l0", help="Active features per token: 16,32; by default 32.")] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="STUDY", help="Take options that are not given from a study.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="The same from a run; the result is added to its page.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Approximate time to measure.")] = 60,
    dead: Annotated[float, typer.Option("--dead", min=0, max=0.9, help="Share of dead features, for AuxK.")] = 0.05,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; torch's default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the JSON to this file.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure what a training step costs on this machine."""
    from jumpahead.efficiency import parse_integers, parse_numbers
    from jumpahead.report import terminal

    found = api.efficiency(
        d=d, width=parse_integers(width, "--width"), batch=batch, l0=parse_numbers(l0, "--l0"), study=study, run=run,
        seconds=seconds, dead=dead, threads=threads, out=out,
    )  # fmt: skip
    measured = found.measurements
    if measured["is_interrupted"] and not measured["shapes"]:
        raise stopped("Stopped before anything was measured.", 130)
    if as_json:
        print_json(measured)
    else:
        terminal.print_efficiency(measured)
    if measured["is_interrupted"]:
        raise stopped("Stopped: nothing was saved.", 130)
    for path in found.saved:
        print(f"saved: {path}", file=sys.stderr if as_json else sys.stdout)
