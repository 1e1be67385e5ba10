"""Results on the final text: requested against reached L0, and the series compared at the same L0."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.result_lines import Lines
from benchmarks.sparsity.runs import BOOTSTRAPPED_METRICS, RequestedRun
from benchmarks.sparsity.setups import SETUPS
from benchmarks.table import render_table
from jumpahead.frontier.curve import Curve, Estimate, centre_replicates, estimate_with_interval
from jumpahead.sae.architectures import ARCHITECTURES

HELD_OUT_TOKENS = 220_000
TOKEN_BUDGETS = (2_000_000, 20_000_000)
L0_TOLERANCE = 0.03
"""Relative deviation up to which a requested L0 counts as reached."""
FREQUENCY_SCALES = (0.1, 0.01)
FIXED_LAMBDA_SAES = 7
"""Number of SAEs on the curve of fixed λ."""
LAMBDA_MARGIN = 1.4
"""Factor by which that curve extends beyond the λ of the SAEs with requested L0."""
REFERENCE_SERIES = "jumprelu"


def requested_runs(budgets: Iterable[int], series: list[str] | None = None) -> list[RequestedRun]:
    """Return every registered architecture, and JumpReLU with a frequency penalty, at every L0 of every setup."""
    found = []
    variants = [(name, name, {}) for name in ARCHITECTURES.names()]
    variants += [(f"jumprelu-qf-{scale:g}", "jumprelu", {"frequency_scale": scale}) for scale in FREQUENCY_SCALES]
    for tokens in budgets:
        for place in SETUPS.values():
            for name, architecture, options in variants:
                if series and name not in series:
                    continue
                found += [
                    RequestedRun(place.name, "final", tokens, HELD_OUT_TOKENS, name, architecture, ("l0", float(l0)),
                           options=json.dumps(options))
                    for l0 in place.l0
                ]  # fmt: skip
    return found


def fixed_lambda_runs(lines: Lines, budgets: Iterable[int]) -> list[RequestedRun]:
    """Return JumpReLU with fixed λ, over the range of λ that the controllers of the requested SAEs ended with."""
    found = []
    for tokens in budgets:
        for place in SETUPS.values():
            ends = [
                line["sparsity_coefficient"]["lambda"] for line in curve_lines(lines, place.name, tokens, "jumprelu")
            ]
            if len(ends) == len(place.l0):
                grid = np.geomspace(min(ends) / LAMBDA_MARGIN, max(ends) * LAMBDA_MARGIN, FIXED_LAMBDA_SAES)
                found += [
                    RequestedRun(
                        place.name,
                        "final",
                        tokens,
                        HELD_OUT_TOKENS,
                        "jumprelu-fixed",
                        "jumprelu",
                        ("lambda", float(f"{metric_with_replicates:.3g}")),
                    )
                    for metric_with_replicates in grid
                ]
    return found


def curve_lines(lines: Lines, place: str, tokens: int, series: str) -> list[dict[str, Any]]:
    """Return the SAEs of one curve, sorted by L0."""
    found = [
        line for line in lines.values() if (line["place"], line["tokens"], line["series"]) == (place, tokens, series)
    ]
    return sorted(found, key=lambda line: line["l0"])


def setups_and_budgets(lines: Lines) -> list[tuple[str, int]]:
    """Return the setups and budgets with results."""
    return sorted({(line["place"], line["tokens"]) for line in lines.values()}, key=lambda pair: (pair[1], pair[0]))


def series_names(lines: Lines, place: str, tokens: int) -> list[str]:
    found = {line["series"] for line in lines.values() if (line["place"], line["tokens"]) == (place, tokens)}
    return sorted(found, key=lambda name: (name != REFERENCE_SERIES, name))


# ---------------------------------------------------------------------------------------------- tables


def render_page(lines: Lines) -> str:
    """Return all tables as Markdown."""
    parts = ["# The sparsity that was asked for\n", LEGEND.strip()]
    for place, tokens in setups_and_budgets(lines):
        parts += [f"## {place}, {tokens / 1e6:g}e6 tokens\n", render_reached(lines, place, tokens)]
        parts += ["At the same L0, by interpolation:\n", render_matched(lines, place, tokens)]
        if curve_lines(lines, place, tokens, "jumprelu-fixed"):
            parts += ["The controller against fixed λ:\n", render_fixed_lambda(lines, place, tokens)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


LEGEND = """
Made by `make bench-sparsity ARGS=requested` from `final.jsonl` (one line per SAE: what is there is not trained again).
L0 was measured on held-out documents of text that no tuning run has seen, with the saved SAE. `!` marks a miss by more
than 3 %. Intervals are the central 95 % of 200 bootstrap replicates over documents; one seed, so they cover text only.
"""


def render_reached(lines: Lines, place: str, tokens: int) -> str:
    """Return the table of L0, delta LM loss, frequent and dead features per series and requested L0."""
    rows = []
    for series in series_names(lines, place, tokens):
        for line in curve_lines(lines, place, tokens, series):
            kind, asked = line["setting"]
            miss = line["l0"] / asked - 1 if kind == "l0" else None
            settled = line.get("converged_after") or {}
            share = settled.get("share")
            rows.append([
                series, f"{'λ ' if kind == 'lambda' else ''}{asked:g}", f"{line['l0']:.4g}",
                "–" if miss is None else f"{100 * miss:+.1f} %{' !' if abs(miss) > L0_TOLERANCE else ''}",
                "–" if share is None else f"{100 * share:.0f} %",
                f"{line['delta_lm_loss']:.4f} ± {line['se']:.4f}", f"{line['fvu']:.4f}", f"{line['above_10pct']:.0f}",
                f"{line['dead']:.0f}", f"{line['seconds']:.0f} s",
            ])  # fmt: skip
    headings = ["series", "asked", "L0", "off by", "settled", "delta LM loss", "FVU", "> 10 %", "dead", "training"]
    return render_table(headings, rows)


def curve_through(lines: Lines, place: str, tokens: int, series: str) -> Curve | None:
    """Return the curve through a series' SAEs, with replicates; None for fewer than two."""
    found = curve_lines(lines, place, tokens, series)
    if len(found) < 2:
        return None
    values = np.stack(
        [np.stack([metric_with_replicates(line, name) for name in BOOTSTRAPPED_METRICS], 1) for line in found], 1
    )
    return Curve(values, (True, bool((values[:, :, 1] > 0).all()), False))


