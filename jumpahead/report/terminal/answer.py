"""Terminal output of `jumpahead ask`: per panel a table, the nearest trained SAEs, and the recommendation."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumpahead.formatting import format_aligned, format_number, format_percent, format_range, format_setting
from jumpahead.frontier import Answer, Crossing, Estimate, PanelAnswer, SeriesAnswer
from jumpahead.metrics import METRICS, count_key_by_share, curve_metrics, format_value, format_with_name
from jumpahead.report.terminal.layout import (
    compact_percent,
    lm_name,
    make_table,
    print_heading,
    print_item,
    print_line,
    stack_words,
)


def print_answer(answer: Answer, console: Console | None = None) -> None:
    """Print the answer to a query of the frontier."""
    console = console or Console()
    print_line(console, answer.question, "bold")
    print_line(console, f"Run {answer.run}, {lm_name(answer.lm)}. {_coverage_sentence(answer)}")
    for panel in answer.panels:
        console.print()
        _print_panel(console, answer, panel)


def _print_panel(console: Console, answer: Answer, panel: PanelAnswer) -> None:
    """Print the answer for one panel: one site and width."""
    print_line(console, panel.site if panel.width is None else f"{panel.site}, width {panel.width:,}", "bold")
    inside = [(series, crossing) for series in panel.series for crossing in series.crossings]
    if inside:
        shown = _metrics_shown(answer, inside)
        console.print(_answer_table(panel, shown, inside))
        print_line(console, _legend(answer, shown), "dim")
        print_heading(console, "Nearest trained SAE")
        for series, crossing in inside:
            near = crossing.nearest
            values = f"L0 {format_number(near['l0'])}, {format_with_name(panel.fidelity, near[panel.fidelity])}"
            print_item(console, f"{series.title}, {near['label']}: {values}", near["path"])
    outside = [series for series in panel.series if not series.crossings]
    if outside:
        print_heading(console, "Out of range")
        for series in outside:
            print_item(
                console,
                _out_of_range_sentence(answer, series, panel.fidelity),
                series.end.nearest["path"] if series.end else None,
            )
    notes = _notes(panel)
    if notes:
        print_heading(console, "Notes")
        for note in notes:
            print_item(console, note)
    best = panel.recommendation
    recommended = f"{best.series}, {format_setting(best.setting)}" if best.series and best.setting else "none"
    console.print()
    console.print(Text.assemble((f"Recommended: {recommended}.", "bold"), f" {compact_percent(best.reason)}"))


def _metrics_shown(answer: Answer, rows: list[tuple[SeriesAnswer, Crossing]]) -> list[str]:
    """Return the keys of the curve metrics to show: all that have a value at any crossing, without the target."""
    target = count_key_by_share().get(answer.target, answer.target)
    return [
        key
        for key in curve_metrics()
        if key != target and any(crossing.metrics[key].value is not None for _, crossing in rows)
    ]


def _answer_table(panel: PanelAnswer, shown: list[str], rows: list[tuple[SeriesAnswer, Crossing]]) -> Table:
    """Return a table with one row per crossing. shown: keys of the metrics. rows: series with their crossings."""
    table = make_table("series", *(stack_words(METRICS[key].short) for key in shown), last="train with")
    for series, crossing in rows:
        style = "bold" if series.series == panel.recommendation.series else ""
        cells = [_metric_cell(crossing.metrics, key) for key in shown]
        table.add_row(Text(series.title, style), *cells, Text(crossing.label, style))
    return table


def _metric_cell(metrics: Mapping[str, Estimate], key: str) -> Text:
    """Return the cell of a metric, one line each: value, share of all features (only for counts), interval."""
    estimate = metrics[key]
    cell = Text(format_aligned(estimate.value))
    for share in [share for share, count in count_key_by_share().items() if count == key]:
        cell.append(f"\n{compact_percent(format_percent(metrics[share].value))}")
    if estimate.low is not None and estimate.high is not None:
        cell.append(f"\n{format_range(estimate.low, estimate.high)}", "dim")
    return cell


def _legend(answer: Answer, shown: list[str]) -> str:
    """Return explanations of the counts in the table: `>10 %: features active on more than 10 % of tokens`."""
    texts = []
    for key in shown:
        metric = METRICS[key]
        if metric.format == "count":
            title = metric.title.format(unit=answer.unit, rows=f"{answer.rows:,}")
            texts.append(f"{metric.short}: {title[0].lower()}{title[1:]}")
    return "; ".join(texts)


def _out_of_range_sentence(answer: Answer, series: SeriesAnswer, fidelity: str) -> str:
    """Return sentences on the measured range of a series and on the end of the curve nearest to the target."""
    low, high = (format_value(answer.target, bound) for bound in series.measured)
    target = format_with_name(answer.target, answer.value, answer.sample)
    text = f"{series.title}: {target} is {series.reach} the measured range, "
    text += f"{low}." if low == high else f"{low} to {high}."
    if series.end is None:
        return text
    metrics = series.end.metrics
    facts = [format_with_name(key, metrics[key].value) for key in (fidelity, "l0")]
    return f"{text} Its nearest end, {series.end.nearest['label']}, has {' and '.join(facts)}."


def _notes(panel: PanelAnswer) -> list[str]:
    """Return the distinct notes on each series and on its crossings, prefixed by the title of the series."""
    notes = []
    for series in panel.series:
        series_notes = [*series.notes, *(note for crossing in series.crossings for note in crossing.notes)]
        notes += [f"{series.title}: {note}." for note in dict.fromkeys(series_notes)]
    return notes


def _coverage_sentence(answer: Answer) -> str:
    """Return sentences on the variation that intervals cover; they name series whose intervals also cover seeds."""
    titles = {(each.title, each.covers) for panel in answer.panels for each in panel.series}
    seeded = sorted(title for title, covers in titles if covers == "text and seeds")
    if not seeded or len(seeded) == len(titles):
        return answer.covers
    return f"{answer.covers} Those of {', '.join(seeded)} cover seeds too."
