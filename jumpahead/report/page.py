"""frontier.json (and efficiency.json) → one HTML file: what each part of the template shows, as plain values.

Everything from the run is hostile text. `harmless` makes misleading characters visible, the template escapes the rest,
and the page's script only ever sets text.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup

from jumpahead.nouns import Nouns
from jumpahead.report import assets
from jumpahead.report import efficiency as costs
from jumpahead.report.findings import findings, typical
from jumpahead.report.numbers import MISSING, NBSP, count, exact, harmless
from jumpahead.report.panel import FIDELITY, Json, Names, Panel
from jumpahead.report.series_style import DASHES, SYMBOLS, looks
from jumpahead.report.tables import DIRECTIONS, cells, columns, health_table, matched_tables

TARGETS = {  # what one may ask for
    "delta_lm_loss": "delta LM loss",
    "l0": "L0",
    "fvu": "FVU",
    "above_10pct": "features above 10 %",
    "above_1pct": "features above 1 %",
}
DIGITS = 8  # of a bootstrap replicate in the page: far below what any interval means, half the bytes
ALT = {
    "loss": "Delta LM loss against L0, one curve per series",
    "fvu": "Fraction of variance unexplained against L0, one curve per series",
    "above_10pct": "Share of features firing on more than 10 % of tokens, against {by}, one curve per series",
    "above_1pct": "Share of features firing on more than 1 % of tokens, against {by}, one curve per series",
    "histogram": "Histogram of feature frequencies",
}


def html(frontier: Json, efficiency: Json | None = None) -> str:
    """The page, whole: a function of its arguments and the installed plotly alone.

    frontier: schema jumpahead.frontier/1; efficiency: schema jumpahead.efficiency/1, where it was measured.
    """
    frontier, efficiency = harmless(frontier), harmless(efficiency)
    found = looks(_all_series(frontier))
    nouns = Nouns.of(frontier)
    names = Names(
        series={look.name: i for i, look in enumerate(found)},
        titles={look.name: look.title for look in found},
        metrics={one["key"]: one for one in frontier["metrics"]},
        level=f"{100 * frontier['interval']['level']:g}{NBSP}%",
        health=frontier.get("health") or [],
        nouns=nouns,
    )
    panels = [Panel(panel, i + 1, names) for i, panel in enumerate(frontier["panels"])]
    colours = {f"series-{i}": (look.paper, look.screen) for i, look in enumerate(found)}
    if efficiency is not None:
        colours |= {f"stage-{i}": pair for i, pair in enumerate(costs.colours(efficiency))}
    style, script = assets.text("page.css") + _custom_properties(colours), assets.script()
    return _template().render(
        name=frontier.get("name") or "A run",
        nouns=nouns,
        about=_about(frontier, nouns),
        policy=assets.policy(script, style),
        css=Markup(style),  # ours: all that it has from the run are checked colours
        script=Markup(script),
        plotly=Markup(assets.plotly().packed),
        taken_ids=assets.plotly().taken_ids,
        looks=[{**look._asdict(), "path": SYMBOLS[look.symbol], "stroke": DASHES[look.dash]} for look in found],
        panels=[_panel(panel) for panel in panels],
        intervals=[nouns(text) for text in _intervals(frontier["interval"], panels, names.level)],
        metrics=[{**one, "direction": DIRECTIONS.get(one["better"], MISSING)} for one in frontier["metrics"]],
        sources=_sources(frontier),
        efficiency=None if efficiency is None else costs.section(efficiency),
        data={
            "series": [{"title": look.title, "dash": look.dash, "symbol": look.symbol} for look in found],
            "metrics": names.metrics,
            "token": nouns("token"),
            "level": frontier["interval"]["level"],
            "panels": [_for_script(panel) for panel in panels],
            "efficiency": None if efficiency is None else costs.for_script(efficiency),
        },
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(assets.text("page.html.jinja"))


def _all_series(frontier: Json) -> list[Json]:
    """Those declared, and any that only a point knows."""
    declared = list(frontier["series"])
    known = {one["name"] for one in declared}
    used = dict.fromkeys(point["series"] for panel in frontier["panels"] for point in panel["points"])
    return declared + [{"name": name, "order": 1000} for name in used if name not in known]


def _custom_properties(colours: dict[str, tuple[str, str]]) -> str:
    """One custom property per colour, for paper and for a dark screen."""
    paper = "".join(f"--{name}:{paper};" for name, (paper, _) in colours.items())
    screen = "".join(f"--{name}:{screen};" for name, (_, screen) in colours.items())
    return f":root{{{paper}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{screen}}}}}\n"


# ---------------------------------------------------------------------------------------------- words


def _about(frontier: Json, nouns: Nouns) -> list[str]:
    """What was measured on what, and when."""
    text, n = frontier.get("text") or {}, sum(len(panel["points"]) for panel in frontier["panels"])
    lm, has_lm = frontier.get("lm") or {}, not nouns.of_rows
    parts = [f"{n} sparse autoencoder{'s' * (n != 1)}", f"LM: {lm.get('name') or 'not named'}" if has_lm else "no LM"]
    if text.get("source"):
        parts.append(f"text: {text['source']}" if has_lm else text["source"])
    if text.get("train_tokens"):
        parts.append(f"{count(text['train_tokens'])} {nouns('training tokens')}")
    if text.get("held_out_tokens"):
        parts.append(f"{count(text['held_out_tokens'])} {nouns('held-out tokens')}")
    if frontier.get("created"):
        parts.append(_moment(str(frontier["created"])))
    return parts


def _moment(text: str) -> str:
    """`2026-11-22 07:47 UTC`; a time that is none stays as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _intervals(declared: Json, panels: list[Panel], level: str) -> list[str]:
    """What the ranges in the page are, and what they do not cover."""
    if not declared.get("replicates"):
        return ["There are no intervals: the evaluations hold no resamples."]
    covers_seeds = "seeds" in str(declared.get("covers"))
    drawn = "Held-out documents and the SAEs’ seeds" if covers_seeds else "Held-out documents"
    if covers_seeds:
        extent = "They cover the choice of held-out text and, as far as this run’s seeds show it, of the seed."
    else:
        once = all(alone for panel in panels for alone in panel.alone)
        extent = (
            "They cover the choice of held-out text only: "
            f"{'each SAE was trained once' if once else 'not every setting was trained with several seeds'}, so they "
            "do not say what another initialisation or another order of the training data would change."
        )
    return [
        f"Ranges in this page are {level} intervals from {count(declared['replicates'])} bootstrap replicates. {drawn} "
        "are drawn again with replacement, the same draw for every SAE, and every curve is interpolated again in each.",
        extent,
        "All SAEs are measured on the same text, so the difference of two series is known better than each of them: "
        "their intervals may overlap though the difference excludes zero. The answer to a question asked above gives "
        "that difference, taken replicate by replicate.",
    ]


