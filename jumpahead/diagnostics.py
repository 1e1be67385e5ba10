"""Whether a training went well: when L0 settled, what the log says of thresholds, λ and features, and what to change.

    lines    train.jsonl: `step`, `l0`, `dead` in each; `lambda` where a controller moves it; `health` in some
             (`engine/watch.py` measures it)

Pure functions of these lines. A verdict is one plain sentence with the numbers it rests on and the knob to turn; a
healthy training has none. No torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.formatting import measured

Line = Mapping[str, Any]

TOLERANCE = 0.03
"""How near L0 must be to the one asked for. A mean over 5 % of the lines has a standard error of about 1 %."""
SMOOTHED = 20
"""L0 is averaged over this fraction of the lines, 5 %, …"""
FEWEST = 5
"""… and over at least so many: one batch's L0 is off by 2 % and more."""
LATE = 0.8
"""An L0 that settles after this share of training has no time left in which the features adapt to it."""
MOVING = 0.05
"""How much L0 may change in the last fifth where none was asked for. Healthy short runs stay below."""
HEAVY = 10.0
"""A pressure above which L0 no longer follows λ. At convergence it is about 1; at 107 a hundred times the λ of a run
with 1.5 took a quarter off its L0 (JumpReLU, 146 steps, width 1,024)."""
LIGHT = 0.02
"""A pressure below which λ has no say: at 0.009 and at 1e-5 the same runs had the same L0 to 0.5 %, at 0.24 not."""
REACH = 0.5
"""Nats that thresholds must be able to move in a run: L0 falls about as their third power, so this is a factor of 4."""
MOST_DEAD = 0.3
"""Share of dead features above which the width is not what it says."""


class Measure(NamedTuple):
    """One number that says how healthy a training is."""

    key: str
    """Its name in `health`."""
    short: str
    """For the heading of a column."""
    unit: str
    """`share` for shares of 1, shown as percentages."""
    meaning: str
    """In a sentence."""


MEASURES = (
    Measure("lambda", "λ", "", "The weight of the sparsity term in force at the end"),
    Measure("pressure", "sparsity", "× reconstruction", "Sparsity term’s gradient against the reconstruction’s where "
            "sparsity is set, norms over features; about 1 at convergence, far above 1 L0 no longer follows λ"),
    Measure("theta_in_sqrt_lambda", "median θ", "√λ", "The median threshold in units of √λ; 1 to 1.5 at "
            "convergence. Where an L0 was requested λ follows the thresholds, and this is what the controller moved"),
    Measure("theta_05", "θ, 5 %", "‖x‖", "5 % quantile of the thresholds, activations scaled to E‖x‖² = 1"),
    Measure("theta_50", "θ, 50 %", "‖x‖", "Median threshold, activations scaled to E‖x‖² = 1"),
    Measure("theta_95", "θ, 95 %", "‖x‖", "95 % quantile of the thresholds, activations scaled to E‖x‖² = 1"),
    Measure("window", "in window", "share", "Pre-activations within their threshold’s window, θ ± ε/2: they alone "
            "train thresholds"),
    Measure("window_features", "features in window", "share", "Features with a pre-activation in their threshold’s "
            "window in one batch"),
    Measure("travel", "travel", "nats", "How far log θ could move in the whole run by learning rate alone"),
    Measure("dead", "dead", "share", "Features that had been silent for the recipe’s dead_after tokens at the end"),
    Measure("above_1pct", "above 1 %", "share", "Features that fired on more than 1 % of the last batch"),
    Measure("above_10pct", "above 10 %", "share", "Features that fired on more than 10 % of the last batch"),
)  # fmt: skip
"""What pages show, in this order. Quantiles of θ at 25 and 75 % are in the files besides."""


class Settled(NamedTuple):
    """Where L0 went."""

    asked: float | None
    """The L0 asked for; None where λ was given."""
    reached: float
    """Mean over the last 5 % of the lines."""
    step: int | None
    """The step from which on the smoothed L0 stayed within `TOLERANCE` of the one asked for: 0 from the start, None
    never."""
    share: float | None
    """The same as a share of training."""


