"""Template values and script data of the page section with the training curves of all SAEs."""

from __future__ import annotations

from typing import Any

from jumpahead.report.panel import Json, PageContext


def script_data(frontier: Json, context: PageContext) -> list[dict[str, Any]]:
    """Return the training curves for the script of the page, in the order of frontier.json."""
    requested = {point["path"]: point["requested"] for panel in frontier["panels"] for point in panel["points"]}
    return [
        {
            "series": context.series[record["series"]],
            "label": _label(record, context),
            "requested": requested.get(record["path"]),
            "steps": record["steps"],
            "lines": record["lines"],
            "thresholds": record["thresholds"],
        }
        for record in frontier["training"]
    ]


def choices(frontier: Json, context: PageContext) -> list[dict[str, Any]]:
    """Return the menu of the section as {"label", "records"}: all SAEs of a panel, of a series, or one SAE."""
    records = list(enumerate(frontier["training"]))
    panels = dict.fromkeys((record["site"], record["width"]) for _, record in records)
    found = []
    for site, width in panels:
        members = [(i, record) for i, record in records if (record["site"], record["width"]) == (site, width)]
        where = f"{site}, {width:,} features: " if len(panels) > 1 else ""
        found.append({"label": f"{where}all {len(members)} SAEs", "records": [i for i, _ in members]})
        names = dict.fromkeys(record["series"] for _, record in members)
        for name in names if len(names) > 1 else ():
            own = [i for i, record in members if record["series"] == name]
            found.append({"label": f"{where}{context.titles[name]}, all {len(own)}", "records": own})
        found += [{"label": where + _label(record, context), "records": [i]} for i, record in members]
    return found


def _label(record: Json, context: PageContext) -> str:
    """Return the label of an SAE: `JumpReLU, l0 = 16`, with its seeds where they are not 0."""
    seeds = [(word, record[key]) for key, word in (("sae_seed", "seed"), ("stream_seed", "stream seed"))]
    parts = [context.titles[record["series"]], record["label"].replace("lambda", "λ")]
    return ", ".join([*parts, *(f"{word} {seed}" for word, seed in seeds if seed)])
