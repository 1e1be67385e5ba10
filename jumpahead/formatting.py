"""Numbers, durations, sizes and widths as text, and the nouns for training samples: tokens of documents, or rows.

`format_…` functions return plain ASCII for sentences, logs and the terminal. `typeset_…` functions return text for
HTML pages, with a typographic minus and without line breaks inside a number; `report/numbers.js` implements the same
functions for numbers computed in the browser.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MISSING = "–"
"""Text on pages for a value that was not measured."""
MEASURED = "measured"
"""Kind of a sparsity setting that is not known; its value is the measured L0."""
NBSP = "\u00a0"
"""No-break space, between a number and a per cent sign."""


class SampleUnit(NamedTuple):
    """Nouns for one activation vector of a run: a token, or a row if the run has no language model."""

    singular: str
    """Noun for one activation, as in `features per token`."""
    plural: str
    """Noun for several activations, as in `1,000 tokens`."""
    group: str
    """Noun for the cluster that the bootstrap resamples: a document."""
    groups: str
    """Noun for several clusters, as in `37 documents`."""
    text: str
    """Noun for the data that activations come from, as in `held-out text`."""


TOKENS = SampleUnit("token", "tokens", "document", "documents", "text")
"""Nouns for a run with a language model."""
ROWS = SampleUnit("row", "rows", "group of rows", "groups of rows", "rows")
"""Nouns for a run on activations that were not computed by a language model of the run."""


def sample_unit(frontier: Mapping[str, Any]) -> SampleUnit:
    """Return the nouns for activations of a frontier.json: `ROWS` if `lm.name` is null, else `TOKENS`."""
    return ROWS if frontier["lm"]["name"] is None else TOKENS


# ---------------------------------------------------------------------------------------------- panels
# An element of `panels` in frontier.json holds the SAEs that are compared with each other. In a study's they have one
# width. In a comparison of SAEs of any make a panel's `width` may be null; `widths` then has the width of each series.


def series_widths(panel: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of features of the SAEs of each series that the panel has, by name."""
    names = dict.fromkeys(point["series"] for point in panel["points"])
    return {name: series_width(panel, name) for name in names}


def series_width(panel: Mapping[str, Any], series: str) -> int:
    """Return the number of features of the SAEs of a series; of a series without SAEs, 0 if widths differ."""
    return panel["widths"].get(series, 0) if panel["width"] is None else panel["width"]


def panel_name(panel: Mapping[str, Any]) -> str:
    """Return the name of a panel: `site/width`, or the site alone if its series differ in width."""
    return panel["site"] if panel["width"] is None else f"{panel['site']}/{panel['width']}"


def format_widths(panel: Mapping[str, Any]) -> str:
    """Return the widths of a panel as text: `8,192`, or `2,048 and 8,192`."""
    widths = {panel["width"]} if panel["width"] is not None else set(panel["widths"].values())
    return format_list([f"{width:,}" for width in sorted(widths)])


# ---------------------------------------------------------------------------------------------- plain text


