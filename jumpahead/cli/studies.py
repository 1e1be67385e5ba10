"""Verbs that take a study: init, plan, run, harvest."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.main

from jumpahead import api
from jumpahead.cli.commands import (
    AsJSON,
    Out,
    Overrides,
    StudyFile,
    print_json,
    sigterm_as_interrupt,
    verb,
)
from jumpahead.pipeline import STAGES


@verb
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="tiny, a Hugging Face folder, or a name on the hub.")],
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="The block, from 0; by default the middle one.")
    ] = None,
    site: Annotated[
        str, typer.Option("--site", help="residual, mlp or attention; or the full name of a site, such as PATH.output.")
    ] = "residual",
    text: Annotated[str, typer.Option("--text", help="stdlib, a file, a folder, hf:owner/name, or -.")] = "stdlib",
    width: Annotated[
        int | None, typer.Option("--width", min=2, help="Features; by default 16 × d of the site.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Study file; by default NAME.toml.")] = None,
) -> None:
    """Write a commented study for a model."""
    path = api.init(model, layer=layer, site=site, text=text, width=width, out=out)
    print(f"study: {path}\nnext:  jumpahead plan {path}")


@verb
def plan(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006 - typer only reads the list
    out: Out = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time a few steps, for about a minute.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run everything once, two steps per SAE, and keep nothing.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Show SAEs, tokens, memory, disk and time, before any work."""
    planned = api.plan(study, out=out, overrides=overrides, measure=measure)
    if as_json:
        print_json(planned.to_json())
    else:
        print(planned.text(shutil.get_terminal_size().columns))
    if dry_run:
        with sigterm_as_interrupt():
            result = api.dry_run(study, overrides=overrides)
        print(f"\n{result}", file=sys.stderr if as_json else sys.stdout)


@verb
def run(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help=f"Stop after {', '.join(STAGES[:-1])}.")
    ] = None,
    delta_loss: Annotated[
        list[float] | None,
        typer.Option("--delta-loss", metavar="NATS", help="Also train SAEs that have this delta LM loss. Repeatable."),
    ] = None,
    out: Out = None,
) -> None:
    """Train and evaluate the SAEs of a study; skip what is done."""
    from jumpahead.storage.run_folder import Run

    with sigterm_as_interrupt():
        target = Run(api.run(study, out=out, overrides=overrides, until=until, delta_loss=delta_loss or ()))
    if until:
        print(f"run:    {target.folder} (stopped after {until})")
        return
    print(f"run:    {target.folder}")
    if target.report.exists():
        print(f"report: {target.report}")
    if target.features.page.exists():
        print(f"features: {target.features.page}")
    if target.frontier.exists():
        print(f"ask:    jumpahead ask {target.folder} {api.question_example(target.folder)}")


@verb
def harvest(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Write part I of N, for N processes at the same time.")
    ] = None,
    out: Out = None,
) -> None:
    """Write the activations of a study to disk, and nothing else."""
    with sigterm_as_interrupt():
        written = api.harvest(study, out=out, overrides=overrides, shard=shard)
    missing = "" if written.is_complete else f" (part {shard} is there, others are missing)"
    print(f"activations: {written.folder}{missing}")
