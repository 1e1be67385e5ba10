"""Terminal output of `jumpahead evaluate`: one row per SAE, with the metrics of a run's evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from jumpahead.formatting import format_aligned, format_number
from jumpahead.metrics import METRICS, curve_metrics
from jumpahead.report.terminal.layout import lm_name, make_table, print_item, print_line


def print_evaluations(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the evaluations that `api.evaluate` returned: per site a table of SAEs, then their notes."""
    console = console or Console()
    saes = result["saes"]
    names = _short_names([sae["sae"] for sae in saes])
    for site in dict.fromkeys(sae["site"] for sae in saes):
        members = [sae for sae in saes if sae["site"] == site]
        text, values = members[0]["text"], members[0]["metrics"]
        print_line(console, f"{site}, {lm_name(result['lm'])}, {result['text']}", "bold")
        print_line(
            console,
            f"{text['tokens']:,} held-out tokens in {text['documents']:,} documents. "
            f"Loss of the LM: {format_number(values['ce_clean'])}.",
        )
        keys = [key for key in curve_metrics() if any(sae["metrics"].get(key) is not None for sae in members)]
        table = make_table("SAE", "width", *(heading for key in keys for heading in _headings(key)), gap=1)
        for sae in members:
            numbers = [value for key in keys for value in _values(sae, key)]
            table.add_row(Text(names[sae["sae"]]), f"{sae['width']:,}", *map(format_aligned, numbers))
        console.print(table)
        console.print()
    notes = [(names[sae["sae"]], note) for sae in saes for note in sae["notes"]]
    if notes:
        print_line(console, "Notes", "bold")
        for name, note in notes:
            print_item(console, f"{name}: {note}")


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return each name without the folders that all of them begin with."""
    parts = [name.rstrip("/").split("/") for name in names]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return {name: "/".join(part[shared:]) for name, part in zip(names, parts, strict=True)}


def _headings(key: str) -> list[str]:
    """Return the column headings of a metric; for delta LM loss also that of its standard error."""
    return [METRICS[key].short, "SE"] if key == "delta_lm_loss" else [METRICS[key].short]


def _values(sae: Mapping[str, Any], key: str) -> list[float | None]:
    """Return the value of a metric of an SAE; for delta LM loss also the standard error."""
    value = sae["metrics"].get(key)
    return [value, sae["standard_errors"].get(key)] if key == "delta_lm_loss" else [value]
