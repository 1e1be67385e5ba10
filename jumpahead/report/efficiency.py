"""The section of the page on the cost of a training step, from efficiency.json."""

from __future__ import annotations

from typing import Any

from jumpahead.formatting import MISSING, typeset_number, typeset_percent
from jumpahead.report.colours import PALETTE, PAPER, SCREEN, readable, valid_colour
from jumpahead.report.panel import Json


def section(found: Json) -> dict[str, Any]:
    """Return what the template shows."""
    shapes = found["shapes"]
    return {
        "lead": _lead(found),
        "shapes": [shape["label"] for shape in shapes],
        "stages": [stage["title"] for stage in found["stages"]],
        "columns": [
            {"short": one["short"], "unit": one["unit"], "tip": one["meaning"]} for one in found["measures"]
        ],
        "groups": [
            {"label": shape["label"], "limits": _limits(shape), "rows": [_row(found, row) for row in shape["rows"]]}
            for shape in shapes
        ],
        "notes": found["notes"],
    }  # fmt: skip


def script_data(found: Json) -> dict[str, Any]:
    """Return what the figures need: bars from top to bottom, their stages in the order of the legend."""
    keys = [stage["key"] for stage in found["stages"]]
    return {
        "stages": [stage["title"] for stage in found["stages"]],
        "shapes": [
            [
                {
                    "title": row["title"],
                    "method": _method(found, row),
                    "ms": row["ms"],
                    "stages": [row["stages"].get(key, 0) for key in keys],
                    "skipped": row["skipped"],
                }
                for row in shape["rows"]
            ]
            for shape in found["shapes"]
        ],
    }


def colours(found: Json) -> list[tuple[str, str]]:
    """Return the colour of each stage on a light and on a dark background; validated, so safe in CSS."""
    usable = [valid_colour(stage["colour"]) or PALETTE[i % len(PALETTE)] for i, stage in enumerate(found["stages"])]
    return [(readable(colour, PAPER), readable(colour, SCREEN)) for colour in usable]


def _lead(found: Json) -> str:
    """Return a sentence on where the times were measured, and what a step is."""
    hardware, threads = found.get("hardware") or {}, found["threads"]
    machine = hardware.get("processor") or hardware.get("machine") or "a machine that is not named"
    return (
        f"Measured on {machine} with {threads} thread{'s' * (threads != 1)}; kernels: {found['kernels']}. A step is "
        "forward pass, loss, backward pass, decoder norm and optimizer, on one batch."
    )


def _limits(shape: Json) -> str:
    """Return sentences on the lower bounds of a step's time at a shape."""
    products = [f"{one['name']} {typeset_number(one['ms'])} ms" for one in shape["limits"]["products"]]
    copied = typeset_number(shape["limits"]["copy_bytes_per_s"] / 1e9)
    return f"One encoder product alone: {', '.join(products)}. A copy moves {copied} GB/s."


def _row(found: Json, row: Json) -> dict[str, Any]:
    """Return the cells of one method."""
    first = {"title": row["title"], "method": _method(found, row), "skipped": row["skipped"], "lines": []}
    if row["recall"] is not None:
        first["lines"] = [f"finds {typeset_percent(row['recall'])} of the exact top-k"]
    cells = [_cell(row.get(one["key"]), one["scale"]) for one in found["measures"]]
    return {**first, "cells": [] if row["skipped"] else cells}


def _cell(value: float | None, scale: float) -> str:
    """Return a value in the unit of its column."""
    return MISSING if value is None else typeset_number(value * scale)


def _method(found: Json, row: Json) -> str:
    """Return the title of a row's method."""
    return next((one["title"] for one in found["methods"] if one["key"] == row["method"]), row["method"])
