"""`jumpahead features`: what the features of a run's SAEs, or of SAEs of any make, respond to."""

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
from jumpahead.errors import StudyError


@verb
def features(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RUN|SAE...", help="Folder of a run; or SAEs of any make, or hf://user/repo/path."),
    ],
    lm: Model = None,
    text: Text = "stdlib",
    site: SiteName = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Held-out tokens that are searched; by default 200,000.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Show which features of one SAE fire on this text.")
    ] = None,
    with_neuronpedia: Annotated[
        bool, typer.Option("--neuronpedia", help="Also write the features under Neuronpedia's names.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="A new folder, by default features/; with --prompt, an HTML file."),
    ] = None,
    as_json: AsJSON = False,
    is_opened: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Show what features respond to: pages that open from the disk."""
    if prompt is not None:
        _show_prompt(targets, prompt, lm, site, overrides, out, as_json)
        return
    with sigterm_as_interrupt():
        page = api.features(
            targets,
            lm=lm,
            text=text,
            site=site,
            tokens=tokens,
            overrides=overrides,
            out=out,
            with_neuronpedia=with_neuronpedia,
        )
    print(f"features: {page}")
    if is_opened:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _show_prompt(
    targets: list[str],
    prompt: str,
    lm: str | None,
    site: str | None,
    overrides: list[str],
    out: Path | None,
    as_json: bool,
) -> None:
    """Print which features of one SAE fire on a prompt; write the page if `out` is given."""
    if len(targets) != 1:
        raise StudyError("features: --prompt takes one SAE.")
    found = api.features_of_prompt(targets[0], prompt, lm=lm, site=site, overrides=overrides, out=out)
    if as_json:
        print_json(found)
        return
    from jumpahead.report import terminal

    terminal.print_prompt(found)
    if out is not None:
        print(f"page: {out}")
