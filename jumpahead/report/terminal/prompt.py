"""Terminal output of `jumpahead features SAE --prompt`: a line per token with the strongest features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from jumpahead.formatting import format_number
from jumpahead.report.sanitize import sanitize
from jumpahead.report.terminal.layout import lm_name, make_table, print_line

SHOWN = 3
"""Features that are shown of each token, if labels are known: one per line."""
SHOWN_UNLABELLED = 5
"""Features that are shown of each token without labels, on one line."""


def print_prompt(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print which features fire on each token of a prompt, as `api.features_of_prompt` returned it."""
    console = console or Console()
    labels = result["labels"]
    print_line(console, sanitize(f"{result['sae']}, {result['site']}, {lm_name(result['lm'])}"), "bold")
    heading = f"strongest {SHOWN}: number, activation, label" if labels else f"strongest {SHOWN_UNLABELLED}"
    table = make_table("token", "active", last=heading, gap=2)
    for token, active in zip(result["tokens"], result["active"], strict=True):
        text = sanitize(token.replace("\n", "⏎").replace("\t", "⇥"))
        shown = _labelled(active, labels) if labels else _unlabelled(active)
        table.add_row(Text(f"“{text}”"), f"{len(active):,}" if active else "-", Text(shown))
    console.print(table)
    if not labels:
        print_line(console, "Labels are known once `jumpahead features` has written the SAE's pages.")


def _labelled(active: Sequence[Sequence[float]], labels: Mapping[str, str]) -> str:
    """Return the strongest features of a token, one per line, with their labels."""
    shown = [(int(feature), value, labels.get(str(int(feature)), "")) for feature, value in active[:SHOWN]]
    return "\n".join(f"#{j:<6} {format_number(value):<6} {sanitize(label)}".rstrip() for j, value, label in shown)


def _unlabelled(active: Sequence[Sequence[float]]) -> str:
    """Return the strongest features of a token on one line."""
    return "  ".join(f"#{int(feature)} {format_number(value)}" for feature, value in active[:SHOWN_UNLABELLED])
