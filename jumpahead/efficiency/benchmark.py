"""`measure`: every implementation of every architecture, interleaved, within a time limit → efficiency.json.

    machine limits → per shape and architecture: activations, warm-up steps (peak memory), rounds → rows

The cheapest cases are measured first. A dense implementation that would exceed the memory or the time left is skipped;
its row says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from jumpahead.efficiency.cases import (
    BATCHES,
    SLOWDOWN,
    BenchmarkCase,
    ImplementationTimes,
    Json,
    measured_row,
    synthetic_activations,
)
from jumpahead.efficiency.dense_training import DenseTrainer
from jumpahead.efficiency.implementations import (
    DENSE_IMPLEMENTATIONS,
    DenseRecipe,
    SparseEngine,
    StepImplementation,
)
from jumpahead.efficiency.labels import MEASURES, METHODS, notes, stages_in
from jumpahead.efficiency.machine_limits import MachineLimits, copy_bandwidth, measure_limits
from jumpahead.efficiency.memory import available_bytes
from jumpahead.efficiency.step_shapes import StepShape
from jumpahead.engine import Kernels, kernel_layer
from jumpahead.formatting import format_bytes, format_duration
from jumpahead.progress import Progress, SilentProgress
from jumpahead.report import EFFICIENCY_SCHEMA
from jumpahead.report.series_style import architecture_rank
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.environment import describe_environment

LR_FACTOR = 1e-3
"""Learning rate as a multiple of the recipe's: weights hardly change, so every round does the same work."""
WARM_UP_STEPS, MIN_ROUNDS, MAX_ROUNDS = 2, 3, 60
MAX_OVERRUN = 1.5
"""A case may end after at most this multiple of the time limit."""


