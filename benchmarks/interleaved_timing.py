"""Timing by turns: in every round each lane steps for TURN seconds, and at least once, so that whatever else the
machine does falls on all alike. In training a step follows a step of its own, not of another library: of several steps
in a turn the first is not counted.

A lane is a contender under one setting: a peer under its own float32 matmul precision and under `medium`, ours under
each choice of kernels, and the encoder product alone, which no step that finds its features exactly can undercut.
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
"""Rounds that are not counted: compilation, optimizer states, buffers."""
EVALUATION_TOKENS = 512
"""Tokens that L0 is measured on."""


class Shape(NamedTuple):
    """d dimensions, M features, B tokens in a batch, L0 active features per token."""

    d: int
    width: int
    tokens: int
    l0: int

    def __str__(self) -> str:
        return f"d = {self.d:,}, M = {self.width:,}, B = {self.tokens:,}, L0 = {self.l0}"


class Case(NamedTuple):
    """What is compared: an architecture, with or without dead features."""

    architecture: str
    dead: float
    """Share of the features that is dead before every step, AuxK on; 0: AuxK off."""

    def __str__(self) -> str:
        title = {"jumprelu": "JumpReLU", "topk": "TopK", "gated": "Gated"}[self.architecture]
        if self.architecture != "topk":
            return title
        return f"{title}, {self.dead:.0%} dead features, AuxK on" if self.dead else f"{title}, AuxK off"


CASES = (Case("jumprelu", 0.0), Case("topk", 0.0), Case("topk", 0.05), Case("gated", 0.0))


class TimedVariant:
    """One thing that is timed, and what was found."""

    def __init__(
        self,
        library: str,
        step: Callable[[Tensor], object],
        *,
        kind: Literal["peer", "ours", "product"],
        products: str,
        contender: LibrarySAE | None = None,
        precision: str = "highest",
        **about: Any,
    ):
        self.step, self.contender, self.precision = step, contender, precision
        self.row: dict[str, Any] = {"library": library, "kind": kind, "products": products, **about}
        self.turns: list[list[float]] = []
        """Seconds of the steps that count, by round."""

    @property
    def failed(self) -> str:
        """What went wrong in this lane, or in another with the same contender."""
        return "" if self.contender is None else self.contender.failed

    def turn(self, batches: list[Tensor]) -> None:
        """Time some steps; a contender that fails is not asked again."""
        if self.failed:
            return
        torch.set_float32_matmul_precision(self.precision)
        try:
            seconds: list[float] = []
            while not seconds or sum(seconds) < SECONDS_PER_TURN:
                if self.contender is not None:
                    self.contender.prepare()
                begun = time.perf_counter()
                self.step(batches[len(seconds) % len(batches)])
                seconds.append(time.perf_counter() - begun)
            self.turns.append(seconds[1:] or seconds)
        except Exception as error:  # another library's fault must not end the others' turns
            if self.contender is None:
                raise
            self.contender.failed = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        finally:
            torch.set_float32_matmul_precision("highest")

    def result(self, warmup: int) -> dict[str, Any]:
        """The row, with times in ms without the first `warmup` turns."""
        if self.failed:
            return self.row | {"unavailable": self.failed}
        times = [1e3 * seconds for turn in self.turns[warmup:] for seconds in turn]
        return self.row | {
            "median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "times_ms": times
        }  # fmt: skip


def measure(shape: Shape, case: Case, rounds: int, data: SyntheticData, warmup: int = WARMUP_ROUNDS) -> dict[str, Any]:
    """Every library's step at one shape: {shape, case, rows, accuracy of `medium`}."""
    begin = starting_point(data.dictionary, data.batches[0], shape.tokens, shape.l0, case.dead)
    lanes, absent = peer_variants(case, begin)
    lanes += jumpahead_variants(case, begin, data.batches) + product_variants(begin)
    looks = {id(lane): [evaluate_variant(lane, data)] for lane in lanes}
    for number in range(warmup + rounds):
        show_progress(f"{case}, {shape}: round {number + 1} of {warmup + rounds}")
        for lane in lanes:
            lane.turn(data.batches)
    rows = []
    for lane in lanes:
        looks[id(lane)].append(evaluate_variant(lane, data))
        row = lane.result(warmup)
        l0 = [one.l0 for one in looks[id(lane)] if one is not None]
        if isinstance(lane.contender, JumpaheadSAE):
            row |= {"entries": statistics.median(lane.contender.entries[warmup:])}
        rows.append(row | ({"l0": l0} if l0 else {}))
    for lane in lanes:
        if lane.contender is not None:
            lane.contender.close()
    show_progress("")
    gc.collect()
    return {
        "shape": shape._asdict(),
        "case": str(case),
        **case._asdict(),
        "rounds": rounds,
        "warmup": warmup,
        "rows": absent + rows,
        "medium_error": medium_error(begin),
    }


