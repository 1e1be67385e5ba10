"""One architecture at one shape, and the rows that measuring it produces."""

from __future__ import annotations

import functools
import statistics
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.efficiency import cost_model
from jumpahead.efficiency.dense_training import DenseLoss, dense_losses
from jumpahead.efficiency.implementations import StepImplementation
from jumpahead.efficiency.labels import TOKEN_BUDGETS
from jumpahead.efficiency.machine_limits import MachineLimits
from jumpahead.efficiency.step_shapes import StepShape
from jumpahead.engine import State, initial_state
from jumpahead.sae import recipe as recipes
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.recipe import Setting, TrainConfig

Json = dict[str, Any]

BATCHES = 3
"""Batches that the steps cycle through."""
INITIALISATION_SAMPLE = 1024
"""Activations that initialisation uses."""
MAX_DIRECTIONS = 4096
"""Upper bound on the directions of the synthetic dictionary."""
SLOWDOWN = {"engine": 2.0, "dense": 3.0, "approximate": 3.0}
"""Assumed ratio of a step's time to the time of its FLOPs and bytes at full speed, before any measurement."""


@final
class BenchmarkCase:
    """One architecture at one shape."""

    def __init__(self, shape: StepShape, name: str, limits: MachineLimits, dead: float):
        self.shape, self.limits = shape, limits
        kind = ARCHITECTURES.get(name)
        train = TrainConfig(batch=shape.batch)
        setting = Setting("l0", shape.l0)
        recipe = kind.recipe_for(train, recipes.Shape(shape.d, shape.width, setting))
        self.arch = kind(kind.Options(), setting, recipe)
        chosen = torch.randperm(shape.width, generator=torch.Generator().manual_seed(0))[: round(dead * shape.width)]
        self.dead = torch.zeros(shape.width, dtype=torch.bool).index_fill_(0, chosen, True) if len(chosen) else None
        self.dead = self.dead if self.arch.needs_dead_features else None
        parts = [one for one in self.arch.reconstructions if one.target == "input" or self.dead is not None]
        parts = [one for one in parts if not one.extends_previous]  # a prefix chain counts once, see cost_model.py
        self.size = cost_model.StepSize(
            shape.batch, shape.d, shape.width, entries=shape.batch * shape.l0, touched=shape.width,
            reconstructions=len(parts), live=sum(part.trains_decoder for part in parts),
            unit_norm=self.arch.decoder_norm == "unit", momentum=recipe.beta1 > 0,
        )  # fmt: skip

    def estimated_seconds(self, method: str) -> float:
        """Estimate the time of one step, from its FLOPs and bytes."""
        size = self.size
        flops, moved = (
            (cost_model.engine_flops(size), cost_model.engine_bytes(size))
            if method == "engine"
            else (cost_model.dense_flops(size), cost_model.dense_bytes(size))
        )
        return SLOWDOWN[method] * (flops / self.limits.float32_flops + moved / self.limits.bandwidth)

    def state_and_losses(self, x: Tensor) -> tuple[State, dict[str, DenseLoss], StepInputs]:
        """Return an untrained SAE, the dense losses by method, and the inputs of its steps. x [n, d]."""
        state = initial_state(self.arch, self.shape.d, self.shape.width, 0, x[:INITIALISATION_SAMPLE])
        inputs = StepInputs(state.sparsity_coefficient if state.controller else 0.0, self.dead)
        with torch.no_grad():
            return state, dense_losses(self.arch, state.params, x[:64], inputs), inputs

    def required_bytes(self, method: str) -> float:
        """Estimate the memory of an implementation in bytes, parameters and moments included."""
        if method == "engine":
            # The moments, and at most one matrix more: the low-precision copy of W_enc.
            return cost_model.state_bytes(self.size, moments=2 + self.size.momentum)
        return cost_model.state_bytes(self.size, moments=2) + cost_model.dense_peak_bytes(self.size)

    def row(self, method: str, **values: Any) -> Json:
        """Return a row of the result; fields that are not given are None."""
        empty = dict.fromkeys(
            ("ms", "lower_quartile_ms", "upper_quartile_ms", "rounds", "tokens_per_s", "stages_ms", "l0", "entries",
             "touched", "flops", "bytes", "state_bytes", "peak_bytes", "recall", "lower_bound_ms", *TOKEN_BUDGETS,
             "skipped")
        )  # fmt: skip
        names = {"architecture": self.arch.name, "title": self.arch.title, "method": method}
        return {**names, "stages": {}, **empty, **values}


class ImplementationTimes(NamedTuple):
    """An implementation and the times measured of it."""

    implementation: StepImplementation
    step_seconds: list[float]
    """Of each plain step."""
    stage_seconds: list[dict[str, float]]
    """Of each profiled step, by stage."""
    peak_bytes: int | None


def measured_row(case: BenchmarkCase, measured: ImplementationTimes) -> Json:
    """Return the result row of an implementation that has completed at least one round."""
    ms = sorted(1e3 * seconds for seconds in measured.step_seconds)
    median = statistics.median(ms)
    keys = dict.fromkeys(key for one in measured.stage_seconds for key in one)
    stages = {key: statistics.median(1e3 * one.get(key, 0.0) for one in measured.stage_seconds) for key in keys}
    stages = {key: value for key, value in stages.items() if value > 0}
    costs = measured.implementation.costs(case.size)
    touched = case.size._replace(touched=costs.get("touched", case.shape.width))
    rate = 1e3 * case.shape.batch / median
    return case.row(
        measured.implementation.method, ms=median, lower_quartile_ms=ms[len(ms) // 4],
        upper_quartile_ms=ms[-1 - len(ms) // 4], rounds=len(ms), tokens_per_s=rate, stages=stages,
        stages_ms=sum(stages.values()), peak_bytes=measured.peak_bytes,
        lower_bound_ms=case.limits.lower_bound_ms(cost_model.rows_bytes(touched)),
        **{key: tokens / rate / 3600 for key, tokens in TOKEN_BUDGETS.items()}, **costs,
    )  # fmt: skip


@functools.lru_cache(maxsize=4)
def synthetic_activations(shape: StepShape) -> Tensor:
    """Return [BATCHES·B, d] activations from a synthetic sparse dictionary, scaled to E‖x‖² = 1."""
    directions = min(shape.width, MAX_DIRECTIONS)
    options = {
        "d": max(2, shape.d), "features": directions, "l0": min(shape.l0, directions / 4), "groups": 1,
        "rows_per_group": BATCHES * shape.batch,
    }  # fmt: skip
    config = ActivationsConfig(origin="synthetic", options=options)
    (x,) = ORIGINS.get(config.origin).open(config).rows(0).values()
    return x / x.square().sum(1).mean().sqrt()
