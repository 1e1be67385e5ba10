"""Terminal output of `jumpahead efficiency`: the cost of a training step and the time of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumpahead.formatting import format_aligned, format_number, format_percent
from jumpahead.report.terminal.layout import make_table, print_heading, print_item, print_line

Json = Mapping[str, Any]


def print_efficiency(efficiency: Json, console: Console | None = None) -> None:
    """Print the content of efficiency.json: hardware, and per shape the cost of a step and the time of its stages."""
    console = console or Console()
    hardware = efficiency["hardware"]
    machine = hardware.get("processor") or hardware.get("machine") or "this machine"
    threads = f"{efficiency['threads']} thread{'s' * (efficiency['threads'] != 1)}"
    print_line(console, f"What a training step costs: {threads}, {machine}", "bold")
    why = f" ({efficiency['kernels_reason'].replace('×', 'x')})" if efficiency["kernels_reason"] else ""
    print_line(console, f"Kernels: {efficiency['kernels']}{why}.")
    for shape in efficiency["shapes"]:
        console.print()
        print_line(console, shape["label"], "bold")
        print_line(console, _lower_bounds_text(shape))
        console.print(_cost_table(efficiency, shape))
        for sentence in _comparison_sentences(efficiency, shape):
            print_item(console, sentence)
        print_heading(console, "Where the time goes, ms")
        console.print(_stage_time_table(efficiency, shape))
    legend = [
        f"{stage['short']}: {stage['title']}" for stage in efficiency["stages"] if stage["short"] != stage["title"]
    ]
    console.print()
    print_line(console, "; ".join([*legend, "sum: of these; step: one without timers inside"]), "dim")
    for note in efficiency["notes"]:
        print_line(console, note, "dim")


def _lower_bounds_text(shape: Json) -> str:
    """Return sentences on the lower bounds of the step time: encoder products, fastest first, and copy bandwidth."""
    bounds = shape["limits"]
    products = [
        f"{product['name']} {format_number(product['ms'])} ms ({format_number(product['gflops'])} GFLOP/s)"
        for product in bounds["products"]
    ]
    copied = format_number(bounds["copy_bytes_per_s"] / 1e9)
    return f"Lower bound: one encoder product, {'; '.join(products)}. A copy moves {copied} GB/s."


def _cost_table(efficiency: Json, shape: Json) -> Table:
    """Return a table of all measures with one row per method, grouped by architecture."""
    measures = efficiency["measures"]
    table = make_table("", *(f"{one['short']}\n{one['unit']}".rstrip() for one in measures))
    for architecture, rows in _measured_rows(shape):
        table.add_row(Text(architecture, "bold"))
        for row in rows:
            values = [row.get(one["key"]) for one in measures]
            cells = [
                "" if v is None else format_aligned(v * one["scale"]) for v, one in zip(values, measures, strict=True)
            ]
            table.add_row(f"  {_method_declaration(efficiency, row)['short']}", *cells)
    return table


def _stage_time_table(efficiency: Json, shape: Json) -> Table:
    """Return a table of milliseconds per stage, their sum, and the whole step; one row per method."""
    stages = efficiency["stages"]
    table = make_table("", *(stage["short"] for stage in stages), "sum", "step", gap=1)
    for architecture, rows in _measured_rows(shape):
        table.add_row(Text(architecture, "bold"))
        for row in rows:
            cells = [
                format_aligned(row["stages"][stage["key"]]) if stage["key"] in row["stages"] else "" for stage in stages
            ]
            table.add_row(
                f"  {_method_declaration(efficiency, row)['short']}",
                *cells,
                format_aligned(row["stages_ms"]),
                format_aligned(row["ms"]),
            )
    return table


def _comparison_sentences(efficiency: Json, shape: Json) -> list[str]:
    """Return one sentence per architecture and one per skipped method.

    Per architecture, the first method is compared with the lower bound, the other methods with the first method.
    """
    sentences = []
    for architecture, (first, *others) in _measured_rows(shape):
        words = f"{architecture}: {format_number(first['ms'] / first['lower_bound_ms'])} x the lower bound."
        for row in others:
            title = _method_declaration(efficiency, row)["title"]
            words += f" {title[0].upper()}{title[1:]}: {format_number(row['ms'] / first['ms'])} x as long"
            words += "." if row["recall"] is None else f", finds {format_percent(row['recall'])} of the exact top-k."
        sentences.append(words)
    skipped = [row for row in shape["rows"] if row["skipped"]]
    return sentences + [
        f"{row['title']}, {_method_declaration(efficiency, row)['title']}: {row['skipped']}." for row in skipped
    ]


def _measured_rows(shape: Json) -> list[tuple[str, list[Json]]]:
    """Return (title of the architecture, measured rows) for every architecture that has measured rows."""
    titles = dict.fromkeys(row["title"] for row in shape["rows"] if row["ms"] is not None)
    return [(title, [row for row in shape["rows"] if row["title"] == title and row["ms"]]) for title in titles]


def _method_declaration(efficiency: Json, row: Json) -> Json:
    """Return the metadata of the method of a row."""
    return next(one for one in efficiency["methods"] if one["key"] == row["method"])