def peer_variants(case: Case, begin: StartingPoint) -> tuple[list[TimedVariant], list[dict[str, Any]]]:
    """Two lanes per library that is there, on one SAE; and a row for each that is not."""
    lanes, absent = [], []
    for peer in peers_with(case.architecture):
        if case.dead and not peer.aux:
            continue
        why = missing_reason(peer)
        if not why:
            try:
                one = peer(case.architecture, begin)
            except Exception as error:  # noqa: BLE001 — as in Lane.turn
                why = f"failed: {type(error).__name__}: {error}".splitlines()[0]
            else:
                for products, precision in (("default", peer.precision), ("medium", "medium")):
                    made = {"contender": one, "products": products, "precision": precision}
                    lanes.append(TimedVariant(peer.title, one.step, kind="peer", **made))
        if why:
            absent.append({"library": peer.title, "kind": "peer", "products": "default", "unavailable": why})
    return lanes, absent


def jumpahead_variants(case: Case, begin: StartingPoint, data: list[Tensor]) -> list[TimedVariant]:
    """Ours: trained and fresh, under every choice of kernels. For JumpReLU also at the paper's bandwidth, and settled
    by the kernels that are chosen by default: how many entries are in its window is for training to say."""
    variants: list[tuple[TrainingState, float | None]] = [("trained", None), ("fresh", None)]
    if case.architecture == "jumprelu":
        variants = [("trained", 0.001), ("settled", None), *variants]
    lanes = []
    for engine in ENGINES:
        for state, bandwidth in variants:
            if state == "settled" and engine != "default":
                continue
            one = JumpaheadSAE(case.architecture, begin, state, bandwidth, engine, data)
            about: dict[str, Any] = {"state": state, "kernels": one.kernels.name}
            if case.architecture == "jumprelu":
                about["bandwidth"] = "recipe's" if bandwidth is None else bandwidth
            lanes.append(TimedVariant("jumpahead", one.step, kind="ours", products=engine, contender=one, **about))
    return lanes


def product_variants(begin: StartingPoint) -> list[TimedVariant]:
    """x·W_encᵀ alone."""
    w, out = begin.w_enc, torch.empty(begin.tokens, len(begin.w_enc))
    narrow, narrow_out = w.bfloat16(), torch.empty(begin.tokens, len(w), dtype=torch.bfloat16)
    x16 = torch.empty(begin.tokens, w.shape[1], dtype=torch.bfloat16)

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


def medium_error(begin: StartingPoint) -> float:
    """Largest error of a product at precision `medium`, in ‖x‖·‖w‖: about 1e-7 in float32, 1e-3 in bfloat16."""
    x, w = begin.sample[:64], begin.w_enc[:4096]
    torch.set_float32_matmul_precision("medium")
    try:
        product = x @ w.T
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = x.double() @ w.double().T
    scale = torch.outer(x.norm(dim=1), w.norm(dim=1)).double().clamp_min(1e-30)
    return float(((product - exact).abs() / scale).max())


def evaluate_variant(lane: TimedVariant, data: SyntheticData) -> ReconstructionStats | None:
    """L0 of a lane's SAE now."""
    if lane.contender is None or lane.failed:
        return None
    try:
        return lane.contender.look(data.batches[0][:EVALUATION_TOKENS])
    except Exception:  # noqa: BLE001 — as in Lane.turn
        return None


def speed_ratios(found: dict[str, Any]) -> dict[str, Any]:
    """The fastest peer, by default and with `medium`, over each of our lanes; and those over the fastest product."""
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
            floor = row["median_ms"] / min(products) if products else None
            named = {key: row[key] for key in ("products", "state", "bandwidth") if key in row}
            rows.append(named | faster | {"over_fastest_product": floor})
    return {"best_peer": {name: one and one["library"] for name, one in best.items()}, "ours": rows}


def check_training(steps: int = 150) -> bool:
    """Whether every contender trains: from random weights the error must fall. Prints what it finds."""
    data = make_data(64, 1024, 512, 8.0, count=8)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(1024, 64, generator=generator)
    good = True
    for case in CASES:
        begin = starting_point(rows / rows.norm(dim=1, keepdim=True), data.batches[0], 512, 8, case.dead)
        for kind in (*peers_with(case.architecture), JumpaheadSAE):
            if case.dead and not kind.aux:
                continue
            if why := missing_reason(kind):
                print(f"{case}: {kind.title}: {why}")
                continue
            one = (
                JumpaheadSAE(case.architecture, begin, "fresh")
                if kind is JumpaheadSAE
                else kind(case.architecture, begin)
            )
            before = one.look(data.batches[0])
            for i in range(steps):
                one.prepare()
                one.step(data.batches[i % 8])
            after = one.look(data.batches[0])
            one.close()
            good &= after.error < before.error
            print(
                f"{case}: {kind.title}: error {before.error:.4f} → {after.error:.4f}, "
                f"L0 {before.l0:.2f} → {after.l0:.2f} in {steps} steps",
                flush=True,
            )
    return good


def show_progress(text: str) -> None:
    """Progress, on one line of standard error where that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
