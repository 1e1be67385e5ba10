"""The training logs of a run as curves for the page: L0, FVU and thresholds against the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumpahead.formatting import format_setting
from jumpahead.storage.json_files import read_json_lines
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import SAESpec

LINE_KEYS = ("l0", "fvu")
"""Keys that every line of a log has."""
THRESHOLD_KEYS = ("theta_05", "theta_25", "theta_50", "theta_75", "theta_95")
"""Quantiles of the thresholds, which some lines have, in `health`; only of architectures with thresholds."""
DIGITS = 4
"""Significant digits of the values."""


def training_records(specs: Sequence[SAESpec], run: Run, steps: int) -> list[dict[str, Any]]:
    """Return the training curves of the SAEs that have a log, as JSON values, in the order of `specs`.

    steps: the number of steps of a finished training. Each record has `lines`, {"step", "l0", "fvu"}, and `thresholds`,
    {"step", "theta_05", …}, as lists of equal length; `thresholds` is empty for architectures without thresholds.
    """
    return [_record(spec, run, steps) for spec in specs if run.sae_folder(spec.key).log.is_file()]


def _record(spec: SAESpec, run: Run, steps: int) -> dict[str, Any]:
    """Return the training curves of one SAE."""
    lines = read_json_lines(run.sae_folder(spec.key).log)
    measured = [{"step": line["step"], **line["health"]} for line in lines if line.get("health")]
    with_thresholds = [line for line in measured if all(key in line for key in THRESHOLD_KEYS)]
    return {
        "site": spec.site,
        "width": spec.width,
        "series": spec.series.name,
        "label": format_setting(spec.setting._asdict()),
        "sae_seed": spec.sae_seed,
        "stream_seed": spec.stream_seed,
        "path": spec.key,
        "steps": steps,
        "lines": _columns(lines, LINE_KEYS),
        "thresholds": _columns(with_thresholds, THRESHOLD_KEYS),
    }


def _columns(lines: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, list[float]]:
    """Return the steps and the values of some keys as lists, rounded; empty for no lines."""
    if not lines:
        return {}
    rounded = {key: [float(f"{line[key]:.{DIGITS}g}") for line in lines] for key in keys}
    return {"step": [int(line["step"]) for line in lines], **rounded}