def _marks(level: str, by: str) -> str:
    return (
        f"Bars are {level} intervals. Filled marks are Pareto-optimal: no other SAE of the panel has both a lower L0 "
        f"and a lower {by}; hollow marks are not. Point at a mark for its setting, seed, path and numbers; "
        "choose it to mark that SAE everywhere. The dotted line is the value asked for above."
    )


def _sources(frontier: Json) -> list[tuple[str, str]]:
    """Title and text of what the run was made from."""
    study, manifest = frontier.get("study"), frontier.get("manifest")
    pretty = json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else ""
    named = [("Resolved study", str(study or "")), ("Manifest: versions, hardware, seeds, digests of inputs", pretty)]
    return [(title, text) for title, text in named if text]


# ---------------------------------------------------------------------------------------------- panels


def _panel(panel: Panel) -> dict[str, Any]:
    """What the template shows of a panel."""
    width, d, by = panel.width, panel.json.get("d"), FIDELITY[panel.fidelity]
    return {
        "fidelity": by,
        "has_loss": panel.fidelity == "delta_lm_loss",
        "marks": _marks(panel.names.level, by),
        "targets": [
            {"key": key, "words": words}
            for key, words in TARGETS.items()
            if key in panel.names.metrics and (key != "delta_lm_loss" or panel.fidelity == key)
        ],
        "id": f"panel-{panel.number}",
        "title": f"{panel.json['site']}, {width:,} features",
        "subtitle": f"{exact(round(width / d, 2))} × the activation’s width of {d:,}" if d else "",
        "width_text": f"{width:,}",
        "findings": findings(panel.json, panel.names.titles, panel.names.nouns),
        "series": sorted({panel.series_of(point) for point in panel.points}),
        "alt": {
            kind: f"{panel.names.nouns(text).format(by=by)}; the numbers are in the table of all SAEs below."
            for kind, text in ALT.items()
        },
        "matched": matched_tables(panel),
        "columns": columns(panel.names),
        "points": [
            {"series": panel.series_of(point), "name": name, "rank": i, "cells": cells(point, panel.names)}
            for i, (point, name) in enumerate(zip(panel.points, panel.called, strict=True))
        ],
        "health": health_table(panel),
        "histograms": _histograms(panel),
        "notes": _notes(panel),
    }


