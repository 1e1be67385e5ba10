"""Numbers, durations and sizes as text, and the words for what a run trains on: tokens of documents, or rows.

`format_…` writes plain ASCII, for sentences, logs and the terminal. `typeset_…` writes for pages, with a typographic
minus and without line breaks inside a number; `report/numbers.js` repeats those for what the browser computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MISSING = "–"
"""On pages, for a value that was not measured."""
NBSP = "\u00a0"
"""Between a number and its per cent sign: no line break."""


class SampleUnit(NamedTuple):
    """What one activation of a run is called in sentences: a token, or without a language model a row."""

    singular: str
    """`features per token`."""
    plural: str
    """`1,000 tokens`."""
    group: str
    """What is resampled for intervals: a document."""
    groups: str
    """`37 documents`."""
    text: str
    """What the activations are of: `held-out text`."""


TOKENS = SampleUnit("token", "tokens", "document", "documents", "text")
"""For a run with a language model."""
ROWS = SampleUnit("row", "rows", "group of rows", "groups of rows", "rows")
"""For a run on activations from elsewhere."""


def sample_unit(frontier: Mapping[str, Any]) -> SampleUnit:
    """Return the unit of a frontier.json, where `lm.name` is null without a language model."""
    return ROWS if frontier["lm"]["name"] is None else TOKENS


# ---------------------------------------------------------------------------------------------- plain text


def format_number(value: float | None) -> str:
    """Return three significant digits, whole from 100 on: `0.2`, `21.3`, `1,234`; `-` for None and nan."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def format_aligned(value: float | None) -> str:
    """Return a number for a column, where three digits line up: `0.200`, `16.5`; whole numbers stay whole."""
    if value is None or not math.isfinite(value) or abs(value) >= 99.95 or value == int(value):
        return format_number(value)
    return f"{value:#.3g}"


def format_range(low: float, high: float) -> str:
    """Return an interval for a column: `16.0-19.4`, `-0.01 to 0.02`."""
    return f"{format_aligned(low)}{'-' if low >= 0 else ' to '}{format_aligned(high)}"


def format_percent(share: float | None) -> str:
    """Return a share of 1 as a percentage: `0.13 %`; `-` for None."""
    return "-" if share is None else f"{format_number(100 * share)} %"


def format_setting(setting: Mapping[str, Any]) -> str:
    """Return a sparsity setting as it can stand in a study: `l0 = 16`, `lambda = 0.0006`, `k = 32`."""
    return f"{setting['kind']} = {setting['value']:.6g}"


def format_list(words: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def format_duration(seconds: float) -> str:
    """Return a time span in its two largest units: `8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_bytes(count: float) -> str:
    """Return a size in powers of ten: `312 B`, `8.4 MB`, `1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


# ---------------------------------------------------------------------------------------------- pages


def typeset_number(value: float | None) -> str:
    """Return three significant digits, without an exponent from 0.0001 up: `0.213`, `16.0`, `8,192`, `4.2e-5`."""
    if value is None or not math.isfinite(value):
        return MISSING
    format_bytes = abs(value)
    if format_bytes == 0:
        return "0"
    if format_bytes < 0.0001:
        mantissa, exponent = f"{format_bytes:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif format_bytes >= 999.5:
        text = f"{format_bytes:,.0f}"
    else:
        power = math.floor(math.log10(float(f"{format_bytes:.2e}")))  # of the rounded value: 9.996 is 10.0
        text = f"{format_bytes:.{2 - power}f}"
    return f"−{text}" if value < 0 else text


def typeset_percent(share: float | None) -> str:
    """Return a share of 1 as a percentage of two digits, three from 10 % on: `0.061 %`, `12.3 %`."""
    if share is None or not math.isfinite(share):
        return MISSING
    if share < 0:
        return f"−{typeset_percent(-share)}"
    format_bytes = 100 * share
    if format_bytes == 0:
        return f"0{NBSP}%"
    if format_bytes >= 9.95:
        return f"{format_bytes:.1f}{NBSP}%"
    power = max(math.floor(math.log10(float(f"{format_bytes:.1e}"))), -6)
    return f"{format_bytes:.{1 - power}f}{NBSP}%"


def typeset_count(value: float | None) -> str:
    """Return a number of features: `129`, or with one decimal if it is interpolated and below 100: `5.2`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 or abs(value) >= 99.95 else f"{value:.1f}"


def typeset_exact(value: float) -> str:
    """Return a number that somebody chose, with all its digits: `16`, `0.2`, `8,192`, `0.00035`."""
    if value == 0 or abs(value) >= 0.0001:
        return f"{value:,.10f}".rstrip("0").rstrip(".")
    return f"{value:g}".replace("e-0", "e-")


def typeset_setting(setting: Mapping[str, Any] | None) -> str:
    """Return a sparsity setting for a page: `l0 = 16`, `λ = 0.0006`, `k = 32`."""
    if not setting:
        return MISSING
    return f"{'λ' if setting['kind'] == 'lambda' else setting['kind']} = {typeset_exact(setting['value'])}"


def typeset_metric(format: str, value: float | None) -> str:
    """Return a value in the format of a metric's declaration: `number`, `count`, or `share` (with per cent sign)."""
    if format == "share":
        return typeset_percent(value)
    return typeset_count(value) if format == "count" else typeset_number(value)


def typeset_interval(format: str, low: float | None, high: float | None) -> str:
    """Return `0.208 to 0.219` in the format of a metric's declaration; empty if a bound is None."""
    if low is None or high is None:
        return ""
    return f"{typeset_metric(format, low)} to {typeset_metric(format, high)}"
