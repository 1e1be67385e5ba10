"""Sentences that summarise the results of a panel, shown at the top of the panel.

Series are compared by paired differences, as in the answers of the page and of `jumpahead ask`: all SAEs are measured
on the same text, so that a difference can exclude zero although the intervals of the two series overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jumpahead.formatting import (
    format_list,
    series_width,
    typeset_exact,
    typeset_interval,
    typeset_number,
    typeset_percent,
    typeset_setting,
)
from jumpahead.report.panel import Json, PageContext, Panel

FREQUENT_METRIC = "above_10pct"
"""Key of the metric that counts features firing on more than 10 % of tokens."""
LARGE_OUTLIER_VARIANCE = 0.1
"""Share of the variance held by outliers above which a finding says so, as evaluation/outliers.py does for one SAE."""


class InterpolatedValue(NamedTuple):
    """The interpolated value of one metric on the curve of one series, with its interval."""

    title: str
    """Name of the series for readers. Untrusted text."""
    width: int
    """Number of features of each SAE of the series."""
    value: float
    low: float
    high: float
    more: Json | None
    """Difference to the series with the least, {"value", "low", "high"}; None for that series."""

    @property
    def may_be_least(self) -> bool:
        """Return True if the difference to the series with the least may be zero."""
        return self.more is not None and not (self.more["low"] is not None and self.more["low"] > 0)


class Finding(NamedTuple):
    """One summary sentence of a panel, shown as a list item."""

    lead: str
    """Start of the sentence, shown in bold; may be empty."""
    text: str
    """Rest of the sentence."""


def findings(panel: Panel) -> list[Finding]:
    """Return the summary sentences of a panel. They contain untrusted text: titles of series."""
    context, fidelity = panel.context, panel.fidelity
    points = [point for point in panel.points if all(_has_value(point, key) for key in ("l0", fidelity))]
    if not points:
        return [Finding("", "No SAE of this panel has been measured yet.")]
    items = [
        _extent_finding(panel, points),
        *_target_findings(panel),
        *_loss_findings(panel),
        *_outlier_findings(points, context),
    ]
    name, unit = context.metrics[fidelity]["name"], _prefix_space(context.metrics[fidelity]["unit"])
    entry = typical_entry(panel.json["matched"]["l0"])
    if entry:
        ranking = _ranking_sentence(
            f"{name} is lowest for {{}}", fidelity, unit, _interpolated_values(entry, fidelity, panel), context
        )
        items.append(
            Finding(f"At L0 = {typeset_exact(entry['value'])},", ranking + _out_of_range_sentence(entry, context))
        )
    entry = typical_entry(panel.json["matched"][fidelity])
    if entry:
        claim, per = "{} needs the fewest active features", f" per {context.unit.singular}"
        ranking = _ranking_sentence(claim, "l0", per, _interpolated_values(entry, "l0", panel), context)
        lead = f"At {name} = {typeset_exact(entry['value'])}{unit},"
        items.append(Finding(lead, ranking + _out_of_range_sentence(entry, context)))
        cells = _interpolated_values(entry, FREQUENT_METRIC, panel)
        if cells:
            items.append(_frequent_features(cells, panel))
    return items


def typical_entry(entries: Sequence[Json]) -> Json | None:
    """Return the entry of a matched table that most series reach; None if no entry is reached by two series.

    An entry has a matched value and one row per series. If several entries are tied, return the middle one.
    """
    reached = [sum(row["limit"] is None for row in entry["rows"]) for entry in entries]
    if not reached or max(reached) < 2:
        return None
    best = [entry for entry, n in zip(entries, reached, strict=True) if n == max(reached)]
    return best[(len(best) - 1) // 2]


def _has_value(point: Json, key: str) -> bool:
    """Return True if the SAE has a value of the metric `key`."""
    return point["metrics"].get(key) is not None


def _prefix_space(unit: str) -> str:
    """Return the unit preceded by a space; an empty unit unchanged."""
    return f" {unit}" if unit else ""


def _extent_finding(panel: Panel, points: list[Json]) -> Finding:
    """Return a finding with the number of SAEs, the ranges of L0 and of the fidelity metric, and the loss of the LM."""
    context, series = panel.context, {point["series"] for point in points}
    ranges = []
    for key in ("l0", panel.fidelity):
        values = [point["metrics"][key] for point in points]
        low, high, declared = typeset_number(min(values)), typeset_number(max(values)), context.metrics[key]
        ranges.append(f"{declared['name']} {low} to {high}{_prefix_space(declared['unit'])}")
    names = format_list([title for name, title in context.titles.items() if name in series])
    text = f"({names}): {', '.join(ranges)}."
    clean, zero = panel.json["ce_clean"], panel.json["ce_zero"]
    if clean is not None:
        text += f" The loss of the LM on this text is {typeset_number(clean)} nats per token"
        text += f", {typeset_number(zero)} with this site set to zero." if zero is not None else "."
    return Finding(f"{len(points)} SAE{'s' * (len(points) != 1)}", text)


def _interpolated_values(entry: Json, key: str, panel: Panel) -> list[InterpolatedValue]:
    """Return the values of the metric `key` for all series that reach the matched value, sorted by value."""
    titles = panel.context.titles
    cells = []
    for row in entry["rows"]:
        estimate = row["metrics"].get(key) if row["limit"] is None else None
        if estimate and all(estimate[part] is not None for part in ("value", "low", "high")):
            title, more = titles[row["series"]], (row.get("more") or {}).get(key)
            bounds = (estimate["value"], estimate["low"], estimate["high"])
            cells.append(InterpolatedValue(title, series_width(panel.json, row["series"]), *bounds, more))
    return sorted(cells, key=lambda cell: cell.value)


def _ranking_sentence(claim: str, key: str, unit: str, cells: list[InterpolatedValue], context: PageContext) -> str:
    """Return a sentence that ranks series by a metric, with intervals, and the paired differences to the first.

    claim: the start of the sentence; `{}` is replaced by the title of the first series. key: key of the metric.
    unit: appended to the first value. cells: the values, sorted.
    """
    if not cells:
        return "nothing could be interpolated."
    first = cells[0]
    interval = context.typeset_interval(key, first.low, first.high)
    text = f"{claim.format(first.title)}: {context.typeset(key, first.value)} ({interval}){unit}."
    return f"{text} {_difference_sentences(cells, key, context)}".rstrip()


def _difference_sentences(cells: list[InterpolatedValue], key: str, context: PageContext) -> str:
    """Return sentences on the paired differences to the first series: those that exclude zero, then the others."""
    clear = [f"{cell.title} has {_format_more(cell, key, context)} more" for cell in cells[1:] if not cell.may_be_least]
    unclear = [f"{cell.title} has {_format_more(cell, key, context)} more" for cell in cells[1:] if cell.may_be_least]
    sentences = [f"{format_list(clear)}."] if clear else []
    if unclear:
        sentences.append(f"The difference to {cells[0].title} may be zero: {format_list(unclear)}.")
    return " ".join(sentences)


def _format_more(cell: InterpolatedValue, key: str, context: PageContext) -> str:
    """Return the paired difference of a series with its interval: `1.79 (−0.976 to 4.79)`."""
    if cell.more is None:
        return "no difference"
    amount, interval = context.typeset(key, cell.more["value"]), context.typeset_interval(
        key, cell.more["low"], cell.more["high"]
    )  # fmt: skip
    return f"{amount} ({interval})" if interval else amount


def _target_findings(panel: Panel) -> list[Finding]:
    """Return a finding per requested delta LM loss: the SAE that was trained for it, and its loss on either text."""
    return [
        Finding(f"{panel.context.titles[target['series']]} with delta LM loss {target['delta_loss']:g}:",
                target_text(target))
        for target in panel.json.get("targets", [])
    ]  # fmt: skip


def target_text(target: Json) -> str:
    """Return the SAE that was trained for a requested delta LM loss, with its loss on calibration and held-out text."""
    calibration, held_out = target["calibration"], target["held_out"]
    is_closest = "" if target["is_reached"] else ", the closest found,"
    text = f"{typeset_setting(target['setting'])}{is_closest} has "
    if held_out is not None:
        interval = typeset_interval("number", held_out["low"], held_out["high"])
        text += f"{typeset_number(held_out['value'])}{f' ({interval})' if interval else ''} on held-out text and "
    error = typeset_number(calibration["standard_error"])
    return f"{text}{typeset_number(calibration['value'])} ± {error} on the calibration text that it was found with."


def _loss_findings(panel: Panel) -> list[Finding]:
    """Return a finding if delta LM loss was measured and compares nothing here."""
    clean, zero = panel.json["ce_clean"], panel.json["ce_zero"]
    if panel.fidelity == "delta_lm_loss" or clean is None or zero is None:
        return []
    text = (
        f"setting it to zero changes the loss by {typeset_number(zero - clean)} nats per token, within the error of "
        f"the measurement. SAEs are compared by {panel.fidelity_name}."
    )
    return [Finding("The loss does not depend on this site:", text)]


def _outlier_findings(points: list[Json], context: PageContext) -> list[Finding]:
    """Return a finding if outliers hold much of the variance of the held-out activations."""
    shares = [point["metrics"].get("outlier_variance") for point in points]
    largest = max((share for share in shares if share is not None), default=0.0)
    if largest <= LARGE_OUTLIER_VARIANCE or "fvu_ordinary" not in context.metrics:
        return []
    values = [point["metrics"]["fvu_ordinary"] for point in points if _has_value(point, "fvu_ordinary")]
    held = f"hold {typeset_percent(largest)} of the variance."
    text = f"of few {context.unit.plural}, beyond 10 times the median norm, {held}"
    if values:
        text += (
            f" Judge by FVU without outliers, {typeset_number(min(values))} to {typeset_number(max(values))}; it is a "
            "column of the table of all SAEs."
        )
    return [Finding("Outliers:", f"the activations {text}")]


def _frequent_features(cells: list[InterpolatedValue], panel: Panel) -> Finding:
    """Return a finding on the numbers of features that fire on more than 10 % of tokens, as counts and shares."""
    context, width = panel.context, panel.json["width"]
    words = [
        f"{cell.title} {context.typeset(FREQUENT_METRIC, cell.value)}, {typeset_percent(cell.value / cell.width)} "
        f"({context.typeset_interval(FREQUENT_METRIC, cell.low, cell.high)})"
        for cell in cells
    ]
    whole = "" if width is None else f"of {width:,}: "
    text = f"{whole}{'; '.join(words)}. {_difference_sentences(cells, FREQUENT_METRIC, context)}"
    return Finding(f"{context.metrics[FREQUENT_METRIC]['title']}, at that {panel.fidelity_name},", text.rstrip())


def _out_of_range_sentence(entry: Json, context: PageContext) -> str:
    """Return a sentence, preceded by a space, that lists the series not reaching the matched value; may be empty."""
    titles = [context.titles[row["series"]] for row in entry["rows"] if row["limit"] is not None]
    return f" Outside the measured range of {format_list(titles)}." if titles else ""
