"""Template values and script data of the page section on the cost of a training step, from efficiency.json."""

from __future__ import annotations

from typing import Any

from jumpahead.formatting import MISSING, typeset_number, typeset_percent
from jumpahead.report.colours import DARK_BACKGROUND, LIGHT_BACKGROUND, PALETTE, ensure_contrast, valid_colour
from jumpahead.report.panel import Json


def section_view(efficiency: Json) -> dict[str, Any]:
    """Return the template values of the section. efficiency: the content of efficiency.json."""
    shapes = efficiency["shapes"]
    return {
        "lead": _lead_sentence(efficiency),
        "shapes": [shape["label"] for shape in shapes],
        "stages": [stage["title"] for stage in efficiency["stages"]],
        "columns": [
            {"short": one["short"], "unit": one["unit"], "tip": one["meaning"]} for one in efficiency["measures"]
        ],
        "groups": [
            {
                "label": shape["label"],
                "limits": _lower_bounds_text(shape),
                "rows": [_method_row(efficiency, row) for row in shape["rows"]],
            }
            for shape in shapes
        ],
        "notes": efficiency["notes"],
    }  # fmt: skip


def script_data(efficiency: Json) -> dict[str, Any]:
    """Return the data of the figures: bars from top to bottom, stages of each bar in the order of the legend."""
    keys = [stage["key"] for stage in efficiency["stages"]]
    return {
        "stages": [stage["title"] for stage in efficiency["stages"]],
        "shapes": [
            [
                {
                    "title": row["title"],
                    "method": _method_title(efficiency, row),
                    "ms": row["ms"],
                    "stages": [row["stages"].get(key, 0) for key in keys],
                    "skipped": row["skipped"],
                }
                for row in shape["rows"]
            ]
            for shape in efficiency["shapes"]
        ],
    }


def stage_colours(efficiency: Json) -> list[tuple[str, str]]:
    """Return (colour on light background, colour on dark background) per stage, as valid `#rrggbb` for CSS."""
    usable = [
        valid_colour(stage["colour"]) or PALETTE[i % len(PALETTE)] for i, stage in enumerate(efficiency["stages"])
    ]
    return [(ensure_contrast(colour, LIGHT_BACKGROUND), ensure_contrast(colour, DARK_BACKGROUND)) for colour in usable]


def _lead_sentence(efficiency: Json) -> str:
    """Return the introduction: hardware, threads, kernels, and the definition of a training step."""
    hardware, threads = efficiency.get("hardware") or {}, efficiency["threads"]
    machine = hardware.get("processor") or hardware.get("machine") or "a machine that is not named"
    return (
        f"Measured on {machine} with {threads} thread{'s' * (threads != 1)}; kernels: {efficiency['kernels']}. A step "
        "is forward pass, loss, backward pass, decoder norm and optimizer, on one batch."
    )


def _lower_bounds_text(shape: Json) -> str:
    """Return sentences on the lower bounds of the step time: encoder products and copy bandwidth."""
    products = [f"{one['name']} {typeset_number(one['ms'])} ms" for one in shape["limits"]["products"]]
    copied = typeset_number(shape["limits"]["copy_bytes_per_s"] / 1e9)
    return f"One encoder product alone: {', '.join(products)}. A copy moves {copied} GB/s."


def _method_row(efficiency: Json, row: Json) -> dict[str, Any]:
    """Return the template values of one table row: an architecture trained by one method."""
    first = {"title": row["title"], "method": _method_title(efficiency, row), "skipped": row["skipped"], "lines": []}
    if row["recall"] is not None:
        first["lines"] = [f"finds {typeset_percent(row['recall'])} of the exact top-k"]
    cells = [_format_cell(row.get(one["key"]), one["scale"]) for one in efficiency["measures"]]
    return {**first, "cells": [] if row["skipped"] else cells}


def _format_cell(value: float | None, scale: float) -> str:
    """Return value · scale as text, the number in the unit of the column."""
    return MISSING if value is None else typeset_number(value * scale)


def _method_title(efficiency: Json, row: Json) -> str:
    """Return the title of the method of a row; the key of the method if it is not declared."""
    return next((one["title"] for one in efficiency["methods"] if one["key"] == row["method"]), row["method"])
