"""How much disk activations take, and what to change in a study if that is too much."""

from __future__ import annotations

from collections.abc import Iterable

LABEL_BYTES = 12
"""Bytes of the labels of one row: its token, document and position, int32 each."""


def bytes_per_row(widths: Iterable[int], itemsize: int) -> int:
    """Return the bytes of one token position on disk: its activations at all sites, and its labels."""
    return sum(widths) * itemsize + LABEL_BYTES


def disk_full_advice(sites: int, dtype: str) -> str:
    """Return what to change in a study whose activations do not fit on the disk. sites: their number."""
    ways = ["fewer tokens (text.max_tokens)"]
    ways += ["activations.dtype = 'bfloat16'"] if dtype == "float32" else []
    ways += ["one site at a time"] if sites > 1 else []
    return f"give it {', '.join(ways)}, another --out, or activations.origin = 'live', which keeps nothing"
