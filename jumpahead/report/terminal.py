"""The frontier, its answers and what a step costs, in the terminal: at 80 columns, plain ASCII, the same when piped.

A number stands above its interval. rich only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jumpahead.frontier import Answer, Crossing, Estimate, Frontier, PanelAnswer, SeriesAnswer
from jumpahead.frontier.frontier import fidelity
from jumpahead.frontier.words import FIDELITY, a_fidelity, amount, bare, between, digits, number, percent, setting_label
from jumpahead.nouns import Nouns

COLUMNS = {
    "delta_lm_loss": "delta loss",
    "l0": "L0",
    "fvu": "FVU",
    "above_10pct": ">10%",
    "above_1pct": ">1%",
    "dead": "dead",
}
"""What is told of every SAE, and the heading of its column."""
SHARES = {"above_10pct": "share_above_10pct", "above_1pct": "share_above_1pct"}
"""Counts below which `answer` shows the share of the width."""


# ---------------------------------------------------------------------------------------------- jumpahead ask


def answer(found: Answer, console: Console | None = None) -> None:
    """Prints the answer to a question: per panel a table, the nearest trained SAEs, and what to train."""
    console = console or Console()
    _line(console, found.question, "bold")
    _line(console, f"Run {found.run}, {_lm(found.lm)}. {_covers(found)}")
    for panel in found.panels:
        console.print()
        _panel(console, found, panel)


def _panel(console: Console, found: Answer, panel: PanelAnswer) -> None:
    _line(console, f"{panel.site}, width {panel.width:,}", "bold")
    inside = [(series, crossing) for series in panel.series for crossing in series.crossings]
    if inside:
        console.print(_answers(found, panel, inside))
        _line(console, found.nouns(">10%, >1%: features active on more than that share of tokens"), "dim")
        _heading(console, "Nearest trained SAE")
        for series, crossing in inside:
            near = crossing.nearest
            where = f"L0 {number(near['l0'])}, {amount(panel.fidelity, near[panel.fidelity])}"
            _item(console, f"{series.title}, {near['label']}: {where}", near["path"])
    outside = [series for series in panel.series if not series.crossings]
    if outside:
        _heading(console, "Out of range")
        for series in outside:
            _item(console, _outside(found, series, panel.fidelity), series.end.nearest["path"] if series.end else None)
    notes = _notes(panel)
    if notes:
        _heading(console, "Note")
        for note in notes:
            _item(console, note)
    best = panel.recommendation
    what = f"{best.series}, {setting_label(best.setting)}" if best.series and best.setting else "none"
    console.print()
    console.print(Text.assemble((f"Recommended: {what}.", "bold"), f" {_tight(best.reason)}"))


def _answers(found: Answer, panel: PanelAnswer, rows: list[tuple[SeriesAnswer, Crossing]]) -> Table:
    """One row per crossing; below each number its interval, and for counts their share."""
    hidden = {found.target.removeprefix("share_")} | ({"delta_lm_loss"} if panel.fidelity == "fvu" else set())
    shown = [key for key in COLUMNS if key not in hidden]
    table = _table("series", *(COLUMNS[key] for key in shown), last="train with")
    for series, crossing in rows:
        style = "bold" if series.series == panel.recommendation.series else ""
        cells = [_cell(crossing.metrics, key) for key in shown]
        table.add_row(Text(series.title, style), *cells, Text(crossing.label, style))
    return table


def _cell(metrics: Mapping[str, Estimate], key: str) -> Text:
    found = metrics[key]
    cell = Text(digits(found.value))
    if key in SHARES:
        cell.append(f"\n{_tight(percent(metrics[SHARES[key]].value))}")
    if found.low is not None and found.high is not None:
        cell.append(f"\n{between(found.low, found.high)}", "dim")
    return cell


def _outside(found: Answer, series: SeriesAnswer, compared: str) -> str:
    low, high = (bare(found.target, bound) for bound in series.measured)
    text = f"{series.title}: {amount(found.target, found.value)} is {series.reach} what was measured"
    text += f", {low}." if low == high else f", {low} to {high}."
    if series.end is None:
        return text
    metrics = series.end.metrics
    facts = [amount(compared, metrics[compared].value), f"L0 {number(metrics['l0'].value)}"]
    facts.append(f"{number(metrics['above_10pct'].value)} features above 10 %")
    return f"{text} Its nearest end, {series.end.nearest['label']}, has {', '.join(facts)}."


def _notes(panel: PanelAnswer) -> list[str]:
    """Every series' own notes and those of its crossings, each once."""
    notes = []
    for series in panel.series:
        found = [*series.notes, *(note for crossing in series.crossings for note in crossing.notes)]
        notes += [f"{series.title}: {note}." for note in dict.fromkeys(found)]
    return notes


def _covers(found: Answer) -> str:
    """The sentence of the frontier, and the series whose intervals cover more than it says."""
    titles = {(each.title, each.covers) for panel in found.panels for each in panel.series}
    seeded = sorted(title for title, covers in titles if covers == "text and seeds")
    if not seeded or len(seeded) == len(titles):
        return found.covers
    return f"{found.covers} Those of {', '.join(seeded)} cover seeds too."


