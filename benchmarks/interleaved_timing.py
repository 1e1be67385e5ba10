"""Interleaved timing: in every round each variant runs steps for SECONDS_PER_TURN, and at least one step.

Other load on the machine thus affects all variants alike. In training a step follows a step of the same library, so the
first step of a turn is not counted if others follow.

A variant is an SAE under one setting: another library's under its own float32 matmul precision and under `medium`,
jumpahead's with each choice of kernels. The encoder product alone is a variant too: a lower bound on the time of any
step that finds its active features exactly.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.jumpahead_sae import ENGINES, JumpaheadSAE, TrainingState
from benchmarks.library_sae import LibrarySAE, ReconstructionStats, StartingPoint, starting_point
from benchmarks.peer_libraries import missing_reason, peers_with
from benchmarks.synthetic import SyntheticData, make_data

SECONDS_PER_TURN = 0.25
WARMUP_ROUNDS = 2
"""Rounds that are not counted: compilation, allocation of optimizer states and buffers."""
EVALUATION_TOKENS = 512
"""Tokens that L0 and error are measured on."""


class Shape(NamedTuple):
    """Dimension d, number of features M, tokens per batch B, active features per token L0."""

    d: int
    width: int
    tokens: int
    l0: int

    def __str__(self) -> str:
        return f"d = {self.d:,}, M = {self.width:,}, B = {self.tokens:,}, L0 = {self.l0}"


class Case(NamedTuple):
    """An architecture to compare, with or without dead features."""

    architecture: str
    dead: float
    """Share of dead features before every step, with AuxK; 0: no AuxK."""

    def __str__(self) -> str:
        title = {"jumprelu": "JumpReLU", "topk": "TopK", "gated": "Gated"}[self.architecture]
        if self.architecture != "topk":
            return title
        return f"{title}, {self.dead:.0%} dead features, AuxK on" if self.dead else f"{title}, AuxK off"


CASES = (Case("jumprelu", 0.0), Case("topk", 0.0), Case("topk", 0.05), Case("gated", 0.0))


class TimedVariant:
    """One timed variant, and its times."""

    def __init__(
        self,
        library: str,
        step: Callable[[Tensor], object],
        *,
        kind: Literal["peer", "ours", "product"],
        products: str,
        sae: LibrarySAE | None = None,
        precision: str = "highest",
        **about: Any,
    ):
        self.step, self.sae, self.precision = step, sae, precision
        self.row: dict[str, Any] = {"library": library, "kind": kind, "products": products, **about}
        self.turns: list[list[float]] = []
        """Seconds of the counted steps, by round."""

    @property
    def failed(self) -> str:
        """Return the error of this variant, or of another one with the same SAE; empty if there is none."""
        return "" if self.sae is None else self.sae.failed

    def run_turn(self, batches: list[Tensor]) -> None:
        """Time steps for one turn. After an error the SAE is not run again."""
        if self.failed:
            return
        torch.set_float32_matmul_precision(self.precision)
        try:
            seconds: list[float] = []
            while not seconds or sum(seconds) < SECONDS_PER_TURN:
                if self.sae is not None:
                    self.sae.prepare()
                started = time.perf_counter()
                self.step(batches[len(seconds) % len(batches)])
                seconds.append(time.perf_counter() - started)
            self.turns.append(seconds[1:] or seconds)
        except Exception as error:  # an error of one library must not end the measurement
            if self.sae is None:
                raise
            self.sae.failed = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        finally:
            torch.set_float32_matmul_precision("highest")

    def result(self, warmup: int) -> dict[str, Any]:
        """Return the result row, with times in ms, without the first `warmup` turns."""
        if self.failed:
            return self.row | {"unavailable": self.failed}
        times = [1e3 * seconds for turn in self.turns[warmup:] for seconds in turn]
        return self.row | {
            "median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "times_ms": times
        }  # fmt: skip


def measure(shape: Shape, case: Case, rounds: int, data: SyntheticData, warmup: int = WARMUP_ROUNDS) -> dict[str, Any]:
    """Measure every library's step at one shape; return a case of the results file."""
    start = starting_point(data.dictionary, data.batches[0], shape.tokens, shape.l0, case.dead)
    variants, absent = peer_variants(case, start)
    variants += jumpahead_variants(case, start, data.batches) + product_variants(start)
    stats = {id(variant): [evaluate_variant(variant, data)] for variant in variants}
    for number in range(warmup + rounds):
        show_progress(f"{case}, {shape}: round {number + 1} of {warmup + rounds}")
        for variant in variants:
            variant.run_turn(data.batches)
    rows = []
    for variant in variants:
        stats[id(variant)].append(evaluate_variant(variant, data))
        row = variant.result(warmup)
        l0 = [one.l0 for one in stats[id(variant)] if one is not None]
        if isinstance(variant.sae, JumpaheadSAE):
            row |= {"entries": statistics.median(variant.sae.entries[warmup:])}
        rows.append(row | ({"l0": l0} if l0 else {}))
    for variant in variants:
        if variant.sae is not None:
            variant.sae.close()
    show_progress("")
    gc.collect()
    return {
        "shape": shape._asdict(),
        "case": str(case),
        **case._asdict(),
        "rounds": rounds,
        "warmup": warmup,
        "rows": absent + rows,
        "medium_error": medium_error(start),
    }


