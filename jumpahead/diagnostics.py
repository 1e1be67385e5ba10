"""Diagnostics of a finished training, from its log: convergence of L0, and warnings that say what to change.

    lines    the lines of train.jsonl: each has `step`, `l0` and `dead`; `lambda` if a controller sets λ; some have
             `health`, the diagnostics that `engine/step_diagnostics.py` measures

All functions are pure functions of these lines. A warning is one sentence with the measured numbers and the option to
change; a healthy training has no warnings. Imports neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.formatting import TOKENS, SampleUnit, format_number

Line = Mapping[str, Any]
"""A line of train.jsonl."""

L0_TOLERANCE = 0.03
"""Accepted relative deviation from the requested L0. Averages over 5 % of the lines have a standard error of 1 %."""
SMOOTHING_FRACTION = 20
"""L0 is averaged over windows of 1/20 (5 %) of the lines."""
SMOOTHING_MIN_LINES = 5
"""Minimum number of lines in an averaging window: the L0 of one batch deviates by 2 % or more from the mean."""
LATE_SHARE = 0.8
"""Share of training by which L0 should have converged, so that features have time to adapt."""
DRIFT_TOLERANCE = 0.05
"""Accepted relative change of L0 in the last fifth of training with a fixed λ. Healthy short runs change less."""
MAX_PRESSURE = 10.0
"""Upper limit of the pressure: the norm of the sparsity term's gradient divided by that of the reconstruction's. Above
it, L0 no longer follows λ; at convergence it is about 1. When a 100 times larger λ raised the pressure from 1.5 to 107,
L0 fell by only a quarter (JumpReLU, 146 steps, width 1,024)."""
MIN_PRESSURE = 0.02
"""Lower limit of the pressure, below which λ has no effect: runs with pressures 0.009 and 1e-5 had L0 equal to 0.5 %, a
run with pressure 0.24 had a different L0."""
MIN_THRESHOLD_TRAVEL = 0.5
"""Minimum distance, in nats, that log θ must be able to move in a run: L0 falls about as θ⁻³, so 0.5 nats change L0 by
a factor of 4."""
MAX_DEAD_SHARE = 0.3
"""Share of dead features above which a warning is given."""


class Diagnostic(NamedTuple):
    """The metadata of one diagnostic: its key, unit and description."""

    key: str
    """Key of the diagnostic in `health` of the log."""
    short: str
    """Column heading in tables."""
    unit: str
    """Unit of the value; `share` for fractions, which tables show as percentages."""
    meaning: str
    """Description in one sentence; `{unit.plural}` in it is replaced by `tokens` or `rows`."""

    def declaration(self, unit: SampleUnit) -> dict[str, str]:
        """Return the metadata as a dict for JSON.

        unit: names the samples (tokens or rows) in the description.
        """
        return self._asdict() | {"meaning": self.meaning.format(unit=unit)}


DIAGNOSTICS = (
    Diagnostic("lambda", "λ", "", "The weight of the sparsity term in force at the end"),
    Diagnostic("sparsity_gradient_ratio", "sparsity", "× reconstruction", "Norm of the sparsity term’s gradient over "
            "that of the reconstruction’s, where sparsity is set; about 1 at convergence, far above 1 L0 no longer "
            "follows λ"),
    Diagnostic("theta_in_sqrt_lambda", "median θ", "√λ", "The median threshold in units of √λ; 1 to 1.5 at "
            "convergence. Where an L0 was requested λ follows the thresholds, and this is what the controller moved"),
    Diagnostic("theta_05", "θ, 5 %", "‖x‖", "5 % quantile of the thresholds, activations scaled to E‖x‖² = 1"),
    Diagnostic("theta_50", "θ, 50 %", "‖x‖", "Median threshold, activations scaled to E‖x‖² = 1"),
    Diagnostic("theta_95", "θ, 95 %", "‖x‖", "95 % quantile of the thresholds, activations scaled to E‖x‖² = 1"),
    Diagnostic("window", "in window", "share", "Pre-activations within their threshold’s window, θ ± ε/2: they alone "
            "train thresholds"),
    Diagnostic("window_features", "features in window", "share", "Features with a pre-activation in their threshold’s "
            "window in one batch"),
    Diagnostic("threshold_travel", "travel", "nats", "How far the learning rates of the whole run can move log θ"),
    Diagnostic("dead", "dead", "share", "Features that had not fired for the recipe’s dead_after_tokens "
            "{unit.plural} at the end"),
    Diagnostic("above_1pct", "above 1 %", "share", "Features that fired on more than 1 % of the last batch"),
    Diagnostic("above_10pct", "above 10 %", "share", "Features that fired on more than 10 % of the last batch"),
)  # fmt: skip
"""The diagnostics that pages show, in this order. The log also has the 25 % and 75 % quantiles of θ."""


class Convergence(NamedTuple):
    """Convergence of L0 in the training of one SAE: the value that it reached, and the step."""

    requested: float | None
    """The requested L0; None if a fixed λ was given instead."""
    reached: float
    """Mean L0 over the last 5 % of the lines."""
    step: int | None
    """The step after which the smoothed L0 stayed within `L0_TOLERANCE` of the requested one; None if it never did."""
    share: float | None
    """`step` as a share of all training steps; None if `step` is None."""


def requested_l0(setting: Mapping[str, Any]) -> float | None:
    """Return the L0 (or k) that a sparsity setting {kind, value} requests; None for a fixed λ."""
    return float(setting["value"]) if setting["kind"] in ("l0", "k") else None


def l0_convergence(lines: Sequence[Line], requested: float | None) -> Convergence | None:
    """Return when L0 converged to the requested L0; None if there are no lines.

    L0 is averaged over a moving window of 5 % of the lines. `reached` is the last average. L0 has converged from the
    first window after which all averages are within `L0_TOLERANCE`; `step` is the step of the line before that window.
    """
    if not lines:
        return None
    means = _smoothed_l0(lines)
    if requested is None:
        return Convergence(None, means[-1], None, None)
    first = len(means)
    while first > 0 and abs(means[first - 1] / requested - 1) <= L0_TOLERANCE:
        first -= 1
    if first == len(means):
        return Convergence(requested, means[-1], None, None)
    step = int(lines[first - 1]["step"]) if first else 0
    return Convergence(requested, means[-1], step, step / int(lines[-1]["step"]))


def _smoothed_l0(lines: Sequence[Line]) -> list[float]:
    """Return the moving averages of L0 over windows of 5 % of the lines, from first to last."""
    size = min(len(lines), max(SMOOTHING_MIN_LINES, len(lines) // SMOOTHING_FRACTION))
    return [math.fsum(line["l0"] for line in lines[k : k + size]) / size for k in range(len(lines) - size + 1)]


def final_diagnostics(lines: Sequence[Line]) -> dict[str, float]:
    """Return the diagnostics in the last line that has them, by key; empty if no line has diagnostics.

    The threshold travel is taken from the first diagnostics, where it covers the whole run; at the end it is 0.
    """
    diagnostics = _diagnostics_of(lines)
    if not diagnostics:
        return {}
    first, last = diagnostics[0], diagnostics[-1]
    return {**last, **({"threshold_travel": first["threshold_travel"]} if "threshold_travel" in first else {})}


def _diagnostics_of(lines: Sequence[Line]) -> list[Mapping[str, float]]:
    """Return the diagnostics of all lines that have diagnostics, in order."""
    return [line["health"] for line in lines if line.get("health")]


# ---------------------------------------------------------------------------------------------- warnings


def training_warnings(
    lines: Sequence[Line], setting: Mapping[str, Any], width: int, unit: SampleUnit = TOKENS
) -> list[str]:
    """Return warnings about a finished training: at most one on sparsity and one on dead features.

    setting: the sparsity setting {kind, value}.
    width: number of features.
    unit: names the samples (tokens or rows) in sentences.
    """
    if not lines:
        return []
    warnings = (_sparsity_warning(lines, setting, unit), _dead_features_warning(lines, width, setting, unit))
    return [warning for warning in warnings if warning]


def _sparsity_warning(lines: Sequence[Line], setting: Mapping[str, Any], unit: SampleUnit) -> str | None:
    """Return the first sparsity warning that applies, else None; warnings that follow are often consequences of it."""
    requested, last = requested_l0(setting), final_diagnostics(lines)
    convergence = l0_convergence(lines, requested)
    assert convergence is not None
    if requested is None:
        fixed = _fixed_lambda_warning(last, float(setting["value"]), convergence.reached)
        return _threshold_warning(last) or fixed or _drift_warning(lines)
    is_in_time = convergence.share is not None and convergence.share <= LATE_SHARE
    if not is_in_time and (warning := _threshold_warning(last)):
        return warning
    if "lambda" in lines[-1] and (warning := _controller_warning(last, convergence)):
        return warning
    return None if is_in_time else _request_warning(lines, convergence, unit)


def _threshold_warning(last: Mapping[str, float]) -> str | None:
    """Return a warning if thresholds cannot be trained in this run, else None.

    last: the diagnostics at the end of training, by key.
    """
    if "threshold_travel" not in last:
        return None
    travel, in_window = last["threshold_travel"], last["window_features"]
    if travel < MIN_THRESHOLD_TRAVEL:
        return (
            f"Thresholds could hardly move: the learning rates of the whole run add up to {format_number(travel)} nats "
            f"of log threshold, and choosing L0 takes {MIN_THRESHOLD_TRAVEL:g} or more: raise train.tokens, or the "
            'recipe\'s threshold_rate, or train with train.recipe = "short".'
        )
    if travel * math.sqrt(in_window) < MIN_THRESHOLD_TRAVEL:
        # Adam with a gradient in a share q of the steps moves a parameter √q as far.
        return (
            f"Thresholds get almost no gradient: {_percent(in_window)} of the features have a pre-activation in their "
            "threshold's window in a batch: raise the recipe's bandwidth_share (or bandwidth), or train.batch."
        )
    return None


def _fixed_lambda_warning(last: Mapping[str, float], value: float, reached: float) -> str | None:
    """Return a warning if L0 does not follow a fixed λ, else None.

    last: the diagnostics at the end of training, by key.
    value: λ of the sparsity setting.
    reached: mean L0 at the end.
    """
    pressure, now, l0 = last.get("sparsity_gradient_ratio"), last.get("lambda", value), format_number(reached)
    if now < value * (1 - L0_TOLERANCE):
        return (
            f"lambda was still warming up when training ended, at {format_number(now)} of {format_number(value)}: "
            'raise train.tokens, or train with train.recipe = "short".'
        )
    if pressure is not None and pressure > MAX_PRESSURE:
        return (
            f"lambda = {format_number(value)} outweighs the reconstruction {format_number(pressure)} times in the "
            f"gradient that sets sparsity: there L0 ({l0} reached) hardly follows lambda. Lower it; "
            f"{float(f'{value / pressure:.1g}'):g} would balance the two."
        )
    if pressure is not None and pressure < MIN_PRESSURE:
        return (
            f"lambda = {format_number(value)} weighs {format_number(pressure)} of the reconstruction in the gradient "
            f"that sets sparsity: it has no effect on L0 ({l0} reached). Raise it."
        )
    return None


def _drift_warning(lines: Sequence[Line]) -> str | None:
    """Return a warning if L0 under a fixed λ still changes at the end of training, else None."""
    means = _smoothed_l0(lines)
    before, after = means[int(LATE_SHARE * (len(means) - 1))], means[-1]
    if abs(after - before) <= DRIFT_TOLERANCE * before:
        return None
    return (
        f"L0 was still changing when training ended: {format_number(before)} at {100 * LATE_SHARE:g} % of training, "
        f"{format_number(after)} at the end: raise train.tokens."
    )


def _controller_warning(last: Mapping[str, float], convergence: Convergence) -> str | None:
    """Return a warning if L0 is kept only by the controller's shift of all thresholds, and not by λ; else None.

    last: the diagnostics at the end of training, by key.
    """
    pressure = last.get("sparsity_gradient_ratio", 0.0)
    if pressure <= MAX_PRESSURE:
        return None
    return (
        f"The controller's lambda, {format_number(last['lambda'])}, outweighs the reconstruction "
        f"{format_number(pressure)} times in the gradient that sets sparsity: L0 ({format_number(convergence.reached)} "
        "reached) no longer follows lambda, and training does not choose which features fire: raise train.tokens, or "
        "train.lr."
    )


def _request_warning(lines: Sequence[Line], convergence: Convergence, unit: SampleUnit) -> str:
    """Return a warning that the requested L0 was missed, or reached too late in training."""
    requested, reached, step, share = convergence
    assert requested is not None
    if step is not None and share is not None:
        return (
            f"L0 stayed within {100 * L0_TOLERANCE:g} % of the requested {format_number(requested)} only from "
            f"{100 * share:.0f} % of training on (step {step:,} of {lines[-1]['step']:,}): raise train.tokens."
        )
    off = f"{_percent(abs(reached / requested - 1))} {'above' if reached > requested else 'below'}"
    said = (
        f"L0 = {format_number(requested)} was requested and {format_number(reached)} reached on the training "
        f"{unit.text}, {off}"
    )
    if "lambda" not in lines[-1]:
        if weight := final_diagnostics(lines).get("lambda"):
            held = f"a fixed weight of {format_number(weight)} moves it there"
            return f"{said}; {held}: raise train.tokens, or that weight."
        return f"{said}: too few pre-activations are positive; request a smaller L0, or raise train.tokens."
    moved = lines[-1]["lambda"] / lines[int(LATE_SHARE * (len(lines) - 1))]["lambda"]
    return f"{said}; lambda changed by a factor of {format_number(moved)} in the last fifth: raise train.tokens."


def held_out_l0_warning(requested: float | None, l0: float, error: float, unit: SampleUnit = TOKENS) -> str | None:
    """Return a warning that an SAE misses its requested L0 on held-out data by more than `L0_TOLERANCE`, else None.

    requested: the requested L0; None if a fixed λ was given.
    l0: L0 on the held-out data.
    error: its standard error; ∞ for one document.
    unit: names the samples (tokens or rows) in sentences.
    """
    if requested is None or abs(l0 / requested - 1) <= L0_TOLERANCE:
        return None
    off = f"{_percent(abs(l0 / requested - 1))} {'above' if l0 > requested else 'below'}"
    said = (
        f"L0 = {format_number(requested)} was requested, and held-out {unit.text} has {format_number(l0)} active "
        f"features per {unit.singular}, {off}"
    )
    if abs(l0 - requested) < 2 * error:
        return f"{said}, within the sampling error: hold out more {unit.text} to tell."
    return f"{said}: request {format_number(requested**2 / l0)} instead, or raise train.tokens."


def _dead_features_warning(
    lines: Sequence[Line], width: int, setting: Mapping[str, Any], unit: SampleUnit
) -> str | None:
    """Return a warning if too many features are dead at the end of training, else None."""
    now, before = (lines[i]["dead"] / width for i in (-1, int(LATE_SHARE * (len(lines) - 1))))
    if now <= MAX_DEAD_SHARE:
        return None
    said = f"{_percent(now)} of the {width:,} features had not fired for dead_after_tokens {unit.plural} at the end"
    if now < before * (1 - DRIFT_TOLERANCE):
        return f"{said}, {_percent(before)} were a fifth before: raise train.tokens."
    advice = "lower lambda" if requested_l0(setting) is None else "request a larger L0"
    return f"{said}, and no fewer than a fifth before: lower sae.width, or {advice}."


def _percent(share: float) -> str:
    """Return a fraction formatted as a percentage, such as `12 %`."""
    return f"{format_number(100 * share)} %"
