"""The section on what a training step costs, from efficiency.json."""

from __future__ import annotations

from typing import Any

from jumpahead.report.numbers import MISSING, percent, short
from jumpahead.report.panel import Json
from jumpahead.report.series_style import FALLBACK, PAPER, SCREEN, checked, visible


def section(found: Json) -> dict[str, Any]:
    """What the template shows."""
    shapes = found["shapes"]
    return {
        "lead": _lead(found),
        "shapes": [shape["label"] for shape in shapes],
        "stages": [stage["title"] for stage in found["stages"]],
        "columns": [
            {"short": one["short"], "unit": one["unit"], "tip": one["meaning"]} for one in found["measures"]
        ],
        "groups": [
            {"label": shape["label"], "floor": _floor(shape), "rows": [_row(found, row) for row in shape["rows"]]}
            for shape in shapes
        ],
        "notes": found["notes"],
    }  # fmt: skip


def for_script(found: Json) -> dict[str, Any]:
    """What the figures need: bars from top to bottom, their stages in the order of the legend."""
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
    """Of each stage on paper and on a dark screen; checked, so safe in CSS."""
    usable = [checked(stage.get("colour")) or FALLBACK[i % len(FALLBACK)] for i, stage in enumerate(found["stages"])]
    return [(visible(colour, PAPER), visible(colour, SCREEN)) for colour in usable]


def _lead(found: Json) -> str:
    """Where and when it was measured."""
    hardware, threads = found.get("hardware") or {}, found["threads"]
    machine = hardware.get("processor") or hardware.get("machine") or "a machine that is not named"
    return (
        f"Measured on {machine} with {threads} thread{'s' * (threads != 1)}; kernels: {found['kernels']}. A step is "
        "forward pass, loss, backward pass, decoder norm and optimizer, on one batch."
    )


def _floor(shape: Json) -> str:
    """What no step can beat there."""
    products = [f"{one['name']} {short(one['ms'])} ms" for one in shape["floor"]["products"]]
    copied = short(shape["floor"]["copy_bytes_per_s"] / 1e9)
    return f"One encoder product alone: {', '.join(products)}. A copy moves {copied} GB/s."


def _row(found: Json, row: Json) -> dict[str, Any]:
    """The cells of one method."""
    first = {"title": row["title"], "method": _method(found, row), "skipped": row["skipped"], "lines": []}
    if row["recall"] is not None:
        first["lines"] = [f"finds {percent(row['recall'])} of the exact top-k"]
    cells = [_cell(row.get(one["key"]), one["scale"]) for one in found["measures"]]
    return {**first, "cells": [] if row["skipped"] else cells}


def _cell(value: float | None, scale: float) -> str:
    return MISSING if value is None else short(value * scale)


def _method(found: Json, row: Json) -> str:
    return next((one["title"] for one in found["methods"] if one["key"] == row["method"]), row["method"])
