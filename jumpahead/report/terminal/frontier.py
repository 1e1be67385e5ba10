"""Terminal output of `jumpahead show`: per panel (a site and width) all SAEs, and matched tables of series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumpahead.formatting import (
    SampleUnit,
    format_aligned,
    format_number,
    format_range,
    format_setting,
    format_widths,
)
from jumpahead.frontier import Estimate, Frontier
from jumpahead.metrics import METRICS, curve_metrics
from jumpahead.report.notes import group_notes, join_labels
from jumpahead.report.terminal.layout import lm_name, make_table, print_heading, print_item, print_line, stack_words

Json = Mapping[str, Any]
LEAST, TIED = "<", "~"
"""Marks in matched tables: the series with the least, and those whose paired difference to it may be zero."""


def print_frontier(frontier: Frontier, console: Console | None = None) -> None:
    """Print the frontier of a run: all SAEs, matched tables and training warnings, per panel."""
    console = console or Console()
    titles = {each["name"]: each["title"] for each in frontier.data["series"]}
    print_line(
        console, f"{frontier.name}: {len(frontier.points())} SAEs, {lm_name(frontier.data['lm']['name'])}", "bold"
    )
    if frontier.note:
        print_line(console, frontier.note, "bold yellow")
    if frontier.covers:
        print_line(console, frontier.covers)
    for panel in frontier.data["panels"]:
        console.print()
        print_line(console, f"{panel['site']}, width {format_widths(panel)}", "bold")
        print_line(console, _held_out_sentence(panel, frontier.unit))
        for table in _sae_tables(panel, titles, console):
            console.print(table)
        fidelity = METRICS[panel["fidelity"]].name
        for key in _measured_metrics(panel):
            if METRICS[key].depends_on_rows:
                title = METRICS[key].title.format(unit=frontier.unit, rows=f"{panel['rows']:,}")
                print_line(console, f"{METRICS[key].short}: {title[0].lower()}{title[1:]}", "dim")
        print_line(
            console, f"*: Pareto-optimal; no SAE is clearly better in L0 or {fidelity} and as good in both", "dim"
        )
        for key, entries in panel["matched"].items():
            if entries:
                other = panel["fidelity"] if key == "l0" else "l0"
                name = METRICS[other].name
                print_heading(console, f"{name[0].upper()}{name[1:]} at matched {METRICS[key].name}")
                for table in _matched_tables(entries, titles, key, other, console):
                    console.print(table)
                print_line(console, f"{LEAST}: the least; {TIED}: the paired difference to it may be zero", "dim")
        if panel.get("targets"):
            print_heading(console, "Requested delta LM loss")
            for target in panel["targets"]:
                print_item(console, _target_sentence(target, titles))
        warnings = _training_warnings(panel, titles)
        if warnings:
            print_heading(console, "Notes")
            for warning in warnings:
                print_item(console, warning)


def print_training(frontier: Frontier, console: Console | None = None) -> None:
    """Print how far the training of every SAE is that is not evaluated; nothing if there is none."""
    console = console or Console()
    evaluated = {point["path"] for point in frontier.points()}
    waiting = [record for record in frontier.data.get("training", []) if record["path"] not in evaluated]
    panels = dict.fromkeys((record["site"], record["width"]) for record in waiting)
    titles = {each["name"]: each["title"] for each in frontier.data["series"]}
    for site, width in panels:
        console.print()
        print_line(console, f"{site}, width {width:,}: trained so far", "bold")
        members = [record for record in waiting if (record["site"], record["width"]) == (site, width)]
        table = make_table("SAE", "step", "of", "L0", "FVU")
        for record in members:
            lines = record["lines"]
            last = [format_aligned(lines[key][-1]) if lines else "-" for key in ("l0", "fvu")]
            step = f"{lines['step'][-1]:,}" if lines else "0"
            label = _point_label(record, {"points": members})
            table.add_row(Text(f"{titles[record['series']]}, {label}"), step, f"{record['steps']:,}", *last)
        console.print(table)
    if panels:
        print_line(console, "L0 and FVU: of the last logged training batches, not of held-out text", "dim")


def _held_out_sentence(panel: Json, unit: SampleUnit) -> str:
    """Return sentences on the size of the held-out text and on the loss of the LM."""
    losses = [("of the LM", "ce_clean"), ("with zero ablation", "ce_zero"), ("with mean ablation", "ce_mean")]
    known = [f"{format_number(panel[key])} {words}" for words, key in losses if panel.get(key) is not None]
    text = f"{panel['tokens']:,} held-out {unit.plural} in {panel['documents']:,} {unit.groups}."
    return text + (f" Loss: {', '.join(known)}." if known else "")


def _sae_tables(panel: Json, titles: Mapping[str, str], console: Console) -> list[Table]:
    """Return tables of all SAEs of a panel: one, or several with a part of the metrics each, to fit the console."""
    keys, tables = _measured_metrics(panel), []
    while keys:
        count = len(keys)
        while count > 1 and not _fits(_sae_table(panel, titles, keys[:count], is_first=not tables), console):
            count -= 1
        tables.append(_sae_table(panel, titles, keys[:count], is_first=not tables))
        keys = keys[count:]
    return tables


def _fits(table: Table, console: Console) -> bool:
    """Return True if no cell of a table has to be broken on this console."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width


