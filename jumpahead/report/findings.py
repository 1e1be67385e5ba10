"""What a panel's numbers say, in sentences. Every sentence is computed; none is written for one outcome.

They say which intervals overlap and stop there: two series measured on the same text may differ beyond doubt though
their intervals overlap. The page's ask box takes differences replicate by replicate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jumpahead.nouns import TEXT, Nouns
from jumpahead.report.numbers import count, exact, interval, listed, metric, percent, short
from jumpahead.report.panel import FIDELITY

Json = Mapping[str, Any]
DELTA, L0, ABOVE = "delta_lm_loss", "l0", "above_10pct"
UNITS = {DELTA: " nats per token"}
MATCHED = {DELTA: "matched_loss", "fvu": "matched_fvu"}


class Cell(NamedTuple):
    """One series' interpolated value of one metric, with its interval."""

    title: str
    value: float
    low: float
    high: float


class Finding(NamedTuple):
    """One item of the list at the head of a panel."""

    lead: str
    """What it is about, set in bold; may be empty."""
    text: str


def findings(panel: Json, titles: Mapping[str, str], nouns: Nouns = TEXT) -> list[Finding]:
    """The sentences at the head of a panel; `titles` names the series (hostile text: who prints it escapes it)."""
    by = str(panel.get("fidelity") or DELTA)
    words, unit = FIDELITY[by], UNITS.get(by, "")
    points = [point for point in panel.get("points", []) if _is_measured(point, by)]
    if not points:
        return [Finding("", "No SAE of this panel has been measured yet.")]
    found = [_extent(panel, points, titles, nouns)]
    matched = typical(panel.get("matched_l0", []))
    if matched:
        ranking = _ranking(f"{words} is lowest for {{}}", by, unit, _cells(matched, by, titles))
        found.append(Finding(f"At L0 = {exact(matched['l0'])},", ranking + _unreached(matched, titles)))
    matched = typical(panel.get(MATCHED[by], []))
    if matched:
        lead = f"At {'an' if by == 'fvu' else 'a'} {words} of {exact(matched[by])}{unit},"
        ranking = _ranking("{} needs the fewest active features", L0, nouns(" per token"), _cells(matched, L0, titles))
        found.append(Finding(lead, ranking + _unreached(matched, titles)))
        cells = _cells(matched, ABOVE, titles)
        if cells:
            found.append(_high_frequency(cells, int(panel["width"]), "loss" if by == DELTA else words, nouns))
    return found


def typical(entries: list[Json]) -> Json | None:
    """The entry of a matched table that most series reach; of several, the middle one. None below two series."""
    reached = [sum(row.get("limit") is None for row in entry["rows"]) for entry in entries]
    if not reached or max(reached) < 2:
        return None
    best = [entry for entry, n in zip(entries, reached, strict=True) if n == max(reached)]
    return best[(len(best) - 1) // 2]


def _is_measured(point: Json, by: str) -> bool:
    return all(point["metrics"].get(key) is not None for key in (by, L0))


def _extent(panel: Json, points: list[Json], titles: Mapping[str, str], nouns: Nouns) -> Finding:
    """How many SAEs, over which range, and what the LM loses without them."""
    series = list(dict.fromkeys(point["series"] for point in points))
    by = str(panel.get("fidelity") or DELTA)
    ranges = [[point["metrics"][key] for point in points] for key in (L0, by)]
    l0, reached = (f"{short(min(values))} to {short(max(values))}" for values in ranges)
    names = listed([titles[name] for name in titles if name in series])
    text = f"({names}): L0 {l0} {nouns('features per token')}, {FIDELITY[by]} {reached}{UNITS.get(by, '')}."
    clean, zero = panel.get("ce_clean"), panel.get("ce_zero")
    if clean is not None:
        text += f" The LM itself loses {short(clean)} nats per token on this text"
        text += f", and {short(zero)} with this site set to zero." if zero is not None else "."
    return Finding(f"{len(points)} SAE{'s' * (len(points) != 1)}", text)


def _cells(entry: Json, key: str, titles: Mapping[str, str]) -> list[Cell]:
    """Of the rows that reach the matched value, lowest first."""
    cells = []
    for row in entry["rows"]:
        found = row["metrics"].get(key) if row.get("limit") is None else None
        if found and all(found.get(part) is not None for part in ("value", "low", "high")):
            cells.append(Cell(titles.get(row["series"], row["series"]), found["value"], found["low"], found["high"]))
    return sorted(cells, key=lambda cell: cell.value)


def _ranking(claim: str, key: str, unit: str, cells: list[Cell]) -> str:
    """`claim` about the lowest, with its value and interval; then the others, and which intervals overlap."""
    if not cells:
        return "nothing could be interpolated."
    shown = [f"{metric(key, cell.value)} ({interval(key, cell.low, cell.high)})" for cell in cells]
    text = f"{claim.format(cells[0].title)}: {shown[0]}{unit}"
    if len(cells) == 1:
        return text + "."
    others = [f"{cell.title} {words}" for cell, words in zip(cells[1:], shown[1:], strict=True)]
    return f"{text}, then {listed(others)}. {_overlap(cells)}"


def _overlap(cells: list[Cell]) -> str:
    best, rest = cells[0], cells[1:]
    same = [cell.title for cell in rest if cell.low <= best.high]
    if not same:
        return f"The interval of {best.title} overlaps with no other."
    return f"The interval of {best.title} overlaps with {'that' if len(same) == 1 else 'those'} of {listed(same)}."


def _high_frequency(cells: list[Cell], width: int, matched: str, nouns: Nouns) -> Finding:
    """Features above 10 %, fewest first, as counts and as shares of all features."""
    words = [
        f"{cell.title} {count(cell.value)}, {percent(cell.value / width)} ({interval(ABOVE, cell.low, cell.high)})"
        for cell in cells
    ]
    text = f"of {width:,}: {'; '.join(words)}. {_overlap(cells) if len(cells) > 1 else ''}"
    return Finding(f"{nouns('Features that fire on more than 10 % of tokens')}, at that {matched},", text.rstrip())


def _unreached(entry: Json, titles: Mapping[str, str]) -> str:
    names = [titles.get(row["series"], row["series"]) for row in entry["rows"] if row.get("limit") is not None]
    return f" Outside the measured range of {listed(names)}." if names else ""