@final
class EfficiencyBenchmark:
    """One measurement: the cases, the rows measured so far, and the time left."""

    def __init__(
        self, shapes: Sequence[StepShape], seconds: float, dead: float, layer: Callable[[], Kernels], progress: Progress
    ):
        self.shapes, self.seconds, self.dead, self.layer, self.progress = shapes, seconds, dead, layer, progress
        self.deadline = time.monotonic() + seconds
        self.rows: dict[StepShape, list[Json]] = {shape: [] for shape in shapes}
        self.limits: dict[StepShape, MachineLimits] = {}
        self.methods: dict[str, list[str]] = {}
        """By architecture."""
        self.measured_over_estimated = dict.fromkeys(SLOWDOWN, 1.0)
        """Measured over estimated step time by method, from the latest case."""

    def seconds_left(self) -> float:
        """Return the seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def run(self) -> None:
        """Measure all cases. Rows are kept if it is interrupted."""
        self._compile()
        self.deadline = time.monotonic() + self.seconds
        bandwidth = copy_bandwidth()
        for shape in self.shapes:
            self.limits[shape] = measure_limits(shape.batch, shape.d, shape.width, bandwidth)
        cases = [
            BenchmarkCase(shape, name, self.limits[shape], self.dead)
            for shape in self.shapes
            for name in ARCHITECTURES.names()
        ]
        cases.sort(key=lambda case: case.estimated_seconds("dense"))
        with self.progress.phase("efficiency", len(cases), "architectures") as phase:
            for i, case in enumerate(cases):
                weights = [sum(map(one.estimated_seconds, self.methods[one.arch.name])) for one in cases[i:]]
                self._measure(case, max(0.0, self.seconds_left()) * weights[0] / sum(weights))
                phase.advance(1)

    def _compile(self) -> None:
        """Run a tiny step of every implementation, so that compilation and imports are not timed."""
        tiny = StepShape(d=16, width=64, batch=32, l0=4)
        for name in ARCHITECTURES.names():
            case, x = BenchmarkCase(tiny, name, MachineLimits([], 1.0), 0.25), synthetic_activations(tiny)
            state, losses, inputs = case.state_and_losses(x)
            SparseEngine(state, case.dead, self.layer(), 0.0).profiled_step(x)
            self.methods[name] = ["engine", *losses]
            for loss in losses.values():
                trainer = DenseTrainer(case.arch, state.params, list(state.second_moments), loss, 0.0)
                DenseRecipe(trainer, inputs, "highest").profiled_step(x)

    def _measure(self, case: BenchmarkCase, seconds: float) -> None:
        """Run rounds of one case for about `seconds`; completed rounds become rows even if it is interrupted."""
        if reason := self._skip_reason(case, "engine"):
            for method in self.methods[case.arch.name]:
                self._skip(case, method, self._skip_reason(case, method) or reason)
            return
        x = synthetic_activations(case.shape)
        state, losses, inputs = case.state_and_losses(x)
        lr = LR_FACTOR * case.arch.recipe.lr
        running: list[ImplementationTimes] = []
        try:
            running.append(self._warm_up(SparseEngine(state, case.dead, self.layer(), lr), x))
            for method, loss in losses.items():
                if reason := self._skip_reason(case, method):
                    self._skip(case, method, reason)
                    continue
                trainer = DenseTrainer(case.arch, state.params, list(state.second_moments), loss, lr)
                implementation = DENSE_IMPLEMENTATIONS[method](trainer, inputs, case.limits.float32_precision)
                running.append(self._warm_up(implementation, x))
            self._run_rounds(running, x, case.shape.batch, seconds)
        finally:
            for measured in running:
                if measured.step_seconds and measured.stage_seconds:
                    row = measured_row(case, measured)
                    self.rows[case.shape].append(row)
                    ratio = row["ms"] / 1e3 / case.estimated_seconds(row["method"])
                    self.measured_over_estimated[row["method"]] = ratio

    def _skip_reason(self, case: BenchmarkCase, method: str) -> str | None:
        """Return why a method cannot be measured, None if it can."""
        if (required := case.required_bytes(method)) > available_bytes():
            return f"would need {format_bytes(required)} of memory"
        rounds = 1 if method == "engine" else MIN_ROUNDS
        step_seconds = self.measured_over_estimated[method] * case.estimated_seconds(method)
        expected = (WARM_UP_STEPS + 2 * rounds) * step_seconds
        if expected > max(self.seconds_left(), 0.0):
            left = format_duration(self.seconds_left())
            return f"would take about {format_duration(max(expected, 1.0))}, --seconds leaves {left}"
        return None

    def _skip(self, case: BenchmarkCase, method: str, reason: str) -> None:
        self.rows[case.shape].append(case.row(method, skipped=f"skipped: {reason}"))

    def _warm_up(self, implementation: StepImplementation, x: Tensor) -> ImplementationTimes:
        batch = x[: len(x) // BATCHES]
        return ImplementationTimes(implementation, [], [], implementation.warm_up(batch))

    def _run_rounds(self, running: list[ImplementationTimes], x: Tensor, batch: int, seconds: float) -> None:
        started = time.monotonic()
        for i in range(MAX_ROUNDS):
            spent = time.monotonic() - started
            is_overrun = i >= 1 and self.seconds_left() < -(MAX_OVERRUN - 1) * self.seconds
            if (i >= MIN_ROUNDS and spent > seconds) or is_overrun:
                return
            rows = x[i % BATCHES * batch :][:batch]
            for measured in running:
                before = time.perf_counter()
                measured.implementation.step(rows)
                measured.step_seconds.append(time.perf_counter() - before)
                measured.stage_seconds.append(measured.implementation.profiled_step(rows))


def measure(
    shapes: Sequence[StepShape],
    *,
    seconds: float = 60.0,
    dead: float = 0.05,
    layer: Callable[[], Kernels] = kernel_layer,
    progress: Progress | None = None,
) -> Json:
    """Measure every architecture at every shape in about `seconds`, excluding compilation; return efficiency.json.

    Ctrl-C returns the rows measured so far. dead: the share of features that count as dead, for architectures with a
    loss for dead features.
    """
    used_layer = layer()
    benchmark = EfficiencyBenchmark(shapes, seconds, dead, layer, progress or SilentProgress())
    is_interrupted = False
    try:
        benchmark.run()
    except KeyboardInterrupt:
        is_interrupted = True
    return to_json(benchmark, used_layer, is_interrupted)


def to_json(benchmark: EfficiencyBenchmark, layer: Kernels, is_interrupted: bool) -> Json:
    """Return the contents of efficiency.json: all that the table and the page show."""
    order = list(METHODS)
    all_rows = [row for rows in benchmark.rows.values() for row in rows]
    encoder_backend = getattr(layer, "encoder_backend", None)
    return {
        "schema": EFFICIENCY_SCHEMA,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **describe_environment(),
        "threads": torch.get_num_threads(),
        "kernels": layer.name,
        "kernels_reason": getattr(encoder_backend, "reason", ""),
        "is_interrupted": is_interrupted,
        "methods": [{"key": key, **method._asdict()} for key, method in METHODS.items()],
        "measures": [one._asdict() for one in MEASURES],
        "stages": stages_in(all_rows),
        "notes": notes(benchmark.dead, any(row["peak_bytes"] is not None for row in all_rows)),
        "shapes": [
            {
                **shape._asdict(),
                "label": shape.label,
                "limits": {
                    "products": [one._asdict() for one in benchmark.limits[shape].products],
                    "copy_bytes_per_s": benchmark.limits[shape].bandwidth,
                },
                "rows": sorted(
                    rows, key=lambda row: (architecture_rank(row["architecture"]), order.index(row["method"]))
                ),
            }
            for shape, rows in benchmark.rows.items()
            if rows
        ],
    }
