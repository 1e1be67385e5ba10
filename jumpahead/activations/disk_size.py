"""The disk size of activations, and advice for a study whose activations exceed the free disk."""

from __future__ import annotations

from collections.abc import Iterable

LABEL_BYTES = 12
"""Bytes of the labels of one row: token, document and position, int32 each."""


def bytes_per_row(widths: Iterable[int], itemsize: int) -> int:
    """Return the bytes of one row on disk: activations at all sites, and labels.

    widths: d of every site. itemsize: bytes of one value.
    """
    return sum(widths) * itemsize + LABEL_BYTES


def disk_full_advice(sites: int, dtype: str) -> str:
    """Return advice for a study whose activations do not fit on the disk. sites: the number of sites."""
    ways = ["fewer tokens (text.max_tokens)"]
    ways += ["activations.dtype = 'bfloat16'"] if dtype == "float32" else []
    ways += ["one site at a time"] if sites > 1 else []
    return f"give it {', '.join(ways)}, another --out, or activations.origin = 'live', which keeps nothing"
