"""Render the report page, one HTML file, from frontier.json and efficiency.json.

All text of a run is untrusted. `sanitize` escapes misleading characters, the template escapes HTML, and the script of
the page sets text only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jumpahead.formatting import MISSING, ROWS, SampleUnit, format_widths, typeset_count
from jumpahead.report import assets, training
from jumpahead.report.assets import page_script, read_asset
from jumpahead.report.efficiency import script_data, section_view, stage_colours
from jumpahead.report.panel import Json, PageContext, Panel, page_context
from jumpahead.report.panel_view import panel_data, panel_view
from jumpahead.report.sanitize import sanitize
from jumpahead.report.series_style import DASHES, SYMBOLS, series_styles
from jumpahead.report.tables import DIRECTIONS


def render_html(frontier: Json, efficiency: Json | None = None, feature_links: Mapping[str, str] | None = None) -> str:
    """Return the HTML of the report page; it depends only on the arguments and the installed version of plotly.

    frontier: content of frontier.json, schema jumpahead.frontier/3.
    efficiency: content of efficiency.json, schema jumpahead.efficiency/1; None if it was not measured.
    feature_links: address of the feature pages of SAEs, by path.
    """
    frontier, efficiency = sanitize(frontier), sanitize(efficiency)
    styles, context = series_styles(frontier["series"]), page_context(frontier)
    whole = {each["name"]: bool(each.get("whole")) for each in frontier["series"]}
    panels = [Panel(panel, i + 1, context) for i, panel in enumerate(frontier["panels"])]
    colours = {f"series-{i}": (style.paper, style.screen) for i, style in enumerate(styles)}
    if efficiency is not None:
        colours |= {f"stage-{i}": pair for i, pair in enumerate(stage_colours(efficiency))}
    css, script = read_asset("page.css") + _custom_properties(colours), page_script()
    return _template().render(
        name=frontier["name"] or "A run",
        unit=context.unit,
        about=_subtitle_parts(frontier, context.unit),
        policy=assets.content_security_policy(script, css),
        css=Markup(css),  # trusted: part of this package; colours from JSON are validated
        script=Markup(script),
        plotly=Markup(assets.plotly().packed),
        taken_ids=assets.plotly().taken_ids,
        styles=[{**one._asdict(), "path": SYMBOLS[one.symbol], "stroke": DASHES[one.dash]} for one in styles],
        contents=_contents(panels, frontier, efficiency),
        training=training.choices(frontier, context),
        progress=_progress_sentence(frontier.get("progress")),
        panels=[_with_feature_links(panel_view(panel), panel, feature_links or {}) for panel in panels],
        intervals=_interval_sentences(frontier["interval"], panels, context),
        metrics=[{**one, "direction": DIRECTIONS.get(one["better"], MISSING)} for one in frontier["metrics"]],
        sources=_provenance_texts(frontier),
        efficiency=None if efficiency is None else section_view(efficiency),
        data={
            "series": [
                {"name": one.name, "title": one.title, "dash": one.dash, "symbol": one.symbol, "whole": whole[one.name]}
                for one in styles
            ],
            "metrics": list(context.metrics.values()),  # tojson would sort a dict
            "unit": context.unit._asdict(),
            "level": frontier["interval"]["level"],
            "panels": [panel_data(panel) for panel in panels],
            "training": training.script_data(frontier, context),
            "efficiency": None if efficiency is None else script_data(efficiency),
        },
    )


def _with_feature_links(view: dict[str, Any], panel: Panel, links: Mapping[str, str]) -> dict[str, Any]:
    """Return the template values of a panel with the address of the feature pages of each SAE, empty for none."""
    found = [links.get(str(point["path"]), "") for point in panel.points]
    points = [{**row, "features": link} for row, link in zip(view["points"], found, strict=True)]
    linked = [(label, link) for label, link in zip(panel.labels, found, strict=True) if link]
    return {**view, "points": points, "feature_links": linked}


class Contents(NamedTuple):
    """Links to the parts of a panel, or of the rest of the page."""

    title: str
    """Title of the panel; empty for the rest of the page."""
    anchor: str
    """Id of the panel; empty for the rest of the page."""
    links: list[tuple[str, str]]
    """(id, title) of each part."""


def _contents(panels: list[Panel], frontier: Json, efficiency: Json | None) -> list[Contents]:
    """Return the table of contents of the page."""
    parts = [("ask", "What each series costs"), ("figures", "Figures"), ("frequencies", "How often features fire"),
             ("matched", "At matched L0 and loss"), ("saes", "All SAEs"), ("notes", "Notes")]  # fmt: skip
    found = []
    for panel in panels:
        is_there = {
            "notes": any(point["notes"] for point in panel.points),
            "matched": any(panel.json["matched"].values()),
        }
        anchor = f"panel-{panel.number}"
        links = [(f"{anchor}-{key}", title) for key, title in parts if panel.points and is_there.get(key, True)]
        title = f"{panel.json['site']}, {format_widths(panel.json)} features" if len(panels) > 1 else ""
        found.append(Contents(title, anchor, links))
    rest = [("training", "Training curves")] if frontier["training"] else []
    rest += [("efficiency", "What a training step costs")] if efficiency else []
    rest += [("intervals", "What the intervals cover"), ("metrics", "Metrics"), ("run", "The run")]
    return [*found, Contents("", "", rest)]


def _template() -> jinja2.Template:
    """Return the page template with HTML escaping; undefined variables raise an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(read_asset("page.html.jinja"))


