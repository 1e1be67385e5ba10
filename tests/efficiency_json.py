"""An example efficiency.json with invented round numbers, for tests of the table and the page."""

from __future__ import annotations

from typing import Any

from jumpahead.efficiency import labels
from jumpahead.report import EFFICIENCY_SCHEMA

ARCHITECTURES = [("jumprelu", "JumpReLU", ["engine", "dense"]), ("topk", "TopK", ["engine", "dense", "approximate"])]
STAGES = {
    "engine": {"product": 12.0, "selection": 4.0, "decode": 1.0, "rows": 6.0, "fold": 0.5, "rule": 2.0},
    "dense": {"product": 13.0, "selection": 30.0, "decode": 11.0, "backward": 140.0, "optimizer": 5.0},
}


def row(architecture: int, method: str, skipped: str | None = None) -> dict[str, Any]:
    """Return the row of one method of an architecture: 24 ms by the engine, 200 ms by the dense recipe."""
    name, title, _ = ARCHITECTURES[architecture]
    known = {"architecture": name, "title": title, "order": architecture, "method": method, "skipped": skipped}
    if skipped:
        return {**dict.fromkeys(KEYS), **known, "stages": {}}
    is_engine = method == "engine"
    ms = 24.0 if is_engine else 200.0
    stages = STAGES["engine" if is_engine else "dense"]
    rate = 2048 / ms * 1e3
    return {
        **known, "ms": ms, "lower_quartile_ms": 0.9 * ms, "upper_quartile_ms": 1.1 * ms, "rounds": 5,
        "tokens_per_s": rate,
        "stages": stages, "stages_ms": sum(stages.values()), "l0": 32.1 if is_engine else None,
        "entries": 71.5 if is_engine else None, "touched": 4096 if is_engine else None,
        "flops": 5e9 if is_engine else 26e9, "bytes": 4e8 if is_engine else 6e8, "state_bytes": 16e6,
        "peak_bytes": 53e6 if is_engine else 220e6, "recall": 0.981 if method == "approximate" else None,
        "lower_bound_ms": 12.0, **{key: tokens / rate / 3600 for key, tokens in labels.TOKEN_BUDGETS.items()},
    }  # fmt: skip


def shape(width: int, skipped: str | None = None) -> dict[str, Any]:
    """Return all rows at one width; `skipped` is the reason why the dense methods are skipped."""
    rows = [
        row(i, method, None if method == "engine" else skipped)
        for i, (_, _, methods) in enumerate(ARCHITECTURES)
        for method in methods
    ]
    products = [
        {"name": "bfloat16", "ms": 10.0, "gflops": 430.0},
        {"name": "float32 (oneDNN)", "ms": 30.0, "gflops": 143.0},
    ]
    return {
        "d": 256, "width": width, "batch": 2048, "l0": 32.0,
        "label": f"d = 256, width {width:,}, batch 2,048, L0 = 32",
        "limits": {"products": products, "copy_bytes_per_s": 28.5e9}, "rows": rows,
    }  # fmt: skip


def example(**changes: Any) -> dict[str, Any]:
    """Return two widths, the larger without dense methods; the engine has an unlisted stage, `fold`."""
    shapes = [shape(4096), shape(131_072, "skipped: would need 21 GB of memory")]
    return {
        "schema": EFFICIENCY_SCHEMA, "created": "2026-11-24T12:00:00Z", "versions": {"torch": "2.13.0"},
        "hardware": {"machine": "x86_64", "processor": "Invented CPU"}, "threads": 2, "kernels": "numba",
        "kernels_reason": "fastest at 1024×256×2048", "is_interrupted": False,
        "methods": [{"key": key, **method._asdict()} for key, method in labels.METHODS.items()],
        "measures": [measure._asdict() for measure in labels.MEASURES],
        "stages": labels.stages_in([one for each in shapes for one in each["rows"]]),
        "notes": labels.notes(0.05, has_memory=True), "shapes": shapes, **changes,
    }  # fmt: skip


KEYS = row(0, "engine").keys()