def peer_variants(case: Case, start: StartingPoint) -> tuple[list[TimedVariant], list[dict[str, Any]]]:
    """Return two variants per available library, sharing an SAE, and a row for each unavailable library."""
    variants, absent = [], []
    for peer in peers_with(case.architecture):
        if case.dead and not peer.aux:
            continue
        why = missing_reason(peer)
        if not why:
            try:
                one = peer(case.architecture, start)
            except Exception as error:  # noqa: BLE001 — as in TimedVariant.run_turn
                why = f"failed: {type(error).__name__}: {error}".splitlines()[0]
            else:
                for products, precision in (("default", peer.precision), ("medium", "medium")):
                    made = {"sae": one, "products": products, "precision": precision}
                    variants.append(TimedVariant(peer.title, one.step, kind="peer", **made))
        if why:
            absent.append({"library": peer.title, "kind": "peer", "products": "default", "unavailable": why})
    return variants, absent


def jumpahead_variants(case: Case, start: StartingPoint, data: list[Tensor]) -> list[TimedVariant]:
    """Return jumpahead's variants: states `trained` and `fresh` with every choice of kernels.

    JumpReLU also has the paper's bandwidth, and `settled` with the default kernels, because the number of entries in
    its window results from training.
    """
    settings: list[tuple[TrainingState, float | None]] = [("trained", None), ("fresh", None)]
    if case.architecture == "jumprelu":
        settings = [("trained", 0.001), ("settled", None), *settings]
    variants = []
    for engine in ENGINES:
        for state, bandwidth in settings:
            if state == "settled" and engine != "default":
                continue
            one = JumpaheadSAE(case.architecture, start, state, bandwidth, engine, data)
            about: dict[str, Any] = {"state": state, "kernels": one.kernels.name}
            if case.architecture == "jumprelu":
                about["bandwidth"] = "recipe's" if bandwidth is None else bandwidth
            variants.append(TimedVariant("jumpahead", one.step, kind="ours", products=engine, sae=one, **about))
    return variants


