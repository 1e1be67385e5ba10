"""One HTML file from frontier.json and efficiency.json: what each part of the template shows, as plain values.

Everything from the run is untrusted text. `sanitize` makes misleading characters visible, the template escapes markup,
and the page's script only sets text.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

import jinja2
from markupsafe import Markup

from jumpahead.formatting import MISSING, NBSP, ROWS, SampleUnit, sample_unit, typeset_count
from jumpahead.report import assets
from jumpahead.report import efficiency as efficiency_section
from jumpahead.report.panel import Json, PageContext, Panel
from jumpahead.report.panel_view import panel_data, panel_view
from jumpahead.report.sanitize import sanitize
from jumpahead.report.series_style import DASHES, SYMBOLS, series_styles
from jumpahead.report.tables import DIRECTIONS


def html(frontier: Json, efficiency: Json | None = None) -> str:
    """Return the whole page, a function of its arguments and the installed plotly alone.

    frontier: schema jumpahead.frontier/1. efficiency: schema jumpahead.efficiency/1, if it was measured.
    """
    frontier, efficiency = sanitize(frontier), sanitize(efficiency)
    styles, context = series_styles(frontier["series"]), _context(frontier)
    panels = [Panel(panel, i + 1, context) for i, panel in enumerate(frontier["panels"])]
    colours = {f"series-{i}": (style.paper, style.screen) for i, style in enumerate(styles)}
    if efficiency is not None:
        colours |= {f"stage-{i}": pair for i, pair in enumerate(efficiency_section.colours(efficiency))}
    css, script = assets.text("page.css") + _custom_properties(colours), assets.script()
    return _template().render(
        name=frontier["name"] or "A run",
        unit=context.unit,
        about=_about(frontier, context.unit),
        policy=assets.content_security_policy(script, css),
        css=Markup(css),  # from this package, apart from colours, which are checked
        script=Markup(script),
        plotly=Markup(assets.plotly().packed),
        taken_ids=assets.plotly().taken_ids,
        styles=[{**one._asdict(), "path": SYMBOLS[one.symbol], "stroke": DASHES[one.dash]} for one in styles],
        panels=[panel_view(panel) for panel in panels],
        intervals=_intervals(frontier["interval"], panels, context),
        metrics=[{**one, "direction": DIRECTIONS.get(one["better"], MISSING)} for one in frontier["metrics"]],
        sources=_sources(frontier),
        efficiency=None if efficiency is None else efficiency_section.section(efficiency),
        data={
            "series": [{"title": one.title, "dash": one.dash, "symbol": one.symbol} for one in styles],
            "metrics": list(context.metrics.values()),  # tojson would sort a dict
            "unit": context.unit._asdict(),
            "level": frontier["interval"]["level"],
            "panels": [panel_data(panel) for panel in panels],
            "efficiency": None if efficiency is None else efficiency_section.script_data(efficiency),
        },
    )


def _context(frontier: Json) -> PageContext:
    """Return what all parts of the page share."""
    return PageContext(
        series={one["name"]: i for i, one in enumerate(frontier["series"])},
        titles={one["name"]: one["title"] for one in frontier["series"]},
        metrics={one["key"]: one for one in frontier["metrics"]},
        level=f"{100 * frontier['interval']['level']:g}{NBSP}%",
        diagnostics=frontier["health"],
        unit=sample_unit(frontier),
    )


def _template() -> jinja2.Template:
    """Return the template; a name that it uses and is not given is an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(assets.text("page.html.jinja"))


def _custom_properties(colours: dict[str, tuple[str, str]]) -> str:
    """Return CSS that declares one custom property per colour, for a light and for a dark background."""
    paper = "".join(f"--{name}:{paper};" for name, (paper, _) in colours.items())
    screen = "".join(f"--{name}:{screen};" for name, (_, screen) in colours.items())
    return f":root{{{paper}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{screen}}}}}\n"


# ---------------------------------------------------------------------------------------------- sentences


def _about(frontier: Json, unit: SampleUnit) -> list[str]:
    """Return the parts of the page's subtitle: SAEs, LM, text, tokens, time."""
    text, n = frontier["text"], sum(len(panel["points"]) for panel in frontier["panels"])
    has_lm = unit != ROWS
    parts = [f"{n} sparse autoencoder{'s' * (n != 1)}", f"LM: {frontier['lm']['name']}" if has_lm else "no LM"]
    if text.get("source"):
        parts.append(f"text: {text['source']}" if has_lm else text["source"])
    if text.get("train_tokens"):
        parts.append(f"{typeset_count(text['train_tokens'])} training {unit.plural}")
    if text.get("held_out_tokens"):
        parts.append(f"{typeset_count(text['held_out_tokens'])} held-out {unit.plural}")
    return [*parts, _moment(str(frontier["created"]))]


def _moment(text: str) -> str:
    """Return `2026-11-22 07:47 UTC`; text that is not a time as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _intervals(declared: Json, panels: list[Panel], context: PageContext) -> list[str]:
    """Return sentences on how the intervals are computed and what they cover."""
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
        "interpolated again in each replicate.",
        extent,
        f"All SAEs are measured on the same {unit.text}. The difference of two series is therefore more certain than "
        "each series: intervals may overlap although the difference excludes zero. The answer to a question gives that "
        "difference, taken replicate by replicate.",
    ]


def _sources(frontier: Json) -> list[tuple[str, str]]:
    """Return title and text of what the run was made from."""
    study, manifest = frontier["study"], frontier["manifest"]
    pretty = json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else ""
    named = [("Resolved study", str(study or "")), ("Manifest: versions, hardware, seeds, digests of inputs", pretty)]
    return [(title, text) for title, text in named if text]