def _custom_properties(colours: dict[str, tuple[str, str]]) -> str:
    """Return CSS with one custom property per colour. colours: name → (on a light background, on a dark background)."""
    paper = "".join(f"--{name}:{paper};" for name, (paper, _) in colours.items())
    screen = "".join(f"--{name}:{screen};" for name, (_, screen) in colours.items())
    return f":root{{{paper}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{screen}}}}}\n"


# ---------------------------------------------------------------------------------------------- sentences


def _subtitle_parts(frontier: Json, unit: SampleUnit) -> list[str]:
    """Return the parts of the subtitle: number of SAEs, LM, text source, numbers of tokens, creation time."""
    text, n = frontier["text"], sum(len(panel["points"]) for panel in frontier["panels"])
    has_lm = unit != ROWS
    parts = [f"{n} sparse autoencoder{'s' * (n != 1)}", f"LM: {frontier['lm']['name']}" if has_lm else "no LM"]
    if text.get("source"):
        parts.append(f"text: {text['source']}" if has_lm else text["source"])
    if text.get("train_tokens"):
        parts.append(f"{typeset_count(text['train_tokens'])} training {unit.plural}")
    if text.get("held_out_tokens"):
        parts.append(f"{typeset_count(text['held_out_tokens'])} held-out {unit.plural}")
    return [*parts, _format_time(str(frontier["created"]))]


def _progress_sentence(progress: Json | None) -> str:
    """Return a sentence on how far an unfinished run is; empty for a finished one."""
    if not progress:
        return ""
    return (
        f"Not finished: of {progress['saes']} SAEs, {progress['trained']} are trained and {progress['evaluated']} "
        "evaluated. Run the study again to continue."
    )


def _format_time(text: str) -> str:
    """Return an ISO 8601 time as `2026-11-22 07:47 UTC`; return other text unchanged."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _interval_sentences(declared: Json, panels: list[Panel], context: PageContext) -> list[str]:
    """Return paragraphs on how intervals are computed and what they cover. declared: `interval` of the JSON."""
    if not declared["replicates"]:
        return ["There are no intervals: the evaluations hold no resamples."]
    unit, has_seeds = context.unit, "seeds" in str(declared["covers"])
    resampled = f"Held-out {unit.groups}{' and the SAEs’ seeds' if has_seeds else ''}"
    if has_seeds:
        extent = f"They cover the choice of held-out {unit.text} and, as far as this run’s seeds show it, of the seed."
    else:
        is_single = all(alone for panel in panels for alone in panel.is_only_seed)
        why = "each SAE was trained once" if is_single else "not every setting was trained with several seeds"
        extent = (
            f"They cover the choice of held-out {unit.text} only: {why}. They do not cover other initialisations and "
            "other orders of the training data."
        )
    return [
        f"Ranges on this page are {context.level} intervals from {typeset_count(declared['replicates'])} bootstrap "
        f"replicates. {resampled} are resampled with replacement, identically for every SAE; every curve is "
        f"interpolated again in each replicate. Deviations are widened for few {unit.groups} of unequal length, with "
        "the quantile of Student’s t.",
        " ".join([extent, *declared["narrow"]]),
        f"All SAEs are measured on the same {unit.text}. The difference of two series is therefore more certain than "
        "each series: intervals may overlap although the difference excludes zero. Wherever this page compares series, "
        "it does so by that difference, taken replicate by replicate.",
    ]


def _provenance_texts(frontier: Json) -> list[tuple[str, str]]:
    """Return (title, text) of the resolved study and the manifest; omit empty texts."""
    study, manifest = frontier["study"], frontier["manifest"]
    pretty = json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else ""
    named = [("Resolved study", str(study or "")), ("Manifest: versions, hardware, seeds, digests of inputs", pretty)]
    return [(title, text) for title, text in named if text]