def product_variants(start: StartingPoint) -> list[TimedVariant]:
    """Return the variants of the encoder product x·W_encᵀ alone."""
    w, out = start.w_enc, torch.empty(start.tokens, len(start.w_enc))
    narrow, narrow_out = w.bfloat16(), torch.empty(start.tokens, len(w), dtype=torch.bfloat16)
    x16 = torch.empty(start.tokens, w.shape[1], dtype=torch.bfloat16)

    def full(x: Tensor) -> Tensor:
        return torch.mm(x, w.T, out=out)

    def half(x: Tensor) -> Tensor:
        return torch.mm(x16.copy_(x), narrow.T, out=narrow_out)

    name = "x·W_encᵀ alone"
    return [
        TimedVariant(name, full, kind="product", products="float32"),
        TimedVariant(name, full, kind="product", products="medium", precision="medium"),
        TimedVariant(name, half, kind="product", products="bfloat16"),
    ]


def medium_error(start: StartingPoint) -> float:
    """Return the largest error of a product at precision `medium`, relative to ‖x‖·‖w‖.

    About 1e-7 if it is computed in float32, 1e-3 in bfloat16.
    """
    x, w = start.sample[:64], start.w_enc[:4096]
    torch.set_float32_matmul_precision("medium")
    try:
        product = x @ w.T
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = x.double() @ w.double().T
    scale = torch.outer(x.norm(dim=1), w.norm(dim=1)).double().clamp_min(1e-30)
    return float(((product - exact).abs() / scale).max())


def evaluate_variant(variant: TimedVariant, data: SyntheticData) -> ReconstructionStats | None:
    """Return the current L0 and error of a variant's SAE; None if it has none or failed."""
    if variant.sae is None or variant.failed:
        return None
    try:
        return variant.sae.evaluate(data.batches[0][:EVALUATION_TOKENS])
    except Exception:  # noqa: BLE001 — as in TimedVariant.run_turn
        return None


def speed_ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Return the time of the fastest other library relative to each jumpahead variant, at both precisions.

    Also returns the time of each jumpahead variant relative to the fastest encoder product.
    """
    timed = [row for row in found["rows"] if "median_ms" in row]
    best = {
        products: min(
            (row for row in timed if row["kind"] == "peer" and row["products"] == products),
            key=lambda row: row["median_ms"], default=None,
        )
        for products in ("default", "medium")
    }  # fmt: skip
    products = [row["median_ms"] for row in timed if row["kind"] == "product"]
    rows = []
    for row in timed:
        if row["kind"] == "ours":
            faster = {
                f"best_peer_{name}": None if one is None else one["median_ms"] / row["median_ms"]
                for name, one in best.items()
            }
            over_product = row["median_ms"] / min(products) if products else None
            named = {key: row[key] for key in ("products", "state", "bandwidth") if key in row}
            rows.append(named | faster | {"over_fastest_product": over_product})
    return {"best_peer": {name: one and one["library"] for name, one in best.items()}, "ours": rows}


def check_training(steps: int = 150) -> bool:
    """Return whether every library's step reduces the error from random weights; prints the errors."""
    data = make_data(64, 1024, 512, 8.0, count=8)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(1024, 64, generator=generator)
    good = True
    for case in CASES:
        start = starting_point(rows / rows.norm(dim=1, keepdim=True), data.batches[0], 512, 8, case.dead)
        for kind in (*peers_with(case.architecture), JumpaheadSAE):
            if case.dead and not kind.aux:
                continue
            if why := missing_reason(kind):
                print(f"{case}: {kind.title}: {why}")
                continue
            one = (
                JumpaheadSAE(case.architecture, start, "fresh")
                if kind is JumpaheadSAE
                else kind(case.architecture, start)
            )
            before = one.evaluate(data.batches[0])
            for i in range(steps):
                one.prepare()
                one.step(data.batches[i % 8])
            after = one.evaluate(data.batches[0])
            one.close()
            good &= after.error < before.error
            print(
                f"{case}: {kind.title}: error {before.error:.4f} → {after.error:.4f}, "
                f"L0 {before.l0:.2f} → {after.l0:.2f} in {steps} steps",
                flush=True,
            )
    return good


def show_progress(text: str) -> None:
    """Print progress to standard error, on one line if it is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