def _notes(panel: Panel) -> list[dict[str, str]]:
    """Each sentence once, with the SAEs that it is about."""
    about: dict[str, list[str]] = defaultdict(list)
    for point, name in zip(panel.points, panel.called, strict=True):
        for note in point.get("notes") or []:
            about[str(note)].append(name)
    everyone = len(panel.points)
    return [
        {"text": text, "who": "every SAE of this panel" if len(who) == everyone > 1 else "; ".join(who)}
        for text, who in about.items()
    ]


def _histograms(panel: Panel) -> list[dict[str, Any]]:
    """What the frequency figure can show: each series' SAE nearest to a matched L0, or one SAE."""
    series = list(dict.fromkeys(point["series"] for point in panel.points))
    entries = panel.json.get("matched_l0") or []
    usual = typical(entries)  # the L0 that the findings speak of comes first
    matched = sorted((entry["l0"] for entry in entries), key=lambda l0: usual is None or l0 != usual["l0"])
    choices = [
        {
            "label": f"each series, the SAE nearest to L0 = {exact(l0)}",
            "points": [_nearest(panel, s, l0) for s in series],
        }
        for l0 in matched
        if len(series) > 1
    ]
    return choices + [{"label": name, "points": [i]} for i, name in enumerate(panel.called)]


def _nearest(panel: Panel, series: str, l0: float) -> int:
    """The SAE of a series whose L0 is nearest."""

    def gap(i: int) -> float:
        found = panel.points[i]["metrics"].get("l0")
        return abs(found / l0 - 1) if found else float("inf")

    return min((i for i, point in enumerate(panel.points) if point["series"] == series), key=gap)


def _for_script(panel: Panel) -> dict[str, Any]:
    """What figures and answers need, SAEs in the order of the table's rows."""
    usual = typical(panel.json.get("matched_loss") or panel.json.get("matched_fvu") or [])
    return {
        "fidelity": panel.fidelity,
        "width": panel.width,
        "ask": usual[panel.fidelity] if usual else None,
        "points": [
            {
                "series": panel.series_of(point),
                "name": panel.called[i],
                "setting": point["setting"],
                "knob": point.get("knob") or {},
                "seeds": [point.get("sae_seed"), point.get("stream_seed")],
                "alone": panel.alone[i],
                "weights": point.get("seed_weights") or [],  # of each replicate, among the seeds of its setting
                "path": str(point.get("path") or ""),
                "pareto": bool(point.get("pareto")),
                "metrics": point["metrics"],
                "errors": point.get("standard_errors") or {},
                "intervals": point.get("intervals") or {},
                "bootstrap": {key: _rounded(kept) for key, kept in (point.get("bootstrap") or {}).items()},
                "histogram": point.get("histogram"),
            }
            for i, point in enumerate(panel.points)
        ],
    }


def _rounded(replicates: list[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.{DIGITS}g}") for value in replicates]