def format_number(value: float | None) -> str:
    """Return a number with 3 significant digits, or as an integer from 100 on: `0.2`, `1,234`; `-` for None or nan."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def format_aligned(value: float | None) -> str:
    """Return a number for a table column with 3 digits, zeros included: `0.200`, `16.5`; integers without decimals."""
    if value is None or not math.isfinite(value) or abs(value) >= 99.95 or value == int(value):
        return format_number(value)
    return f"{value:#.3g}"


def format_range(low: float, high: float) -> str:
    """Return an interval for a table column: `16.0-19.4`, `-0.01 to 0.02`."""
    return f"{format_aligned(low)}{'-' if low >= 0 else ' to '}{format_aligned(high)}"


def format_percent(share: float | None) -> str:
    """Return a fraction between 0 and 1 as a percentage: `0.13 %`; `-` for None."""
    return "-" if share is None else f"{format_number(100 * share)} %"


def format_setting(setting: Mapping[str, Any]) -> str:
    """Return a sparsity setting {"kind", "value"} in the syntax of study files: `l0 = 16`, `k = 32`.

    The kind `measured` stands for a setting that is not known, of an SAE of another make: `measured L0 16`.
    """
    if setting["kind"] == MEASURED:
        return f"measured L0 {format_number(setting['value'])}"
    return f"{setting['kind']} = {setting['value']:.6g}"


def format_counted(count: int, noun: str) -> str:
    """Return a count with its noun in the singular or the plural: `1 SAE`, `1,024 features`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_list(words: Sequence[str]) -> str:
    """Return words as an enumeration: `a`, `a and b`, or `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: `8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_bytes(count: float) -> str:
    """Return a number of bytes in decimal units: `312 B`, `8.4 MB`, `1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


# ---------------------------------------------------------------------------------------------- pages


def typeset_number(value: float | None) -> str:
    """Return a number with 3 significant digits, below 0.0001 with an exponent: `0.213`, `16.0`, `8,192`, `4.2e-5`."""
    if value is None or not math.isfinite(value):
        return MISSING
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if magnitude < 0.0001:
        mantissa, exponent = f"{magnitude:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif magnitude >= 999.5:
        text = f"{magnitude:,.0f}"
    else:
        power = math.floor(math.log10(float(f"{magnitude:.2e}")))  # of the rounded value: 9.996 is 10.0
        text = f"{magnitude:.{2 - power}f}"
    return f"−{text}" if value < 0 else text


def typeset_percent(share: float | None) -> str:
    """Return a fraction as a percentage with 2 digits, 3 digits from 10 % on: `0.061 %`, `12.3 %`."""
    if share is None or not math.isfinite(share):
        return MISSING
    if share < 0:
        return f"−{typeset_percent(-share)}"
    percent = 100 * share
    if percent == 0:
        return f"0{NBSP}%"
    if percent >= 9.95:
        return f"{percent:.1f}{NBSP}%"
    power = max(math.floor(math.log10(float(f"{percent:.1e}"))), -6)
    return f"{percent:.{1 - power}f}{NBSP}%"


def typeset_count(value: float | None) -> str:
    """Return a count: `129`; counts that are not integers and below 100 have one decimal: `5.2`."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.0f}" if abs(value - round(value)) < 1e-9 or abs(value) >= 99.95 else f"{value:.1f}"
    return text.replace("-", "−")


def typeset_exact(value: float) -> str:
    """Return a number with all digits, for values chosen by the user: `16`, `0.2`, `8,192`, `0.00035`."""
    if value == 0 or abs(value) >= 0.0001:
        return f"{value:,.10f}".rstrip("0").rstrip(".")
    return f"{value:g}".replace("e-0", "e-")


def typeset_setting(setting: Mapping[str, Any] | None) -> str:
    """Return a sparsity setting {"kind", "value"} for a page: `l0 = 16`, `λ = 0.0006`, `k = 32`."""
    if not setting:
        return MISSING
    if setting["kind"] == MEASURED:
        return f"measured L0 {typeset_number(setting['value'])}"
    return f"{'λ' if setting['kind'] == 'lambda' else setting['kind']} = {typeset_exact(setting['value'])}"


def typeset_metric(format: str, value: float | None) -> str:
    """Return a value of a metric. format: `number`, `count` or `share` (shown in per cent), see `metrics.Metric`."""
    if format == "share":
        return typeset_percent(value)
    return typeset_count(value) if format == "count" else typeset_number(value)


def typeset_interval(format: str, low: float | None, high: float | None) -> str:
    """Return an interval such as `0.208 to 0.219`; empty if a bound is None. format: as in `typeset_metric`."""
    if low is None or high is None:
        return ""
    return f"{typeset_metric(format, low)} to {typeset_metric(format, high)}"


def sanitize(value: Any) -> Any:
    """Return a copy of a JSON value that is safe to show: misleading characters are escaped; nan and ±inf become None.

    Control, bidirectional-format, line-separator and lone surrogate characters are replaced by their code point, such
    as ⟨U+202E⟩; newline and tab are kept. HTML is not escaped here: the template does it, and scripts set text only.
    """
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value
        value = value.replace("\r\n", "\n")
        return "".join(c if _is_harmless_character(c) else f"⟨U+{ord(c):04X}⟩" for c in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {sanitize(str(key)): sanitize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize(item) for item in value]
    return value


def _is_harmless_character(character: str) -> bool:
    """Return False if a character is invisible or changes how the surrounding text is shown."""
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
