"""Measuring: every architecture, this engine and the dense recipe taking turns, within the time that is given.

    floor → per shape: activations, per architecture: contenders → first steps (not counted, memory) → rounds → rows

A contender is one way to compute a step. The cheapest groups come first; a dense contender that would not fit into
memory or into the time left is a row that says so.
"""

from __future__ import annotations

import functools
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast, final

import torch
from torch import Tensor

from jumpahead import store
from jumpahead.activations import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.efficiency import counts, floor
from jumpahead.efficiency.clock import (
    KernelClock,
    OperationClock,
    PeakMemory,
    available_bytes,
    forward_stages,
    kernel_stages,
)
from jumpahead.efficiency.dense import Dense, Loss, losses, recall
from jumpahead.efficiency.floor import Floor, precision
from jumpahead.efficiency.shape import Shape
from jumpahead.efficiency.words import MEASURES, METHODS, TOKENS, notes, stages_found
from jumpahead.engine import Kernels, State, StepResult, fresh_state, step
from jumpahead.formatting import duration, size
from jumpahead.progress import Progress, Silent
from jumpahead.report import EFFICIENCY_SCHEMA
from jumpahead.sae import recipe as recipes
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.base import Knobs, Largest
from jumpahead.sae.recipe import Setting, TrainConfig

Json = dict[str, Any]

BATCHES = 3
"""Batches that the steps go round."""
SAMPLE = 1024
"""Activations that initialisation looks at."""
DIRECTIONS = 4096
"""Of the synthetic dictionary, at most."""
RATE = 1e-3
"""Learning rate in multiples of the recipe's: weights hardly move, so every round does the same work."""
FIRST, LEAST, MOST = 2, 3, 60
"""Steps that are not counted; rounds at least and at most."""
EAGER = {"engine": 2.0, "dense": 3.0, "approximate": 3.0}
"""A step's time in multiples of its FLOPs and bytes at full speed, before anything is measured."""
LATE = 1.5
"""How far beyond the time given a group may end, in multiples."""


# ---------------------------------------------------------------------------------------------- contenders


class Contender(ABC):
    """One way to compute a training step."""

    method: ClassVar[str]

    @abstractmethod
    def first(self, x: Tensor) -> int | None:
        """Two steps that are not counted; the bytes that one of them took beyond parameters, moments and batch."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Train on x [B, d]."""

    @abstractmethod
    def clocked(self, x: Tensor) -> dict[str, float]:
        """Train on x [B, d]; seconds per stage."""

    @abstractmethod
    def facts(self, s: counts.Step) -> Json:
        """What is known of a row besides its times."""


@final
class Engine(Contender):
    """This engine."""

    method = "engine"

    def __init__(self, state: State, dead: Tensor | None, layer: Kernels, lr: float):
        self.state, self.dead, self.layer, self.lr = state, dead, layer, lr
        self.results: list[StepResult] = []

    def first(self, x: Tensor) -> int | None:
        with PeakMemory() as memory:  # the layer is new: the scratch that it keeps is counted
            self.step(x)
        self.step(x)
        return memory.bytes

    def step(self, x: Tensor) -> None:
        self._step(x, self.layer)

    def clocked(self, x: Tensor) -> dict[str, float]:
        clock = KernelClock(self.layer)
        begun = time.perf_counter()
        self._step(x, cast(Kernels, clock))
        return kernel_stages(clock.calls, time.perf_counter() - begun)

    def _step(self, x: Tensor, layer: Kernels) -> None:
        self.state.silent.zero_()  # the same features are dead in every step, and no others
        if self.dead is not None:
            self.state.silent[self.dead] = self.state.arch.recipe.dead_after
        self.results.append(step(self.state, x, self.lr, 1.0, layer))

    def facts(self, s: counts.Step) -> Json:
        l0, entries = (
            statistics.mean(values) for values in zip(*((r.l0, r.entries) for r in self.results), strict=True)
        )
        touched = int((self.state.last == self.state.t).sum())
        s = s._replace(entries=entries * s.batch, touched=touched)
        return {
            "l0": l0, "entries": entries, "touched": touched,
            "flops": counts.engine_flops(s), "bytes": counts.engine_bytes(s),
            "state_bytes": counts.state_bytes(s, moments=1),
        }  # fmt: skip


