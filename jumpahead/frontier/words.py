"""Numbers and settings as text, the same in sentences, tables and pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jumpahead.metrics import SHARES

_AMOUNTS = {
    "delta_lm_loss": "delta LM loss {}",
    "l0": "L0 {}",
    "fvu": "FVU {}",
    "above_10pct": "{} features above 10 %",
    "above_1pct": "{} features above 1 %",
    "dead": "{} dead features",
    "share_above_10pct": "{} of features above 10 %",
    "share_above_1pct": "{} of features above 1 %",
    "share_dead": "{} of features dead",
}

FIDELITY = {"delta_lm_loss": "delta LM loss", "fvu": "FVU"}
"""What curves are drawn and compared by: the loss, or without a language model the reconstruction error."""


def a_fidelity(key: str) -> str:
    """`a delta LM loss`, `an FVU`."""
    return f"{'an' if key == 'fvu' else 'a'} {FIDELITY[key]}"


def number(value: float | None) -> str:
    """Three significant digits, whole from 100 on: `0.2`, `21.3`, `1,234`; `-` where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def digits(value: float | None) -> str:
    """The same for columns, where numbers of three digits line up: `0.200`, `16.0`; whole numbers stay whole."""
    if value is None or not math.isfinite(value) or abs(value) >= 99.95 or value == int(value):
        return number(value)
    return f"{value:#.3g}"


def between(low: float, high: float) -> str:
    """An interval in a column: `16.0-19.4`, `-0.01 to 0.02`."""
    return f"{digits(low)}{'-' if low >= 0 else ' to '}{digits(high)}"


def percent(share: float | None) -> str:
    """A share as `0.13 %`."""
    return "-" if share is None else f"{number(100 * share)} %"


def amount(metric: str, value: float | None) -> str:
    """A value of a metric as it stands in a sentence: `delta LM loss 0.2`, `12 features above 10 %`."""
    return _AMOUNTS[metric].format(bare(metric, value))


def bare(metric: str, value: float | None) -> str:
    """A value of a metric: `12`, or `0.06 %` for a share."""
    return percent(value) if metric in SHARES else number(value)


def setting_label(setting: Mapping[str, Any]) -> str:
    """`l0 = 16`, `lambda = 0.0006`, `k = 32`: as it can stand in a study."""
    return f"{setting['kind']} = {setting['value']:.6g}"