def asked_l0(setting: Mapping[str, Any]) -> float | None:
    """The L0 that a setting {kind, value} asks for; None for λ."""
    return float(setting["value"]) if setting["kind"] in ("l0", "k") else None


def settled(lines: Sequence[Line], asked: float | None) -> Settled | None:
    """When L0 came to stay where it was asked to be; None without lines.

    Smoothed: window k is the mean of lines k … k + w − 1, w = 5 % of the lines. The last window is `reached`; settled
    is the first from which on all windows are within the tolerance, and `step` the last line before it.
    """
    if not lines:
        return None
    means = _smoothed(lines)
    if asked is None:
        return Settled(None, means[-1], None, None)
    first = len(means)
    while first > 0 and abs(means[first - 1] / asked - 1) <= TOLERANCE:
        first -= 1
    if first == len(means):
        return Settled(asked, means[-1], None, None)
    step = int(lines[first - 1]["step"]) if first else 0
    return Settled(asked, means[-1], step, step / int(lines[-1]["step"]))


def _smoothed(lines: Sequence[Line]) -> list[float]:
    size = min(len(lines), max(FEWEST, len(lines) // SMOOTHED))
    return [math.fsum(line["l0"] for line in lines[k : k + size]) / size for k in range(len(lines) - size + 1)]


def last(lines: Sequence[Line]) -> dict[str, float]:
    """The last values of `health`, with the travel of the whole run instead of what is left of it, 0."""
    found = _measured(lines)
    if not found:
        return {}
    return {**found[-1], **({"travel": found[0]["travel"]} if "travel" in found[0] else {})}


def _measured(lines: Sequence[Line]) -> list[Mapping[str, float]]:
    return [line["health"] for line in lines if line.get("health")]


# ---------------------------------------------------------------------------------------------- verdicts


def verdicts(lines: Sequence[Line], setting: Mapping[str, Any], width: int) -> list[str]:
    """A sentence on sparsity and one on dead features, where something is wrong with them.

    setting: {kind, value}; width: features.
    """
    if not lines:
        return []
    found = (_on_sparsity(lines, setting), _on_dead(lines, width, asked_l0(setting)))
    return [sentence for sentence in found if sentence]


def _on_sparsity(lines: Sequence[Line], setting: Mapping[str, Any]) -> str | None:
    """The first cause that applies: those further down are often its consequences."""
    asked, health = asked_l0(setting), last(lines)
    where = settled(lines, asked)
    assert where is not None
    if asked is None:
        return _on_thresholds(health) or _on_lambda(health, float(setting["value"]), where.reached) or _on_drift(lines)
    is_there = where.share is not None and where.share <= LATE
    if not is_there and (found := _on_thresholds(health)):
        return found
    if "lambda" in lines[-1] and (found := _on_steering(health, where)):
        return found
    return None if is_there else _on_request(lines, where)


def _on_thresholds(health: Mapping[str, float]) -> str | None:
    """Whether thresholds can be trained at all in this run."""
    if "travel" not in health:
        return None
    travel, heard = health["travel"], health["window_features"]
    if travel < REACH:
        return (
            f"Thresholds could hardly move: the learning rates of the whole run add up to {measured(travel)} nats of log "
            f"threshold, and choosing L0 takes {REACH:g} or more: raise train.tokens, or the recipe's threshold_rate, "
            'or train with train.recipe = "short".'
        )
    if travel * math.sqrt(heard) < REACH:  # Adam with a gradient in a share q of the steps goes √q as far
        return (
            f"Thresholds hardly hear the data: {_percent(heard)} of the features have a pre-activation in their "
            "threshold's window in a batch: raise the recipe's bandwidth_share (or bandwidth), or train.batch."
        )
    return None


def _on_lambda(health: Mapping[str, float], value: float, reached: float) -> str | None:
    """Whether a fixed λ is where L0 follows it."""
    pressure, now = health.get("pressure"), health.get("lambda", value)
    if now < value * (1 - TOLERANCE):
        return (
            f"lambda was still warming up when training ended, at {measured(now)} of {measured(value)}: raise "
            'train.tokens, or train with train.recipe = "short".'
        )
    if pressure is not None and pressure > HEAVY:
        return (
            f"lambda = {measured(value)} outweighs the reconstruction {measured(pressure)} times in the gradient that sets "
            f"sparsity: there L0 ({measured(reached)} reached) hardly follows lambda. Lower it; "
            f"{float(f'{value / pressure:.1g}'):g} would balance the two."
        )
    if pressure is not None and pressure < LIGHT:
        return (
            f"lambda = {measured(value)} weighs {measured(pressure)} of the reconstruction in the gradient that sets "
            f"sparsity: L0 ({measured(reached)} reached) is not its doing. Raise it."
        )
    return None


def _on_drift(lines: Sequence[Line]) -> str | None:
    """Whether an L0 that nobody asked for stands still at the end."""
    means = _smoothed(lines)
    before, after = means[int(LATE * (len(means) - 1))], means[-1]
    if abs(after - before) <= MOVING * before:
        return None
    return (
        f"L0 was still moving when training ended: {measured(before)} at {100 * LATE:g} % of training, "
        f"{measured(after)} at the end: raise train.tokens."
    )


def _on_steering(health: Mapping[str, float], where: Settled) -> str | None:
    """Whether L0 is held by the controller's moving of all thresholds alone."""
    pressure = health.get("pressure", 0.0)
    if pressure <= HEAVY:
        return None
    return (
        f"The controller's lambda, {measured(health['lambda'])}, outweighs the reconstruction {measured(pressure)} times "
        f"in the gradient that sets sparsity: L0 ({measured(where.reached)} reached) no longer follows lambda, and "
        "training does not choose which features fire: raise train.tokens, or train.lr."
    )


def _on_request(lines: Sequence[Line], where: Settled) -> str:
    """That L0 is not, or came late, where it was asked to be."""
    asked, reached, step, share = where
    assert asked is not None
    if step is not None and share is not None:
        return (
            f"L0 stayed within {100 * TOLERANCE:g} % of the {measured(asked)} asked for only from {100 * share:.0f} % of "
            f"training on (step {step:,} of {lines[-1]['step']:,}): raise train.tokens."
        )
    off = f"{_percent(abs(reached / asked - 1))} {'above' if reached > asked else 'below'}"
    said = f"L0 = {measured(asked)} was asked for and {measured(reached)} reached on the training text, {off}"
    if "lambda" not in lines[-1]:
        if weight := last(lines).get("lambda"):
            return f"{said}; a fixed weight of {measured(weight)} draws it there: raise train.tokens, or that weight."
        return f"{said}: too few pre-activations are positive; ask for a smaller L0, or raise train.tokens."
    moved = lines[-1]["lambda"] / lines[int(LATE * (len(lines) - 1))]["lambda"]
    return f"{said}; lambda moved by a factor of {measured(moved)} in the last fifth: raise train.tokens."


def _on_dead(lines: Sequence[Line], width: int, asked: float | None) -> str | None:
    """Whether too many features are dead, and whether time would help."""
    now, before = (lines[i]["dead"] / width for i in (-1, int(LATE * (len(lines) - 1))))
    if now <= MOST_DEAD:
        return None
    said = f"{_percent(now)} of the {width:,} features are dead at the end of training"
    if now < before * (1 - MOVING):
        return f"{said}, {_percent(before)} were a fifth before: raise train.tokens."
    knob = "lower lambda" if asked is None else "ask for a larger L0"
    return f"{said}, and no fewer than a fifth before: lower sae.width, or {knob}."


def _percent(share: float) -> str:
    return f"{measured(100 * share)} %"
