"""What the final text says: which L0 was reached, and where the series stand against each other at the same L0."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.sparsity.places import PLACES
from benchmarks.sparsity.runs import BOOTSTRAPPED, Wanted
from benchmarks.table import render_table
from jumpahead.frontier.curve import Curve, Estimate, centred, estimate
from jumpahead.sae.architectures import ARCHITECTURES

HELD_OUT = 220_000
BUDGETS = (2_000_000, 20_000_000)
WITHIN = 0.03
"""How near to the requested L0 counts as reached."""
FREQUENCY_SCALES = (0.1, 0.01)
FIXED = 7
"""SAEs of the curve of fixed λ."""
BEYOND = 1.4
"""How far that curve reaches past the requested SAEs' λ, as a factor."""
AGAINST = "jumprelu"
Lines = dict[str, dict[str, Any]]


def requested(budgets: Iterable[int], series: list[str] | None = None) -> list[Wanted]:
    """Every registered architecture, and JumpReLU with frequency control, at every L0 of every place."""
    found = []
    variants = [(name, name, {}) for name in ARCHITECTURES.names()]
    variants += [(f"jumprelu-qf-{scale:g}", "jumprelu", {"frequency_scale": scale}) for scale in FREQUENCY_SCALES]
    for tokens in budgets:
        for place in PLACES.values():
            for name, architecture, options in variants:
                if series and name not in series:
                    continue
                found += [
                    Wanted(place.name, "final", tokens, HELD_OUT, name, architecture, ("l0", float(l0)),
                           options=json.dumps(options))
                    for l0 in place.l0
                ]  # fmt: skip
    return found


def fixed(lines: Lines, budgets: Iterable[int]) -> list[Wanted]:
    """JumpReLU with fixed λ, spread over the λ that the controller of the requested SAEs ended with and beyond."""
    found = []
    for tokens in budgets:
        for place in PLACES.values():
            ends = [line["sparsity_coefficient"]["lambda"] for line in members(lines, place.name, tokens, "jumprelu")]
            if len(ends) == len(place.l0):
                grid = np.geomspace(min(ends) / BEYOND, max(ends) * BEYOND, FIXED)
                found += [
                    Wanted(
                        place.name,
                        "final",
                        tokens,
                        HELD_OUT,
                        "jumprelu-fixed",
                        "jumprelu",
                        ("lambda", float(f"{one:.3g}")),
                    )
                    for one in grid
                ]
    return found


def members(lines: Lines, place: str, tokens: int, series: str) -> list[dict[str, Any]]:
    """The SAEs of one curve, by L0."""
    found = [
        line for line in lines.values() if (line["place"], line["tokens"], line["series"]) == (place, tokens, series)
    ]
    return sorted(found, key=lambda line: line["l0"])


def groups(lines: Lines) -> list[tuple[str, int]]:
    """Places and budgets that there are results for."""
    return sorted({(line["place"], line["tokens"]) for line in lines.values()}, key=lambda pair: (pair[1], pair[0]))


def series_of(lines: Lines, place: str, tokens: int) -> list[str]:
    found = {line["series"] for line in lines.values() if (line["place"], line["tokens"]) == (place, tokens)}
    return sorted(found, key=lambda name: (name != AGAINST, name))


# ---------------------------------------------------------------------------------------------- tables


