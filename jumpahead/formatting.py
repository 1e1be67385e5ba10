"""TODO: one sentence that says what this module holds."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float) -> str:
    """Bytes for people: `312 B`, `8.4 MB`, `1.3 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def measured(value: float) -> str:
    """A measured value in four characters or so: `15.8`, `0.213`, `1,204`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
