"""The implementations of a training step that are compared: the sparse engine and dense training."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from jumpahead.efficiency import cost_model
from jumpahead.efficiency.cost_model import StepSize
from jumpahead.efficiency.dense_training import DenseTrainer, recall
from jumpahead.efficiency.machine_limits import matmul_precision
from jumpahead.efficiency.memory import PeakMemory
from jumpahead.efficiency.profiling import OperationTimer, TimedKernels, dense_forward_stages, sparse_step_stages
from jumpahead.engine import Kernels, State, StepResult, train_step
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.support import TopKPerToken


class StepImplementation(ABC):
    """One implementation of a training step, with an SAE of its own."""

    method: ClassVar[str]
    """Its key in `labels.METHODS`."""

    @abstractmethod
    def warm_up(self, x: Tensor) -> int | None:
        """Train two steps on x [B, d]; return one step's peak memory in bytes beyond parameters, moments and batch."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Train on x [B, d]."""

    @abstractmethod
    def profiled_step(self, x: Tensor) -> dict[str, float]:
        """Train on x [B, d]; return the seconds per stage."""

    @abstractmethod
    def costs(self, size: StepSize) -> dict[str, Any]:
        """Return the fields of a result row that are not times: FLOPs, bytes, counts."""


@final
class SparseEngine(StepImplementation):
    """The sparse engine of this package."""

    method = "engine"

    def __init__(self, state: State, dead: Tensor | None, layer: Kernels, lr: float):
        self.state, self.dead, self.layer, self.lr = state, dead, layer, lr
        self.results: list[StepResult] = []

    def warm_up(self, x: Tensor) -> int | None:
        with PeakMemory() as memory:  # the first step: the kernel layer's persistent scratch memory is counted
            self.step(x)
        self.step(x)
        return memory.bytes

    def step(self, x: Tensor) -> None:
        self._step(x, self.layer)

    def profiled_step(self, x: Tensor) -> dict[str, float]:
        timed = TimedKernels(self.layer)
        started = time.perf_counter()
        self._step(x, cast(Kernels, timed))
        return sparse_step_stages(timed.calls, time.perf_counter() - started)

    def _step(self, x: Tensor, layer: Kernels) -> None:
        self.state.tokens_since_fired.zero_()  # keeps the set of dead features the same in every step
        if self.dead is not None:
            self.state.tokens_since_fired[self.dead] = self.state.arch.recipe.dead_after_tokens
        self.results.append(train_step(self.state, x, self.lr, 1.0, layer))

    def costs(self, size: StepSize) -> dict[str, Any]:
        l0, entries = (
            statistics.mean(values) for values in zip(*((r.l0, r.support_size) for r in self.results), strict=True)
        )
        touched = int((self.state.last_touched == self.state.steps_done).sum())
        size = size._replace(entries=entries * size.batch, touched=touched)
        return {
            "l0": l0, "entries": entries, "touched": touched,
            "flops": cost_model.engine_flops(size), "bytes": cost_model.engine_bytes(size),
            "state_bytes": cost_model.state_bytes(size, moments=1 + size.momentum),
        }  # fmt: skip


class DenseRecipe(StepImplementation):
    """Dense training with exact top-k."""

    method = "dense"

    def __init__(self, trainer: DenseTrainer, inputs: StepInputs, precision: str):
        self.trainer, self.inputs, self.precision = trainer, inputs, precision

    def warm_up(self, x: Tensor) -> int | None:
        self.step(x)  # allocates the moments
        with PeakMemory() as memory:
            self.step(x)
        return memory.bytes

    def step(self, x: Tensor) -> None:
        with matmul_precision(self.precision):
            self.trainer.step(x, self.inputs)

    def profiled_step(self, x: Tensor) -> dict[str, float]:
        with matmul_precision(self.precision):
            with OperationTimer() as timer:
                loss = self.trainer.forward(x, self.inputs)
            backward_started = time.perf_counter()
            self.trainer.backward(loss)
            update_started = time.perf_counter()
            self.trainer.update()
            ended = time.perf_counter()
        width, d = self.trainer.p["W_enc"].shape
        forward = dense_forward_stages(timer.operations, len(x), d, width)
        return {**forward, "backward": update_started - backward_started, "optimizer": ended - update_started}

    def costs(self, size: StepSize) -> dict[str, Any]:
        return {
            "flops": cost_model.dense_flops(size), "bytes": cost_model.dense_bytes(size),
            "state_bytes": cost_model.state_bytes(size, moments=2),
        }  # fmt: skip


@final
class ApproximateTopK(DenseRecipe):
    """Dense training with approximate top-k; also measures its recall."""

    method = "approximate"
    x: Tensor

    def warm_up(self, x: Tensor) -> int | None:
        self.x = x
        return super().warm_up(x)

    @torch.no_grad()
    def costs(self, size: StepSize) -> dict[str, Any]:
        p, arch = self.trainer.p, self.trainer.arch
        selection = arch.selection(p, arch.derive(p), self.inputs, training=True)
        assert isinstance(selection, TopKPerToken)
        pre = (self.x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        return super().costs(size) | {"recall": recall(pre, selection.k)}


DENSE_IMPLEMENTATIONS: dict[str, type[DenseRecipe]] = {
    implementation.method: implementation for implementation in (DenseRecipe, ApproximateTopK)
}
