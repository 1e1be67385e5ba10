"""Sentences on what a panel's numbers show, at the head of the panel.

They state which intervals overlap and no more: two series measured on the same text may differ clearly although their
intervals overlap. The page's question form takes differences replicate by replicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jumpahead.formatting import format_list, typeset_exact, typeset_number, typeset_percent
from jumpahead.report.panel import Json, PageContext, Panel

FREQUENT = "above_10pct"


class Cell(NamedTuple):
    """One series' interpolated value of one metric, with its interval."""

    title: str
    value: float
    low: float
    high: float


class Finding(NamedTuple):
    """One item of the list at the head of a panel."""

    lead: str
    """The subject, set in bold; may be empty."""
    text: str


def findings(panel: Panel) -> list[Finding]:
    """Return the sentences at the head of a panel. They contain untrusted text: titles of series."""
    context, fidelity = panel.context, panel.fidelity
    points = [point for point in panel.points if all(_has(point, key) for key in ("l0", fidelity))]
    if not points:
        return [Finding("", "No SAE of this panel has been measured yet.")]
    found = [_extent(panel, points)]
    name, unit = context.metrics[fidelity]["name"], _with_space(context.metrics[fidelity]["unit"])
    entry = typical_entry(panel.json["matched"]["l0"])
    if entry:
        ranking = _ranking(f"{name} is lowest for {{}}", fidelity, unit, _cells(entry, fidelity, context), context)
        found.append(Finding(f"At L0 = {typeset_exact(entry['value'])},", ranking + _outside(entry, context)))
    entry = typical_entry(panel.json["matched"][fidelity])
    if entry:
        claim, per = "{} needs the fewest active features", f" per {context.unit.singular}"
        ranking = _ranking(claim, "l0", per, _cells(entry, "l0", context), context)
        lead = f"At {name} = {typeset_exact(entry['value'])}{unit},"
        found.append(Finding(lead, ranking + _outside(entry, context)))
        cells = _cells(entry, FREQUENT, context)
        if cells:
            found.append(_frequent_features(cells, panel))
    return found


def typical_entry(entries: Sequence[Json]) -> Json | None:
    """Return the entry of a matched table that most series reach, of several the middle one; None below two series."""
    reached = [sum(row["limit"] is None for row in entry["rows"]) for entry in entries]
    if not reached or max(reached) < 2:
        return None
    best = [entry for entry, n in zip(entries, reached, strict=True) if n == max(reached)]
    return best[(len(best) - 1) // 2]


def _has(point: Json, key: str) -> bool:
    """Return True if a metric of an SAE has a value."""
    return point["metrics"].get(key) is not None


def _with_space(unit: str) -> str:
    """Return the unit after a space, or nothing."""
    return f" {unit}" if unit else ""


def _extent(panel: Panel, points: list[Json]) -> Finding:
    """Return the number of SAEs, the ranges of L0 and fidelity, and the loss of the LM."""
    context, series = panel.context, {point["series"] for point in points}
    ranges = []
    for key in ("l0", panel.fidelity):
        values = [point["metrics"][key] for point in points]
        low, high, declared = typeset_number(min(values)), typeset_number(max(values)), context.metrics[key]
        ranges.append(f"{declared['name']} {low} to {high}{_with_space(declared['unit'])}")
    names = format_list([title for name, title in context.titles.items() if name in series])
    text = f"({names}): {', '.join(ranges)}."
    clean, zero = panel.json["ce_clean"], panel.json["ce_zero"]
    if clean is not None:
        text += f" The loss of the LM on this text is {typeset_number(clean)} nats per token"
        text += f", {typeset_number(zero)} with this site set to zero." if zero is not None else "."
    return Finding(f"{len(points)} SAE{'s' * (len(points) != 1)}", text)


def _cells(entry: Json, key: str, context: PageContext) -> list[Cell]:
    """Return the values of a metric in the rows that reach the matched value, lowest first."""
    cells = []
    for row in entry["rows"]:
        found = row["metrics"].get(key) if row["limit"] is None else None
        if found and all(found[part] is not None for part in ("value", "low", "high")):
            cells.append(Cell(context.titles[row["series"]], found["value"], found["low"], found["high"]))
    return sorted(cells, key=lambda cell: cell.value)


def _ranking(claim: str, key: str, unit: str, cells: list[Cell], context: PageContext) -> str:
    """Return the claim about the lowest value with its interval, then the others, and which intervals overlap."""
    if not cells:
        return "nothing could be interpolated."
    shown = [f"{context.typeset(key, one.value)} ({context.typeset_interval(key, one.low, one.high)})" for one in cells]
    text = f"{claim.format(cells[0].title)}: {shown[0]}{unit}"
    if len(cells) == 1:
        return text + "."
    others = [f"{cell.title} {words}" for cell, words in zip(cells[1:], shown[1:], strict=True)]
    return f"{text}, then {format_list(others)}. {_overlap(cells)}"


def _overlap(cells: list[Cell]) -> str:
    """Return which intervals overlap with that of the first cell."""
    best, rest = cells[0], cells[1:]
    same = [cell.title for cell in rest if cell.low <= best.high]
    if not same:
        return f"The interval of {best.title} overlaps with no other."
    return f"The interval of {best.title} overlaps with {'that' if len(same) == 1 else 'those'} of {format_list(same)}."


def _frequent_features(cells: list[Cell], panel: Panel) -> Finding:
    """Return the features above 10 %, fewest first, as counts and as shares of all features."""
    context, width = panel.context, panel.width
    words = [
        f"{one.title} {context.typeset(FREQUENT, one.value)}, {typeset_percent(one.value / width)} "
        f"({context.typeset_interval(FREQUENT, one.low, one.high)})"
        for one in cells
    ]
    text = f"of {width:,}: {'; '.join(words)}. {_overlap(cells) if len(cells) > 1 else ''}"
    return Finding(f"{context.metrics[FREQUENT]['title']}, at that {panel.fidelity_name},", text.rstrip())


def _outside(entry: Json, context: PageContext) -> str:
    """Return the series that do not reach the matched value, as a sentence after a space."""
    titles = [context.titles[row["series"]] for row in entry["rows"] if row["limit"] is not None]
    return f" Outside the measured range of {format_list(titles)}." if titles else ""
