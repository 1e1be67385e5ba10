"""Convergence of L0, and the sentence that comes when something is wrong, on made-up logs with known answers."""

from __future__ import annotations

from typing import Any

import pytest

from jumpahead.diagnostics import (
    DIAGNOSTICS,
    MAX_PRESSURE,
    MIN_PRESSURE,
    Convergence,
    final_diagnostics,
    held_out_l0_warning,
    l0_convergence,
    requested_l0,
    training_warnings,
)

WIDTH = 200


def log(l0s: list[float], dead: float = 0.0, measured: dict[str, float] | None = None, **fields: Any) -> list[dict]:
    """Lines every 3 steps; `dead` a share, `measured` the health of every seventh and of the last line."""
    lines: list[dict] = []
    for i, l0 in enumerate(l0s):
        line: dict = {"step": 3 * (i + 1), "l0": l0, "dead": round(dead * WIDTH), **fields}
        if measured is not None and (i % 7 == 6 or i + 1 == len(l0s)):
            line["health"] = dict(measured)
        lines.append(line)
    return lines


def said(lines: list[dict], kind: str = "lambda", value: float = 0.02) -> str:
    return " ".join(training_warnings(lines, {"kind": kind, "value": value}, WIDTH))


# ---------------------------------------------------------------------------------------------- convergence


def test_convergence_by_hand() -> None:
    """100 lines: windows of 5. Lines 0 … 39 are 25 % off, so window 40 is the first without any of them."""
    lines = log([20.0] * 40 + [16.2] * 60)
    found = l0_convergence(lines, 16.0)
    # Window 39 holds one of them: (20 + 4·16.2)/5 = 16.96 is 6 % off.
    assert found == Convergence(16.0, pytest.approx(16.2), step=120, share=pytest.approx(120 / 300))


def test_a_single_outlier_within_the_mean_does_not_undo_convergence() -> None:
    """(16 + 16 + 16 + 16 + 18)/5 = 16.4 is 2.5 % off; with 19 it is 3.75 %."""
    quiet, loud = ([16.0] * 50 + [outlier] + [16.0] * 49 for outlier in (18.0, 19.0))
    assert l0_convergence(log(quiet), 16.0) == Convergence(16.0, 16.0, 0, 0.0)
    found = l0_convergence(log(loud), 16.0)
    assert found is not None
    assert found.step == 3 * 51  # the outlier's own step is the last line before it


def test_windows_are_a_twentieth_of_the_lines() -> None:
    """400 lines: windows of 20, so (19·10 + 15)/20 = 10.25 is 2.5 % off and passes."""
    assert l0_convergence(log([10.0] * 200 + [15.0] + [10.0] * 199), 10.0) == Convergence(10.0, 10.0, 0, 0.0)


def test_leaving_at_the_end_is_no_convergence() -> None:
    found = l0_convergence(log([16.0] * 95 + [17.0] * 5), 16.0)
    assert found == Convergence(16.0, 17.0, None, None)


def test_few_lines_and_none() -> None:
    assert l0_convergence([], 16.0) is None
    assert l0_convergence(log([6.0, 2.0]), 4.0) == Convergence(4.0, 4.0, 0, 0.0)
    assert l0_convergence(log([7.0] * 9), None) == Convergence(None, 7.0, None, None)
    assert training_warnings([], {"kind": "l0", "value": 4}, WIDTH) == []
    assert final_diagnostics([]) == final_diagnostics(log([7.0])) == {}


def test_what_asks_for_an_l0() -> None:
    assert [requested_l0({"kind": kind, "value": 6}) for kind in ("l0", "k", "lambda")] == [6.0, 6.0, None]


def test_last_values_with_the_travel_of_the_whole_run() -> None:
    lines = log([7.0] * 14)
    lines[3]["health"] = {"dead": 0.5, "threshold_travel": 6.25}
    lines[13]["health"] = {"dead": 0.25, "threshold_travel": 0.0}
    assert final_diagnostics(lines) == {"dead": 0.25, "threshold_travel": 6.25}
    assert final_diagnostics([{**lines[3], "health": {"dead": 0.5}}]) == {"dead": 0.5}


# ---------------------------------------------------------------------------------------------- verdicts

GOOD = {"sparsity_gradient_ratio": 0.9, "lambda": 0.02, "threshold_travel": 6.0, "window_features": 0.8, "dead": 0.0}


@pytest.mark.parametrize(("kind", "value"), [("lambda", 0.02), ("l0", 16.0), ("k", 16.0)])
def test_a_healthy_training_has_no_verdict(kind: str, value: float) -> None:
    lines = log([40.0] * 20 + [16.1] * 80, 0.29, GOOD, **{"lambda": 0.02})
    assert training_warnings(lines, {"kind": kind, "value": value}, WIDTH) == []
    for line in lines:
        line.pop("health", None)  # a log from before it was measured
    assert training_warnings(lines, {"kind": kind, "value": value}, WIDTH) == []


def test_lambda_where_l0_no_longer_follows_it() -> None:
    assert said(log([1.52] * 100, measured={**GOOD, "sparsity_gradient_ratio": 107.0, "lambda": 10.0}), value=10.0) == (
        "lambda = 10 outweighs the reconstruction 107 times in the gradient that sets sparsity: there L0 (1.52 "
        "reached) hardly follows lambda. Lower it; 0.09 would balance the two."
    )
    assert said(log([60.0] * 100, measured={**GOOD, "sparsity_gradient_ratio": 0.009, "lambda": 1e-5}), value=1e-5) == (
        "lambda = 1e-05 weighs 0.009 of the reconstruction in the gradient that sets sparsity: it has "
        "no effect on L0 (60 reached). Raise it."
    )
    edges = [MAX_PRESSURE * 0.99, MIN_PRESSURE * 1.01]
    assert [said(log([6.0] * 100, measured={**GOOD, "sparsity_gradient_ratio": edge})) for edge in edges] == ["", ""]


