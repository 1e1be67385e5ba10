"""Verbs that take SAEs of any make: evaluate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import typer.main

from jumpahead import api
from jumpahead.cli.commands import (
    AsJSON,
    Overrides,
    print_json,
    verb,
)


@verb
def evaluate(
    saes: Annotated[
        list[str],
        typer.Argument(metavar="SAE...", help="Folders or weights of SAEs of any make, or hf://user/repo/path."),
    ],
    lm: Annotated[
        str | None, typer.Option("--lm", metavar="MODEL", help="As lm.model in a study; by default the SAEs' own.")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="stdlib, a file, a folder, hf:owner/name, or -.")] = "stdlib",
    site: Annotated[str | None, typer.Option("--site", help="By default the site that each was trained at.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Held-out tokens that are scored.")] = 100_000,
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the JSON to this file.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure SAEs of any make on held-out text."""
    found = api.evaluate(saes, lm=lm, text=text, site=site, tokens=tokens, overrides=overrides, out=out)
    if as_json:
        print_json(found)
        return
    from jumpahead.report import terminal

    terminal.print_evaluations(found)


@verb
def export(
    sae: Annotated[
        str, typer.Argument(metavar="SAE", help="Folder or weights of an SAE of any make, or hf://user/repo/path.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="saelens, gemma-scope, dictionary_learning, …")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
) -> None:
    """Write an SAE in the format of another library."""
    print(f"exported: {api.export(sae, to=to, out=out)}")
