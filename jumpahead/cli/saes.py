"""Verbs that take SAEs of any make: evaluate, compare, export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import typer.main

from jumpahead import api
from jumpahead.cli.commands import (
    AsJSON,
    Model,
    Overrides,
    SiteName,
    Text,
    print_json,
    sigterm_as_interrupt,
    verb,
)


@verb
def evaluate(
    saes: Annotated[
        list[str],
        typer.Argument(metavar="SAE...", help="Folders or weights of SAEs of any make, or hf://user/repo/path."),
    ],
    lm: Model = None,
    text: Text = "stdlib",
    site: SiteName = None,
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
def compare(
    saes: Annotated[
        list[str],
        typer.Argument(metavar="SAE|RUN...", help="Runs, finished or not, and SAEs of any make. NAME=PATH: a series."),
    ],
    lm: Annotated[
        str | None, typer.Option("--lm", metavar="MODEL", help="By default that of the first run, or the SAEs' own.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="As in evaluate; by default that of the first run, or stdlib.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", help="The only site that is compared.")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Held-out tokens; by default as in the first run.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the frontier and the page are written.")
    ] = Path("runs/compare"),
) -> None:
    """Put SAEs of any make and of runs on one frontier."""
    from jumpahead.storage.run_folder import Run

    with sigterm_as_interrupt():
        folder = Run(api.compare(saes, lm=lm, text=text, site=site, tokens=tokens, overrides=overrides, out=out))
    print(f"compared: {folder.folder}\nreport:   {folder.report}")
    print(f"ask:      jumpahead ask {folder.folder} --delta-loss 0.2")


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


@verb
def push(
    source: Annotated[str, typer.Argument(metavar="SAE|RUN", help="A run, or an SAE of any make.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="A repository on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    licence: Annotated[str, typer.Option("--license", help="As the hub names it, such as mit or gemma.")] = "mit",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload nothing; show what would be.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Keep the files in a new or empty folder.")
    ] = None,
) -> None:
    """Publish an SAE or a run on the Hugging Face hub."""
    from jumpahead.formatting import format_bytes

    done = api.push(source, repo, private=private, dtype=dtype, licence=licence, dry_run=dry_run, out=out)
    for file in done.files:
        print(f"{format_bytes(file.bytes):>9}  {file.path}")
    if done.url is None:
        print(f"\n{done.card}")
    else:
        print(f"pushed: {done.url}")