# ---------------------------------------------------------------------------------------------- jumpahead show


def show(frontier: Frontier, console: Console | None = None) -> None:
    """Prints the frontier: per panel every SAE, and what each series has at matched L0 and at matched loss."""
    console = console or Console()
    series, titles = frontier.data["series"], {}
    for each in series:
        titles[each["name"]] = each.get("title") or each["name"]
    _line(console, f"{frontier.name}: {len(frontier.points())} SAEs, {_lm(frontier.data['lm']['name'])}", "bold")
    _line(console, frontier.covers)
    for panel in frontier.data["panels"]:
        console.print()
        _line(console, f"{panel['site']}, width {panel['width']:,}", "bold")
        _line(console, _measured_on(panel, frontier.nouns))
        console.print(_points(panel, titles))
        compared = FIDELITY[fidelity(panel)]
        both = f"an L0 and {a_fidelity(fidelity(panel))}"
        _line(console, f"*: no SAE of this panel has {both} that are both as small", "dim")
        headings = {"matched_l0": f"{compared[0].upper()}{compared[1:]} at matched L0"}
        headings |= {"matched_loss": "L0 at matched loss", "matched_fvu": "L0 at matched FVU"}
        for key, heading in headings.items():
            if panel.get(key):
                _heading(console, heading)
                for table in _matched(panel[key], titles, fidelity(panel)):
                    console.print(table)
        verdicts = _verdicts(panel, titles)
        if verdicts:
            _heading(console, "What went wrong in training")
            for verdict in verdicts:
                _item(console, verdict)


def _lm(name: str | None) -> str:
    return f"LM {name}" if name else "no LM"


def _measured_on(panel: Mapping[str, Any], nouns: Nouns) -> str:
    losses = [("of the LM", "ce_clean"), ("zeroed", "ce_zero"), ("set to its mean", "ce_mean")]
    known = [f"{number(panel[key])} {word}" for word, key in losses if panel.get(key) is not None]
    text = nouns(f"{panel['tokens']:,} held-out tokens in {panel['documents']:,} documents.")
    return text + (f" Loss: {', '.join(known)}." if known else "")