class DenseContender(Contender):
    """The dense recipe."""

    method = "dense"

    def __init__(self, dense: Dense, knobs: Knobs, how: str):
        self.dense, self.knobs, self.how = dense, knobs, how

    def first(self, x: Tensor) -> int | None:
        self.step(x)  # allocates the moments
        with PeakMemory() as memory:
            self.step(x)
        return memory.bytes

    def step(self, x: Tensor) -> None:
        with precision(self.how):
            self.dense.step(x, self.knobs)

    def clocked(self, x: Tensor) -> dict[str, float]:
        with precision(self.how):
            with OperationClock() as clock:
                loss = self.dense.forward(x, self.knobs)
            begun = time.perf_counter()
            self.dense.backward(loss)
            between = time.perf_counter()
            self.dense.update()
            ended = time.perf_counter()
        width, d = self.dense.p["W_enc"].shape
        forward = forward_stages(clock.operations, len(x), d, width)
        return {**forward, "backward": between - begun, "optimizer": ended - between}

    def facts(self, s: counts.Step) -> Json:
        return {
            "flops": counts.dense_flops(s), "bytes": counts.dense_bytes(s),
            "state_bytes": counts.state_bytes(s, moments=2),
        }  # fmt: skip


@final
class Approximate(DenseContender):
    """The dense recipe with approximate top-k, and how much of the exact one it finds."""

    method = "approximate"
    x: Tensor

    def first(self, x: Tensor) -> int | None:
        self.x = x
        return super().first(x)

    @torch.no_grad()
    def facts(self, s: counts.Step) -> Json:
        p, arch = self.dense.p, self.dense.arch
        selection = arch.selection(p, arch.derive(p), self.knobs, training=True)
        assert isinstance(selection, Largest)
        pre = (self.x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        return super().facts(s) | {"recall": recall(pre, selection.k)}


DENSE: dict[str, type[DenseContender]] = {kind.method: kind for kind in (DenseContender, Approximate)}


# ---------------------------------------------------------------------------------------------- one architecture


@final
class Group:
    """One architecture at one shape: its contenders take turns."""

    def __init__(self, shape: Shape, name: str, limits: Floor, dead: float):
        self.shape, self.limits = shape, limits
        kind = ARCHITECTURES.get(name)
        train = TrainConfig.model_validate({"batch": shape.batch})
        setting = Setting("l0", shape.l0)
        rules = kind.recipe_for(train, recipes.Shape(shape.d, shape.width, setting))
        self.arch = kind(kind.Options(), setting, rules)
        chosen = torch.randperm(shape.width, generator=torch.Generator().manual_seed(0))[: round(dead * shape.width)]
        self.dead = torch.zeros(shape.width, dtype=torch.bool).index_fill_(0, chosen, True) if len(chosen) else None
        self.dead = self.dead if self.arch.uses_dead else None
        parts = [one for one in self.arch.reconstructions if one.target == "input" or self.dead is not None]
        parts = [one for one in parts if not one.continues]  # counts.py: one and those that continue it are one
        self.counted = counts.Step(
            shape.batch, shape.d, shape.width, entries=shape.batch * shape.l0, touched=shape.width,
            reconstructions=len(parts), live=sum(part.live for part in parts),
            is_unit=self.arch.decoder_norm == "unit",
        )  # fmt: skip

    def estimate(self, method: str) -> float:
        """Seconds of one step, before it is measured."""
        s = self.counted
        flops, moved = (
            (counts.engine_flops(s), counts.engine_bytes(s))
            if method == "engine"
            else (counts.dense_flops(s), counts.dense_bytes(s))
        )
        return EAGER[method] * (flops / self.limits.rate + moved / self.limits.bandwidth)

    def state_and_losses(self, x: Tensor) -> tuple[State, dict[str, Loss], Knobs]:
        """An untrained SAE, and how the field would compute its loss. x [n, d]."""
        state = fresh_state(self.arch, self.shape.d, self.shape.width, 0, x[:SAMPLE])
        knobs = Knobs(state.sparsity if state.control else 0.0, self.dead)
        with torch.no_grad():
            return state, losses(self.arch, state.p, x[:64], knobs), knobs

    def needed(self, method: str) -> float:
        """Bytes that a contender takes, parameters and moments included."""
        if method == "engine":
            return counts.state_bytes(self.counted, moments=2)  # and a copy in low precision
        return counts.state_bytes(self.counted, moments=2) + counts.dense_peak(self.counted)

    def row(self, method: str, **values: Any) -> Json:
        """A row of the result."""
        empty = dict.fromkeys(
            ("ms", "low_ms", "high_ms", "rounds", "tokens_per_s", "stages_ms", "l0", "entries", "touched", "flops",
             "bytes", "state_bytes", "peak_bytes", "recall", "floor_ms", *TOKENS, "skipped")
        )  # fmt: skip
        known = {"architecture": self.arch.name, "title": self.arch.title, "order": self.arch.order, "method": method}
        return {**known, "stages": {}, **empty, **values}


class Timed(NamedTuple):
    """A contender with what was measured of it."""

    contender: Contender
    whole: list[float]
    """Seconds of each undisturbed step."""
    stages: list[dict[str, float]]
    """Seconds per stage of each clocked step."""
    peak_bytes: int | None


def row_of(group: Group, timed: Timed) -> Json:
    """What is told of a contender that has been through at least one round."""
    ms = sorted(1e3 * seconds for seconds in timed.whole)
    median = statistics.median(ms)
    keys = dict.fromkeys(key for one in timed.stages for key in one)
    stages = {key: statistics.median(1e3 * one.get(key, 0.0) for one in timed.stages) for key in keys}
    stages = {key: value for key, value in stages.items() if value > 0}
    facts = timed.contender.facts(group.counted)
    touched = group.counted._replace(touched=facts.get("touched", group.shape.width))
    rate = 1e3 * group.shape.batch / median
    return group.row(
        timed.contender.method, ms=median, low_ms=ms[len(ms) // 4], high_ms=ms[-1 - len(ms) // 4], rounds=len(ms),
        tokens_per_s=rate, stages=stages, stages_ms=sum(stages.values()), peak_bytes=timed.peak_bytes,
        floor_ms=group.limits.ms(counts.rows_bytes(touched)),
        **{key: tokens / rate / 3600 for key, tokens in TOKENS.items()}, **facts,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- all of them


@final
class Session:
    """One measurement: what is to be done, what is found, and how much time is left."""

    def __init__(
        self, shapes: Sequence[Shape], seconds: float, dead: float, layer: Callable[[], Kernels], say: Progress
    ):
        self.shapes, self.seconds, self.dead, self.layer, self.say = shapes, seconds, dead, layer, say
        self.ends = time.monotonic() + seconds
        self.rows: dict[Shape, list[Json]] = {shape: [] for shape in shapes}
        self.limits: dict[Shape, Floor] = {}
        self.methods: dict[str, list[str]] = {}
        """Of each architecture."""
        self.slower = dict.fromkeys(EAGER, 1.0)
        """Measured over estimated time of each method's step, the last time."""

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def run(self) -> None:
        """Measure everything; what is found stays when interrupted."""
        self._compile()
        self.ends = time.monotonic() + self.seconds
        copied = floor.bandwidth()
        for shape in self.shapes:
            self.limits[shape] = floor.measure(shape.batch, shape.d, shape.width, copied)
        groups = [
            Group(shape, name, self.limits[shape], self.dead) for shape in self.shapes for name in ARCHITECTURES.names()
        ]
        groups.sort(key=lambda group: group.estimate("dense"))
        with self.say.phase("efficiency", len(groups), "architectures") as phase:
            for i, group in enumerate(groups):
                weights = [sum(map(one.estimate, self.methods[one.arch.name])) for one in groups[i:]]
                self._measure(group, max(0.0, self.left()) * weights[0] / sum(weights))
                phase.advance(1)

    def _compile(self) -> None:
        """A tiny step of every contender, so that no later one waits for a compiler or for an import."""
        tiny = Shape(d=16, width=64, batch=32, l0=4)
        for name in ARCHITECTURES.names():
            group, x = Group(tiny, name, Floor([], 1.0), 0.25), data(tiny)
            state, found, knobs = group.state_and_losses(x)
            Engine(state, group.dead, self.layer(), 0.0).clocked(x)
            self.methods[name] = ["engine", *found]
            for loss in found.values():
                DenseContender(Dense(group.arch, state.p, list(state.v), loss, 0.0), knobs, "highest").clocked(x)

    def _measure(self, group: Group, seconds: float) -> None:
        """Rounds of one architecture for about so many seconds; its rows are kept whatever happens."""
        if reason := self._unfit(group, "engine"):
            for method in self.methods[group.arch.name]:
                self._skip(group, method, self._unfit(group, method) or reason)
            return
        x = data(group.shape)
        state, found, knobs = group.state_and_losses(x)
        lr = RATE * group.arch.recipe.lr
        running: list[Timed] = []
        try:
            running.append(self._begin(Engine(state, group.dead, self.layer(), lr), x))
            for method, loss in found.items():
                if reason := self._unfit(group, method):
                    self._skip(group, method, reason)
                    continue
                dense = Dense(group.arch, state.p, list(state.v), loss, lr)
                running.append(self._begin(DENSE[method](dense, knobs, group.limits.precision), x))
            self._rounds(running, x, group.shape.batch, seconds)
        finally:
            for timed in running:
                if timed.whole and timed.stages:
                    row = row_of(group, timed)
                    self.rows[group.shape].append(row)
                    self.slower[row["method"]] = row["ms"] / 1e3 / group.estimate(row["method"])

    def _unfit(self, group: Group, method: str) -> str | None:
        """Why a contender is not measured."""
        if (needed := group.needed(method)) > available_bytes():
            return f"would need {size(needed)} of memory"
        rounds = 1 if method == "engine" else LEAST
        took = (FIRST + 2 * rounds) * self.slower[method] * group.estimate(method)
        if took > max(self.left(), 0.0):
            return f"would take about {duration(max(took, 1.0))}, --seconds leaves {duration(self.left())}"
        return None

    def _skip(self, group: Group, method: str, reason: str) -> None:
        self.rows[group.shape].append(group.row(method, skipped=f"skipped: {reason}"))

    def _begin(self, contender: Contender, x: Tensor) -> Timed:
        batch = x[: len(x) // BATCHES]
        return Timed(contender, [], [], contender.first(batch))

    def _rounds(self, running: list[Timed], x: Tensor, batch: int, seconds: float) -> None:
        begun = time.monotonic()
        for i in range(MOST):
            spent = time.monotonic() - begun
            if (i >= LEAST and spent > seconds) or (i >= 1 and self.left() < -(LATE - 1) * self.seconds):
                return
            some = x[i % BATCHES * batch :][:batch]
            for timed in running:
                before = time.perf_counter()
                timed.contender.step(some)
                timed.whole.append(time.perf_counter() - before)
                timed.stages.append(timed.contender.clocked(some))


def measure(
    shapes: Sequence[Shape],
    *,
    seconds: float = 60.0,
    dead: float = 0.05,
    layer: Callable[[], Kernels] = kernel_layer,
    progress: Progress | None = None,
) -> Json:
    """Every architecture at every shape in about `seconds`, compiling not counted. Ctrl-C returns what there is.

    dead: the share of features that count as dead, for the architectures that have a loss for them.
    """
    used = layer()
    session = Session(shapes, seconds, dead, layer, progress or Silent())
    is_interrupted = False
    try:
        session.run()
    except KeyboardInterrupt:
        is_interrupted = True
    return to_json(session, used, is_interrupted)


def to_json(session: Session, layer: Kernels, is_interrupted: bool) -> Json:
    """efficiency.json: all that the table and the page need."""
    order = list(METHODS)
    every = [row for rows in session.rows.values() for row in rows]
    product = getattr(layer, "product", None)
    return {
        "schema": EFFICIENCY_SCHEMA,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **store.provenance(),
        "threads": torch.get_num_threads(),
        "kernels": layer.name,
        "kernels_why": getattr(product, "why", ""),
        "is_interrupted": is_interrupted,
        "methods": [{"key": key, **method._asdict()} for key, method in METHODS.items()],
        "measures": [one._asdict() for one in MEASURES],
        "stages": stages_found(every),
        "notes": notes(session.dead, any(row["peak_bytes"] is not None for row in every)),
        "shapes": [
            {
                **shape._asdict(),
                "label": shape.label,
                "floor": {
                    "products": [one._asdict() for one in session.limits[shape].products],
                    "copy_bytes_per_s": session.limits[shape].bandwidth,
                },
                "rows": sorted(rows, key=lambda row: (row["order"], order.index(row["method"]))),
            }
            for shape, rows in session.rows.items()
            if rows
        ],
    }


@functools.lru_cache(maxsize=4)
def data(shape: Shape) -> Tensor:
    """[BATCHES·B, d] activations from a synthetic dictionary, in the unit E‖x‖² = 1."""
    directions = min(shape.width, DIRECTIONS)
    options = {
        "d": max(2, shape.d), "features": directions, "l0": min(shape.l0, directions / 4), "groups": 1,
        "rows": BATCHES * shape.batch,
    }  # fmt: skip
    config = ActivationsConfig(origin="synthetic", options=options)
    (x,) = ORIGINS.get(config.origin).open(config).rows(0).values()
    return x / x.square().sum(1).mean().sqrt()
