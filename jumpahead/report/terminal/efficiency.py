"""`jumpahead efficiency` in the terminal: what a training step costs, and where its time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumpahead.formatting import format_aligned, format_number, format_percent
from jumpahead.report.terminal.layout import make_table, print_heading, print_item, print_line

Json = Mapping[str, Any]


def print_efficiency(found: Json, console: Console | None = None) -> None:
    """Print efficiency.json: per shape the cost of a step, where its time goes, and how that was measured."""
    console = console or Console()
    hardware = found["hardware"]
    machine = hardware.get("processor") or hardware.get("machine") or "this machine"
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    print_line(console, f"What a training step costs: {threads}, {machine}", "bold")
    why = f" ({found['kernels_reason'].replace('×', 'x')})" if found["kernels_reason"] else ""
    print_line(console, f"Kernels: {found['kernels']}{why}.")
    for shape in found["shapes"]:
        console.print()
        print_line(console, shape["label"], "bold")
        print_line(console, _limits(shape))
        console.print(_costs(found, shape))
        for sentence in _compared(found, shape):
            print_item(console, sentence)
        print_heading(console, "Where the time goes, ms")
        console.print(_times(found, shape))
    legend = [f"{stage['short']}: {stage['title']}" for stage in found["stages"] if stage["short"] != stage["title"]]
    console.print()
    print_line(console, "; ".join([*legend, "sum: of these; step: one without timers inside"]), "dim")
    for note in found["notes"]:
        print_line(console, note, "dim")


def _limits(shape: Json) -> str:
    """Return sentences on the encoder products, fastest first, and on the bandwidth."""
    found = shape["limits"]
    products = [
        f"{one['name']} {format_number(one['ms'])} ms ({format_number(one['gflops'])} GFLOP/s)"
        for one in found["products"]
    ]
    copied = format_number(found["copy_bytes_per_s"] / 1e9)
    return f"Lower bound: one encoder product, {'; '.join(products)}. A copy moves {copied} GB/s."


def _costs(found: Json, shape: Json) -> Table:
    """Return a table with one row per method below its architecture, with every measure."""
    measures = found["measures"]
    table = make_table("", *(f"{one['short']}\n{one['unit']}".rstrip() for one in measures))
    for architecture, rows in _measured_rows(shape):
        table.add_row(Text(architecture, "bold"))
        for row in rows:
            values = [row.get(one["key"]) for one in measures]
            cells = [
                "" if v is None else format_aligned(v * one["scale"]) for v, one in zip(values, measures, strict=True)
            ]
            table.add_row(f"  {_method(found, row)['short']}", *cells)
    return table


def _times(found: Json, shape: Json) -> Table:
    """Return a table with one row per method below its architecture: ms per stage, their sum, and the step."""
    stages = found["stages"]
    table = make_table("", *(stage["short"] for stage in stages), "sum", "step", gap=1)
    for architecture, rows in _measured_rows(shape):
        table.add_row(Text(architecture, "bold"))
        for row in rows:
            cells = [
                format_aligned(row["stages"][stage["key"]]) if stage["key"] in row["stages"] else "" for stage in stages
            ]
            table.add_row(
                f"  {_method(found, row)['short']}", *cells, format_aligned(row["stages_ms"]), format_aligned(row["ms"])
            )
    return table


def _compared(found: Json, shape: Json) -> list[str]:
    """Return sentences: per architecture the first method against the lower bound and the others against the first.

    Then one sentence per skipped method.
    """
    sentences = []
    for architecture, (first, *others) in _measured_rows(shape):
        words = f"{architecture}: {format_number(first['ms'] / first['lower_bound_ms'])} x the lower bound."
        for row in others:
            title = _method(found, row)["title"]
            words += f" {title[0].upper()}{title[1:]}: {format_number(row['ms'] / first['ms'])} x as long"
            words += "." if row["recall"] is None else f", finds {format_percent(row['recall'])} of the exact top-k."
        sentences.append(words)
    skipped = [row for row in shape["rows"] if row["skipped"]]
    return sentences + [f"{row['title']}, {_method(found, row)['title']}: {row['skipped']}." for row in skipped]


def _measured_rows(shape: Json) -> list[tuple[str, list[Json]]]:
    """Return the rows with numbers, by the title of their architecture."""
    titles = dict.fromkeys(row["title"] for row in shape["rows"] if row["ms"] is not None)
    return [(title, [row for row in shape["rows"] if row["title"] == title and row["ms"]]) for title in titles]


def _method(found: Json, row: Json) -> Json:
    """Return the declaration of a row's method."""
    return next(one for one in found["methods"] if one["key"] == row["method"])
