"""Diagnostics of a finished training, from its log: convergence of L0, and warnings that say what to change.

    lines    those of train.jsonl: `step`, `l0`, `dead` in each; `lambda` if a controller moves it; `health` in some
             (`engine/step_diagnostics.py` measures them)

Pure functions of these lines. A warning is one sentence with the numbers it rests on and the setting to change; a
healthy training has none. No torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.formatting import TOKENS, SampleUnit, format_number

Line = Mapping[str, Any]

L0_TOLERANCE = 0.03
"""Accepted relative distance from the requested L0. A mean over 5 % of the lines has a standard error of 1 %."""
SMOOTHING_FRACTION = 20
"""L0 is averaged over 1/20 of the lines, 5 %."""
SMOOTHING_MIN_LINES = 5
"""Lines to average over at least: the L0 of one batch is off by 2 % and more."""
LATE_SHARE = 0.8
"""Share of training after which convergence of L0 leaves features no time to adapt to it."""
DRIFT_TOLERANCE = 0.05
"""Relative change of L0 in the last fifth that is accepted if none was requested. Healthy short runs stay below."""
MAX_PRESSURE = 10.0
"""Pressure above which L0 no longer follows λ. At convergence it is about 1. From 1.5 to 107, a hundred times the λ
lowered L0 by a quarter only (JumpReLU, 146 steps, width 1,024)."""
MIN_PRESSURE = 0.02
"""Pressure below which λ has no effect: at 0.009 and 1e-5 the same runs had the same L0 to 0.5 %, at 0.24 not."""
MIN_THRESHOLD_TRAVEL = 0.5
"""Nats of log θ that a run must allow: L0 falls about with the third power of θ, so this is a factor of 4 in L0."""
MAX_DEAD_SHARE = 0.3
"""Share of dead features above which a warning is due."""


class Diagnostic(NamedTuple):
    """The declaration of one diagnostic."""

    key: str
    """Its name in the log."""
    short: str
    """Heading of its column."""
    unit: str
    """`share` for shares of 1, shown as percentages."""
    meaning: str
    """A sentence; `{unit.plural}` is replaced by tokens or rows."""

    def declaration(self, unit: SampleUnit) -> dict[str, str]:
        """Return the fields for JSON, with the name of the unit filled in."""
        return self._asdict() | {"meaning": self.meaning.format(unit=unit)}


DIAGNOSTICS = (
    Diagnostic("lambda", "λ", "", "The weight of the sparsity term in force at the end"),
    Diagnostic("sparsity_gradient_ratio", "sparsity", "× reconstruction", "Norm of the sparsity term’s gradient over that "
            "of the reconstruction’s, where sparsity is set; about 1 at convergence, far above 1 L0 no longer follows λ"),
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
    Diagnostic("dead", "dead", "share", "Features that had been silent for the recipe’s dead_after "
            "{unit.plural} at the end"),
    Diagnostic("above_1pct", "above 1 %", "share", "Features that fired on more than 1 % of the last batch"),
    Diagnostic("above_10pct", "above 10 %", "share", "Features that fired on more than 10 % of the last batch"),
)  # fmt: skip
"""Those that pages show, in this order. The files also have the quantiles of θ at 25 and 75 %."""


class Convergence(NamedTuple):
    """Convergence of L0 in one training."""

    requested: float | None
    """The requested L0; None if λ was given."""
    reached: float
    """Mean over the last 5 % of the lines."""
    step: int | None
    """The step after which the smoothed L0 stayed within `L0_TOLERANCE` of the requested one; None if it never did."""
    share: float | None
    """The same as a share of training."""


def requested_l0(setting: Mapping[str, Any]) -> float | None:
    """Return the L0 that a setting {kind, value} requests; None for λ."""
    return float(setting["value"]) if setting["kind"] in ("l0", "k") else None


def l0_convergence(lines: Sequence[Line], requested: float | None) -> Convergence | None:
    """Return when L0 came to stay at the requested one; None without lines.

    Window k is the mean of lines k … k + w − 1, w = 5 % of the lines. `reached` is the last window; converged is the
    first from which on all windows are within the tolerance, and `step` is that of the last line before it.
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
    """Return the moving averages of L0."""
    size = min(len(lines), max(SMOOTHING_MIN_LINES, len(lines) // SMOOTHING_FRACTION))
    return [math.fsum(line["l0"] for line in lines[k : k + size]) / size for k in range(len(lines) - size + 1)]


def last_diagnostics(lines: Sequence[Line]) -> dict[str, float]:
    """Return the last diagnostics, with the threshold travel of the whole run instead of the remaining one, 0."""
    found = _diagnostics_of(lines)
    if not found:
        return {}
    return {**found[-1], **({"threshold_travel": found[0]["threshold_travel"]} if "threshold_travel" in found[0] else {})}


def _diagnostics_of(lines: Sequence[Line]) -> list[Mapping[str, float]]:
    """Return the diagnostics of the lines that have some."""
    return [line["health"] for line in lines if line.get("health")]


# ---------------------------------------------------------------------------------------------- warnings


def training_warnings(
    lines: Sequence[Line], setting: Mapping[str, Any], width: int, unit: SampleUnit = TOKENS
) -> list[str]:
    """Return at most one sentence on sparsity and one on dead features; none for a healthy training.

    setting: {kind, value}. width: number of features. unit: what activations are called.
    """
    if not lines:
        return []
    found = (_sparsity_warning(lines, setting, unit), _dead_features_warning(lines, width, requested_l0(setting)))
    return [sentence for sentence in found if sentence]


def _sparsity_warning(lines: Sequence[Line], setting: Mapping[str, Any], unit: SampleUnit) -> str | None:
    """Return the first warning that applies: later ones are often its consequences."""
    requested, last = requested_l0(setting), last_diagnostics(lines)
    found = l0_convergence(lines, requested)
    assert found is not None
    if requested is None:
        fixed = _fixed_lambda_warning(last, float(setting["value"]), found.reached)
        return _threshold_warning(last) or fixed or _drift_warning(lines)
    is_in_time = found.share is not None and found.share <= LATE_SHARE
    if not is_in_time and (warning := _threshold_warning(last)):
        return warning
    if "lambda" in lines[-1] and (warning := _controller_warning(last, found)):
        return warning
    return None if is_in_time else _request_warning(lines, found, unit)


def _threshold_warning(last: Mapping[str, float]) -> str | None:
    """Return a warning if thresholds cannot be trained in this run."""
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
    """Return a warning if L0 does not follow a fixed λ."""
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
    """Return a warning if an L0 that was not requested still changes at the end."""
    means = _smoothed_l0(lines)
    before, after = means[int(LATE_SHARE * (len(means) - 1))], means[-1]
    if abs(after - before) <= DRIFT_TOLERANCE * before:
        return None
    return (
        f"L0 was still changing when training ended: {format_number(before)} at {100 * LATE_SHARE:g} % of training, "
        f"{format_number(after)} at the end: raise train.tokens."
    )


def _controller_warning(last: Mapping[str, float], found: Convergence) -> str | None:
    """Return a warning if only the controller's common shift of all thresholds holds L0."""
    pressure = last.get("sparsity_gradient_ratio", 0.0)
    if pressure <= MAX_PRESSURE:
        return None
    return (
        f"The controller's lambda, {format_number(last['lambda'])}, outweighs the reconstruction "
        f"{format_number(pressure)} times in the gradient that sets sparsity: L0 ({format_number(found.reached)} "
        "reached) no longer follows lambda, and training does not choose which features fire: raise train.tokens, or "
        "train.lr."
    )


def _request_warning(lines: Sequence[Line], found: Convergence, unit: SampleUnit) -> str:
    """Return a warning that the requested L0 was missed, or reached late."""
    requested, reached, step, share = found
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
        if weight := last_diagnostics(lines).get("lambda"):
            held = f"a fixed weight of {format_number(weight)} moves it there"
            return f"{said}; {held}: raise train.tokens, or that weight."
        return f"{said}: too few pre-activations are positive; request a smaller L0, or raise train.tokens."
    moved = lines[-1]["lambda"] / lines[int(LATE_SHARE * (len(lines) - 1))]["lambda"]
    return f"{said}; lambda changed by a factor of {format_number(moved)} in the last fifth: raise train.tokens."


def _dead_features_warning(lines: Sequence[Line], width: int, requested: float | None) -> str | None:
    """Return a warning if too many features are dead, saying whether more tokens would help."""
    now, before = (lines[i]["dead"] / width for i in (-1, int(LATE_SHARE * (len(lines) - 1))))
    if now <= MAX_DEAD_SHARE:
        return None
    said = f"{_percent(now)} of the {width:,} features are dead at the end of training"
    if now < before * (1 - DRIFT_TOLERANCE):
        return f"{said}, {_percent(before)} were a fifth before: raise train.tokens."
    advice = "lower lambda" if requested is None else "request a larger L0"
    return f"{said}, and no fewer than a fifth before: lower sae.width, or {advice}."


def _percent(share: float) -> str:
    """Return a share of 1 as a percentage."""
    return f"{format_number(100 * share)} %"