def metric_with_replicates(line: dict[str, Any], name: str) -> np.ndarray:
    """Return a metric and its replicates, [1 + R]."""
    expansion = math.sqrt(line["clusters"] / (line["clusters"] - 1))  # 256 clusters: more would be under 1 %
    return np.concatenate([[line[name]], centre_replicates(line[name], np.array(line["bootstrap"][name]), expansion)])


def value_at(found: Curve | None, metric: int, target: float, wanted: int) -> np.ndarray | None:
    """Return the metric `wanted` where `metric` equals the target, [1 + R]; None outside of the measured range."""
    places = found.positions(metric, target) if found is not None else []
    return places[0].values[:, wanted] if places else None


def render_matched(lines: Lines, place: str, tokens: int) -> str:
    """Return tables of delta LM loss relative to JumpReLU's at equal L0, and of frequent features at equal loss."""
    reference = curve_through(lines, place, tokens, REFERENCE_SERIES)
    rows = []
    for series in series_names(lines, place, tokens):
        if series == REFERENCE_SERIES or reference is None:
            continue
        other, cells = curve_through(lines, place, tokens, series), []
        for l0 in SETUPS[place].l0:
            ours, theirs = value_at(reference, 0, l0, 1), value_at(other, 0, l0, 1)
            cells.append("–" if ours is None or theirs is None else format_ratio(estimate_with_interval(theirs / ours)))
        rows.append([series, *cells])
    frequent = []
    for series in series_names(lines, place, tokens):
        found = curve_through(lines, place, tokens, series)
        cells = []
        for l0 in SETUPS[place].l0:
            loss = value_at(reference, 0, l0, 1)
            counts = None if loss is None else value_at(found, 1, float(loss[0]), 2)
            cells.append("–" if counts is None else format_count(estimate_with_interval(counts)))
        frequent.append([series, *cells])
    first = render_table(["delta LM loss / JumpReLU's at L0", *(f"{l0:g}" for l0 in SETUPS[place].l0)], rows)
    second = render_table(
        ["features > 10 % at JumpReLU's loss of L0", *(f"{l0:g}" for l0 in SETUPS[place].l0)], frequent
    )
    return f"{first}\n\n{second}"


def render_fixed_lambda(lines: Lines, place: str, tokens: int) -> str:
    """Return the table of JumpReLU's delta LM loss at a requested L0 against the interpolated curve of fixed λ."""
    reference, rows = curve_through(lines, place, tokens, "jumprelu-fixed"), []
    for line in curve_lines(lines, place, tokens, "jumprelu"):
        there = value_at(reference, 0, line["l0"], 1)
        if there is None:
            rows.append([f"{line['setting'][1]:g}", f"{line['delta_lm_loss']:.4f}", "–", "–", "–"])
            continue
        difference = metric_with_replicates(line, "delta_lm_loss") - there
        error = float(np.std(difference[1:]))
        rows.append([f"{line['setting'][1]:g}", f"{line['delta_lm_loss']:.4f}", f"{there[0]:.4f}",
                     f"{difference[0]:+.4f} ± {error:.4f}", f"{difference[0] / error:+.1f}"])  # fmt: skip
    return render_table(["asked", "controller", "fixed λ, interpolated", "difference ± SE", "in SE"], rows)


def format_ratio(found: Estimate) -> str:
    """Format a ratio: `1.08 (1.05–1.12)`."""
    assert found.value is not None
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})"


def format_count(found: Estimate) -> str:
    """Format a count: `12 (9–15)`."""
    if found.value is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.0f}"
    return f"{found.value:.0f} ({max(found.low, 0):.0f}–{found.high:.0f})"


def summary(lines: Lines) -> str:
    """Return how many requested L0 were reached, as a sentence."""
    asked = [line for line in lines.values() if line["setting"][0] == "l0"]
    met = [line for line in asked if abs(math.log(line["l0"] / line["setting"][1])) <= math.log(1 + L0_TOLERANCE)]
    return f"{len(met)} of {len(asked)} requested L0 reached within {100 * L0_TOLERANCE:.0f} %"