def _sae_table(panel: Json, titles: Mapping[str, str], keys: Sequence[str], *, is_first: bool) -> Table:
    """Return a table of all SAEs of a panel, grouped by series and sorted by L0.

    titles: name of series → title. keys: the metrics shown. is_first: show the requested L0.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("setting", no_wrap=True)
    first = ["requested"] if is_first else []
    for heading in (*first, *(heading for key in keys for heading in _headings(key))):
        table.add_column(stack_words(heading), justify="right", no_wrap=True)
    for name, title in titles.items():
        points = [point for point in panel["points"] if point["series"] == name]
        if points:
            table.add_row("", Text(title, "bold"))
        for point in sorted(points, key=lambda each: each["metrics"].get("l0") or 0.0):
            values = [point["requested"]] if is_first else []
            values += [value for key in keys for value in _values(point, key)]
            table.add_row(
                "*" if point["pareto"] else "", Text(_point_label(point, panel)), *map(format_aligned, values)
            )
    return table


def _measured_metrics(panel: Json) -> list[str]:
    """Return the keys of the curve metrics that any SAE of the panel has."""
    return [key for key in curve_metrics() if any(point["metrics"].get(key) is not None for point in panel["points"])]


def _headings(key: str) -> list[str]:
    """Return the column headings of a metric; for delta LM loss also the heading of its standard error."""
    return [METRICS[key].short, "SE"] if key == "delta_lm_loss" else [METRICS[key].short]


def _values(point: Json, key: str) -> list[float | None]:
    """Return the value of a metric of an SAE; for delta LM loss also the standard error."""
    value = point["metrics"].get(key)
    return [value, point["standard_errors"].get(key)] if key == "delta_lm_loss" else [value]


def _target_sentence(target: Json, titles: Mapping[str, str]) -> str:
    """Return a sentence on the SAE that was trained for a requested loss: `TopK, 0.2: l0 = 9.1 has 0.199 …`."""
    calibration, held_out = target["calibration"], target["held_out"]
    text = f"{titles[target['series']]}, {target['delta_loss']:g}: {format_setting(target['setting'])}"
    text += " has " if target["is_reached"] else ", the closest found, has "
    if held_out is not None:
        is_interval = held_out["low"] is not None and held_out["high"] is not None
        interval = f" [{format_range(held_out['low'], held_out['high'])}]" if is_interval else ""
        text += f"{format_number(held_out['value'])}{interval} on held-out text and "
    return (
        f"{text}{format_number(calibration['value'])} +- {format_number(calibration['standard_error'])} on the "
        "calibration text that it was found with."
    )


def _training_warnings(panel: Json, titles: Mapping[str, str]) -> list[str]:
    """Return the training warnings, grouped by their words, each prefixed by the labels of the SAEs concerned."""
    groups = group_notes(
        (f"{titles[point['series']]}, {_point_label(point, panel)}", warning)
        for point in panel["points"]
        for warning in point["training_warnings"]
    )
    return [f"{join_labels(group.labels)}: {group.text}" for group in groups]


def _point_label(point: Json, panel: Json) -> str:
    """Return the label of an SAE: the sparsity setting, and the seeds that vary within the panel."""
    seeds = [(key, word) for key, word in (("sae_seed", "seed"), ("stream_seed", "stream"))]
    varied = [f"{word} {point[key]}" for key, word in seeds if len({each[key] for each in panel["points"]}) > 1]
    return ", ".join([point["label"], *varied])


def _matched_tables(
    entries: Sequence[Json], titles: Mapping[str, str], key: str, other: str, console: Console
) -> list[Table]:
    """Return tables with one row per matched value and a column per series: one, or several to fit the console.

    key: the matched metric. other: the metric in the cells.
    """
    names, tables = [row["series"] for row in entries[0]["rows"]], []
    while names:
        count = len(names)
        while count > 1 and not _fits(_matched_table(entries, titles, key, other, names[:count]), console):
            count -= 1
        tables.append(_matched_table(entries, titles, key, other, names[:count]))
        names = names[count:]
    return tables


def _matched_table(
    entries: Sequence[Json], titles: Mapping[str, str], key: str, other: str, names: Sequence[str]
) -> Table:
    """Return the table of some series at matched values."""
    table = make_table(METRICS[key].short, *(titles[name] for name in names))
    for entry in entries:
        rows = {row["series"]: row for row in entry["rows"]}
        reached = sum(row["limit"] is None for row in entry["rows"])
        cells = [_matched_cell(rows[name], other, is_compared=reached > 1) for name in names]
        table.add_row(format_number(entry["value"]), *cells)
    return table


def _matched_cell(row: Json, key: str, *, is_compared: bool) -> Text:
    """Return the cell of the metric `key` with its interval, or `above its range` / `below its range`.

    is_compared: several series reach the value; then a mark tells the least and those that may be as low.
    """
    if row["limit"]:
        return Text(f"{row['limit']} its range", "dim")
    estimate = Estimate(**row["metrics"][key])
    cell = Text(format_aligned(estimate.value))
    if estimate.low is not None and estimate.high is not None:
        cell.append(f" [{format_range(estimate.low, estimate.high)}]", "dim")
    if is_compared:
        more = row["more"].get(key)
        is_clear = more is not None and more["low"] is not None and more["low"] > 0
        cell.append(f" {LEAST if more is None else ' ' if is_clear else TIED}")
    return cell