def _points(panel: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """Every SAE below its series, by increasing L0."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("setting", no_wrap=True)
    has_loss = fidelity(panel) == "delta_lm_loss"
    loss = ["delta loss", "SE"] if has_loss else []
    for heading in ("asked", "L0", *loss, "FVU", ">10%", ">1%", "dead"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, title in titles.items():
        points = [point for point in panel["points"] if point["series"] == name]
        if points:
            table.add_row("", Text(title, "bold"))
        for point in sorted(points, key=lambda each: each["metrics"].get("l0") or 0.0):
            metrics, error = point["metrics"], point["standard_errors"].get("delta_lm_loss")
            values = [point.get("asked"), metrics.get("l0")]
            values += [metrics.get("delta_lm_loss"), error] if has_loss else []
            values += [metrics.get(key) for key in ("fvu", "above_10pct", "above_1pct", "dead")]
            table.add_row("*" if point["pareto"] else "", Text(_label(point, panel)), *map(digits, values))
    return table


def _verdicts(panel: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    """Each sentence once, after the SAEs that it is about."""
    about: dict[str, list[str]] = {}
    for point in panel["points"]:
        name = f"{titles.get(point['series'], point['series'])}, {_label(point, panel)}"
        for verdict in point.get("verdicts") or []:
            about.setdefault(verdict, []).append(name)
    return [f"{'; '.join(who)}: {verdict}" for verdict, who in about.items()]


def _label(point: Mapping[str, Any], panel: Mapping[str, Any]) -> str:
    """Its setting, and its seeds where they differ within the panel."""
    seeds = [(key, word) for key, word in (("sae_seed", "seed"), ("stream_seed", "stream"))]
    varied = [f"{word} {point[key]}" for key, word in seeds if len({each[key] for each in panel["points"]}) > 1]
    return ", ".join([point["label"], *varied])


def _matched(
    tables: Sequence[Mapping[str, Any]], titles: Mapping[str, str], compared: str, at_once: int = 3
) -> Iterable[Table]:
    """Rows are the matched values, columns the series, three at once so that they fit."""
    key, other = ("l0", compared) if "l0" in tables[0] else (compared, "l0")
    names = [row["series"] for row in tables[0]["rows"]]
    for start in range(0, len(names), at_once):
        columns = names[start : start + at_once]
        table = _table(COLUMNS[key], *(titles.get(name, name) for name in columns))
        for each in tables:
            rows = {row["series"]: row for row in each["rows"]}
            table.add_row(number(each[key]), *(_matched_cell(rows[name], other) for name in columns))
        yield table


def _matched_cell(row: Mapping[str, Any], key: str) -> Text:
    if row["limit"]:
        return Text(f"{row['limit']} its range", "dim")
    found = Estimate(**row["metrics"][key])
    cell = Text(digits(found.value))
    if found.low is not None and found.high is not None:
        cell.append(f" [{between(found.low, found.high)}]", "dim")
    return cell


# ---------------------------------------------------------------------------------------------- jumpahead efficiency


def efficiency(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints efficiency.json: per shape what a step costs, where its time goes, and how that was measured."""
    console = console or Console()
    hardware = found["hardware"]
    machine = hardware.get("processor") or hardware.get("machine") or "this machine"
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    _line(console, f"What a training step costs: {threads}, {machine}", "bold")
    why = f" ({found['kernels_why'].replace('×', 'x')})" if found["kernels_why"] else ""
    _line(console, f"Kernels: {found['kernels']}{why}.")
    for shape in found["shapes"]:
        console.print()
        _line(console, shape["label"], "bold")
        _line(console, _floor(shape))
        console.print(_costs(found, shape))
        for sentence in _compared(found, shape):
            _item(console, sentence)
        _heading(console, "Where the time goes, ms")
        console.print(_times(found, shape))
    legend = [f"{stage['short']}: {stage['title']}" for stage in found["stages"] if stage["short"] != stage["title"]]
    console.print()
    _line(console, "; ".join([*legend, "sum: of these; step: one without clocks inside"]), "dim")
    for note in found["notes"]:
        _line(console, note, "dim")


def _floor(shape: Mapping[str, Any]) -> str:
    """The products, fastest first, and the bandwidth."""
    found = shape["floor"]
    products = [f"{one['name']} {number(one['ms'])} ms ({number(one['gflops'])} GFLOP/s)" for one in found["products"]]
    copied = number(found["copy_bytes_per_s"] / 1e9)
    return f"Floor: one encoder product, {'; '.join(products)}. A copy moves {copied} GB/s."


def _costs(found: Mapping[str, Any], shape: Mapping[str, Any]) -> Table:
    """One row per method below its architecture, with every measure."""
    measures = found["measures"]
    table = _table("", *(f"{one['short']}\n{one['unit']}".rstrip() for one in measures))
    for architecture, rows in _measured_rows(shape):
        table.add_row(Text(architecture, "bold"))
        for row in rows:
            values = [row.get(one["key"]) for one in measures]
            cells = ["" if v is None else digits(v * one["scale"]) for v, one in zip(values, measures, strict=True)]
            table.add_row(f"  {_method(found, row)['short']}", *cells)
    return table


def _times(found: Mapping[str, Any], shape: Mapping[str, Any]) -> Table:
    """One row per method below its architecture: the stages, their sum, and the step."""
    stages = found["stages"]
    table = _table("", *(stage["short"] for stage in stages), "sum", "step", gap=1)
    for architecture, rows in _measured_rows(shape):
        table.add_row(Text(architecture, "bold"))
        for row in rows:
            cells = [digits(row["stages"][stage["key"]]) if stage["key"] in row["stages"] else "" for stage in stages]
            table.add_row(f"  {_method(found, row)['short']}", *cells, digits(row["stages_ms"]), digits(row["ms"]))
    return table


def _compared(found: Mapping[str, Any], shape: Mapping[str, Any]) -> list[str]:
    """A sentence per architecture: the first method against the floor, the others against it; and what was skipped."""
    sentences = []
    for architecture, (first, *others) in _measured_rows(shape):
        words = f"{architecture}: {number(first['ms'] / first['floor_ms'])} x the floor."
        for row in others:
            title = _method(found, row)["title"]
            words += f" {title[0].upper()}{title[1:]}: {number(row['ms'] / first['ms'])} x as long"
            words += "." if row["recall"] is None else f", finds {percent(row['recall'])} of the exact top-k."
        sentences.append(words)
    skipped = [row for row in shape["rows"] if row["skipped"]]
    return sentences + [f"{row['title']}, {_method(found, row)['title']}: {row['skipped']}." for row in skipped]


def _measured_rows(shape: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The rows that hold numbers, by the title of their architecture."""
    titles = dict.fromkeys(row["title"] for row in shape["rows"] if row["ms"] is not None)
    return [(title, [row for row in shape["rows"] if row["title"] == title and row["ms"]]) for title in titles]


def _method(found: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(one for one in found["methods"] if one["key"] == row["method"])


# ---------------------------------------------------------------------------------------------- pieces


def _table(first: str, *headings: str, last: str | None = None, gap: int = 2) -> Table:
    """No box, `gap` spaces between columns; numbers to the right, the first and last column to the left."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    if last is not None:
        table.add_column(last, overflow="fold")
    return table


def _tight(text: str) -> str:
    """`0.06%` for `0.06 %`: as one types it, and never broken over two lines."""
    return text.replace(" %", "%")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(_tight(text), style))


def _heading(console: Console, text: str) -> None:
    console.print()
    _line(console, text, "bold")


def _item(console: Console, text: str, path: str | None = None) -> None:
    """An indented sentence, and a path on a line of its own, never broken, so that it can be copied."""
    console.print(Padding(Text(_tight(text)), (0, 0, 0, 2)))
    if path:
        console.print(Text(f"    {path}"), soft_wrap=True)