def page(lines: Lines) -> str:
    """All tables as Markdown."""
    parts = ["# The sparsity that was asked for\n", LEGEND.strip()]
    for place, tokens in groups(lines):
        parts += [f"## {place}, {tokens / 1e6:g}e6 tokens\n", reached_table(lines, place, tokens)]
        parts += ["At the same L0, by interpolation:\n", matched_table(lines, place, tokens)]
        if members(lines, place, tokens, "jumprelu-fixed"):
            parts += ["The controller against fixed λ:\n", fixed_table(lines, place, tokens)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


LEGEND = """
Made by `make bench-sparsity ARGS=requested` from `final.jsonl` (one line per SAE: what is there is not trained again).
L0 was measured on held-out documents of text that no tuning run has seen, with the saved SAE. `!` marks a miss by more
than 3 %. Intervals are the central 95 % of 200 bootstrap replicates over documents; one seed, so they cover text only.
"""


def reached_table(lines: Lines, place: str, tokens: int) -> str:
    """Per series and requested L0: L0, delta LM loss, features above 10 %, dead features."""
    rows = []
    for series in series_of(lines, place, tokens):
        for line in members(lines, place, tokens, series):
            kind, asked = line["setting"]
            miss = line["l0"] / asked - 1 if kind == "l0" else None
            settled = line.get("converged_after") or {}
            share = settled.get("share")
            rows.append([
                series, f"{'λ ' if kind == 'lambda' else ''}{asked:g}", f"{line['l0']:.4g}",
                "–" if miss is None else f"{100 * miss:+.1f} %{' !' if abs(miss) > WITHIN else ''}",
                "–" if share is None else f"{100 * share:.0f} %",
                f"{line['delta_lm_loss']:.4f} ± {line['se']:.4f}", f"{line['fvu']:.4f}", f"{line['above_10pct']:.0f}",
                f"{line['dead']:.0f}", f"{line['seconds']:.0f} s",
            ])  # fmt: skip
    headings = ["series", "asked", "L0", "off by", "settled", "delta LM loss", "FVU", "> 10 %", "dead", "training"]
    return render_table(headings, rows)


def curve(lines: Lines, place: str, tokens: int, series: str) -> Curve | None:
    """Through a series' SAEs, with replicates; None for fewer than two."""
    found = members(lines, place, tokens, series)
    if len(found) < 2:
        return None
    values = np.stack([np.stack([one(line, name) for name in BOOTSTRAPPED], 1) for line in found], 1)
    return Curve(values, (True, bool((values[:, :, 1] > 0).all()), False))


def one(line: dict[str, Any], name: str) -> np.ndarray:
    """[1 + R] a metric and its replicates."""
    return np.concatenate([[line[name]], centred(line[name], np.array(line["bootstrap"][name]), line["clusters"])])


def at(found: Curve | None, metric: int, target: float, wanted: int) -> np.ndarray | None:
    """[1 + R] of a metric where another meets the target, in the measured range."""
    places = found.positions(metric, target) if found is not None else []
    return places[0].values[:, wanted] if places else None


def matched_table(lines: Lines, place: str, tokens: int) -> str:
    """Delta LM loss of every series over JumpReLU's at the same L0; features above 10 % at JumpReLU's delta LM loss."""
    reference = curve(lines, place, tokens, AGAINST)
    rows = []
    for series in series_of(lines, place, tokens):
        if series == AGAINST or reference is None:
            continue
        other, cells = curve(lines, place, tokens, series), []
        for l0 in PLACES[place].l0:
            ours, theirs = at(reference, 0, l0, 1), at(other, 0, l0, 1)
            cells.append("–" if ours is None or theirs is None else ratio(estimate(theirs / ours)))
        rows.append([series, *cells])
    frequent = []
    for series in series_of(lines, place, tokens):
        found = curve(lines, place, tokens, series)
        cells = []
        for l0 in PLACES[place].l0:
            loss = at(reference, 0, l0, 1)
            counts = None if loss is None else at(found, 1, float(loss[0]), 2)
            cells.append("–" if counts is None else plain(estimate(counts)))
        frequent.append([series, *cells])
    first = render_table(["delta LM loss / JumpReLU's at L0", *(f"{l0:g}" for l0 in PLACES[place].l0)], rows)
    second = render_table(
        ["features > 10 % at JumpReLU's loss of L0", *(f"{l0:g}" for l0 in PLACES[place].l0)], frequent
    )
    return f"{first}\n\n{second}"


def fixed_table(lines: Lines, place: str, tokens: int) -> str:
    """Delta LM loss of JumpReLU with a requested L0 against the interpolated curve of fixed λ."""
    reference, rows = curve(lines, place, tokens, "jumprelu-fixed"), []
    for line in members(lines, place, tokens, "jumprelu"):
        there = at(reference, 0, line["l0"], 1)
        if there is None:
            rows.append([f"{line['setting'][1]:g}", f"{line['delta_lm_loss']:.4f}", "–", "–", "–"])
            continue
        difference = one(line, "delta_lm_loss") - there
        error = float(np.std(difference[1:]))
        rows.append([f"{line['setting'][1]:g}", f"{line['delta_lm_loss']:.4f}", f"{there[0]:.4f}",
                     f"{difference[0]:+.4f} ± {error:.4f}", f"{difference[0] / error:+.1f}"])  # fmt: skip
    return render_table(["asked", "controller", "fixed λ, interpolated", "difference ± SE", "in SE"], rows)


def ratio(found: Estimate) -> str:
    """`1.08 (1.05–1.12)`."""
    assert found.value is not None
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})"


def plain(found: Estimate) -> str:
    """`12 (9–15)`."""
    if found.value is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.0f}"
    return f"{found.value:.0f} ({max(found.low, 0):.0f}–{found.high:.0f})"


def summary(lines: Lines) -> str:
    """How many requests were met."""
    asked = [line for line in lines.values() if line["setting"][0] == "l0"]
    met = [line for line in asked if abs(math.log(line["l0"] / line["setting"][1])) <= math.log(1 + WITHIN)]
    return f"{len(met)} of {len(asked)} requested L0 reached within {100 * WITHIN:.0f} %"