def test_a_controller_whose_lambda_l0_no_longer_follows() -> None:
    lines = log([16.0] * 100, measured={**GOOD, "sparsity_gradient_ratio": 11.4, "lambda": 0.129}, **{"lambda": 0.129})
    assert said(lines, "l0", 16.0).startswith(
        "The controller's lambda, 0.129, outweighs the reconstruction 11.4 times in the gradient that sets sparsity: "
        "L0 (16 reached) no longer follows lambda"
    )


def test_a_budget_too_short_for_thresholds() -> None:
    """The paper's recipe for 300,000 tokens; a requested L0 that is reached by steering in time says nothing of it."""
    measured = {**GOOD, "threshold_travel": 0.00113}
    lines = log([459.0] * 100, measured=measured, **{"lambda": 0.02})
    expected = (
        "Thresholds could hardly move: the learning rates of the whole run add up to 0.00113 nats of log threshold"
    )
    assert said(lines).startswith(expected)
    assert said(lines, "l0", 16.0).startswith(expected)
    assert said(lines, "l0", 459.0) == ""


def test_an_empty_window() -> None:
    """A gradient in a share q of the steps carries Adam sqrt(q) as far: 6 nats times 0.08 are too few, 0.1 not."""
    found = said(log([6.0] * 100, measured={**GOOD, "window_features": 0.0064}))
    assert found.startswith("Thresholds get almost no gradient: 0.64 % of the features have a pre-activation in their")
    assert "raise the recipe's bandwidth_share" in found
    assert said(log([6.0] * 100, measured={**GOOD, "window_features": 0.01})) == ""


def test_lambda_still_warming_up() -> None:
    found = said(log([6.0] * 100, measured={"sparsity_gradient_ratio": 0.001, "lambda": 0.003}))
    assert found.startswith("lambda was still warming up when training ended, at 0.003 of 0.02: raise train.tokens")


def test_l0_still_moving_where_none_was_asked_for() -> None:
    """101 lines, windows of 5: the one at 80 % is all 50, the last one 53."""
    lines = log([50.0] * 85 + [53.0] * 16, measured=GOOD)
    assert said(lines) == (
        "L0 was still changing when training ended: 50 at 80 % of training, 53 at the end: raise train.tokens."
    )
    assert said(log([50.0] * 85 + [52.0] * 16, measured=GOOD)) == ""


def test_a_requested_l0_that_came_late_or_never() -> None:
    late = log([20.0] * 85 + [16.0] * 15, measured=GOOD)
    assert said(late, "l0", 16.0) == (
        "L0 stayed within 3 % of the requested 16 only from 85 % of training on (step 255 of 300): raise train.tokens."
    )
    never = log([67.2] * 100, measured=GOOD, **{"lambda": 0.04})
    for line in never[:80]:
        line["lambda"] = 0.032
    assert said(never, "l0", 64.0) == (
        "L0 = 64 was requested and 67.2 reached on the training text, 5 % above; lambda changed by a "
        "factor of 1.25 in the last fifth: raise train.tokens."
    )
    assert said(
        log([67.2] * 100, measured={**GOOD, "sparsity_gradient_ratio": 20.0}), "l0", 64.0
    ) == (  # a loss of L0, no controller
        "L0 = 64 was requested and 67.2 reached on the training text, 5 % above; a fixed weight of 0.02 moves it "
        "there: raise train.tokens, or that weight."
    )
    assert said(log([48.0] * 100), "k", 64.0) == (
        "L0 = 64 was requested and 48 reached on the training text, 25 % below: too few pre-activations are positive; "
        "request a smaller L0, or raise train.tokens."
    )


def test_an_l0_that_held_out_text_misses() -> None:
    assert held_out_l0_warning(None, 40.0, 0.1) is None
    assert held_out_l0_warning(32.0, 32.9, 0.1) is None
    assert held_out_l0_warning(32.0, 31.1, 0.1) is None
    assert held_out_l0_warning(32.0, 40.0, 0.5) == (
        "L0 = 32 was requested, and held-out text has 40 active features per token, 25 % above: request 25.6 instead, "
        "or raise train.tokens."
    )
    assert held_out_l0_warning(32.0, 30.0, 1.5) == (
        "L0 = 32 was requested, and held-out text has 30 active features per token, 6.25 % below, within the sampling "
        "error: hold out more text to tell."
    )
    assert "within the sampling error" in (held_out_l0_warning(32.0, 30.0, float("inf")) or "")


def test_many_dead_features() -> None:
    lines = log([6.0] * 100, 0.5, measured=GOOD)
    counted = "of the 200 features had not fired for dead_after_tokens tokens at the end"
    before = f"50 % {counted}, and no fewer than a fifth before: "
    assert said(lines) == f"{before}lower sae.width, or lower lambda."
    assert said(lines, "l0", 6.0) == f"{before}lower sae.width, or request a larger L0."
    for line in lines[:80]:
        line["dead"] = 120
    assert said(lines) == (f"50 % {counted}, 60 % were a fifth before: raise train.tokens.")


def test_every_measure_is_declared_once() -> None:
    keys = [one.key for one in DIAGNOSTICS]
    assert len(set(keys)) == len(keys)
