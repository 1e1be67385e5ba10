"""Training many SAEs on one stream of activations.

Every SAE is trained on every batch. Batch i depends on the study alone, and an SAE's state after batch i on the SAE's
inputs and batches 0 … i. So an SAE that is added later, or resumed from a checkpoint, gets bit-identical weights.
Activations x become (x − μ)/C, in the unit of each SAE (sae/unit.py): E‖x‖² = 1.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jumpahead.engine import Kernels, StepDiagnostics
from jumpahead.formatting import format_duration
from jumpahead.progress import Progress, SilentProgress
from jumpahead.sae.recipe import Recipe, TrainConfig, learning_rate_at, sparsity_warmup_share
from jumpahead.sae.unit import Unit
from jumpahead.storage.save_schedule import SaveSchedule
from jumpahead.training.interrupts import catch_interrupts
from jumpahead.training.job import Job
from jumpahead.training.sink import Sink, values_of_line

if TYPE_CHECKING:
    from jumpahead.activations.stream import Stream

LOG_LINES = 200
"""Approximate number of lines of train.jsonl per SAE. The number of steps between lines is odd: with β₁ = 0 an SAE may
oscillate between even and odd steps, and an even interval would sample only one of the two."""
DIAGNOSTICS_EVERY = 7
"""Every n-th line of train.jsonl has diagnostics: about 30 steps per run, each about 3 % slower than other steps."""


def train(
    jobs: Sequence[Job],
    stream: Stream,
    config: TrainConfig,
    kernels: Kernels,
    progress: Progress | None = None,
    unit: str = "tokens",
    sinks: Sequence[Sink] = (),
) -> None:
    """Train every job up to step `config.steps`.

    On Ctrl-C, finish the step, write the checkpoints of all jobs and raise KeyboardInterrupt. Raises DivergedError if a
    loss is not finite, and StudyError or DataError if the stream cannot be read.
    stream: returns the batches from a given index on.
    unit: name of the activations in the progress display, plural.
    sinks: take every new line of the logs.
    """
    progress, steps = progress or SilentProgress(), config.steps
    first = min(job.state.steps_done for job in jobs)
    schedule = SaveSchedule(config.checkpoint_minutes)
    with (
        catch_interrupts() as interrupted,
        progress.phase("training", config.tokens, unit, first * config.batch) as p,
        contextlib.closing(stream.batches(first)) as batches,
    ):
        for i, batch in zip(range(first, steps), batches, strict=False):
            due = [job for job in jobs if job.state.steps_done == i]
            inputs = batches_in_units(batch, due)
            shown: dict[str, dict[str, float]] = {}

            def step_of(
                job: Job,
                i: int = i,
                inputs: dict[UnitKey, UnitBatch] = inputs,
                shown: dict[str, dict[str, float]] = shown,
            ) -> None:
                if not interrupted():
                    shown[job.label] = advance_job(job, i, inputs[unit_key(job)], config, kernels)

            with attribute_shared_time(due):
                kernels.run_concurrently(due, step_of)
            p.advance(config.batch, {job.label: shown[job.label] for job in due if shown.get(job.label)})
            log_to_sinks(sinks, [job for job in due if shown.get(job.label)])
            if interrupted() or schedule.is_due:
                started = schedule.clock()
                for job in jobs:
                    job.synchronize(kernels)
                checkpoint_all(jobs, progress, interrupted())
                schedule.record(started)


def log_to_sinks(sinks: Sequence[Sink], jobs: Sequence[Job]) -> None:
    """Give the last line of the log of each job to every sink."""
    for sink in sinks:
        for job in jobs:
            sink.log(job.label, job.records[-1]["step"], values_of_line(job.records[-1]))


@contextlib.contextmanager
def attribute_shared_time(jobs: Sequence[Job]) -> Iterator[None]:
    """Split the wall time of this context among the jobs, in proportion to the time that each job measured in it.

    If steps run concurrently, the times measured by the jobs add up to more than the wall time.
    """
    before, begun = [job.seconds for job in jobs], time.perf_counter()
    yield
    passed, own = time.perf_counter() - begun, [job.seconds - was for job, was in zip(jobs, before, strict=True)]
    share = min(1.0, passed / max(sum(own), 1e-9))
    for job, was, seconds in zip(jobs, before, own, strict=True):
        job.seconds = was + share * seconds


def time_breakdown(total: float, steps: float, activations: float, overlapped: bool) -> str:
    """Return a sentence on how the wall time of a training was spent.

    total: wall time, seconds.
    steps: time in the steps of all SAEs, seconds.
    activations: time spent producing activations, seconds.
    overlapped: whether activations were produced concurrently with training steps.
    """
    parts = {"SAEs' own steps": steps, "their activations" + ", beside them," * overlapped: activations}
    share = 100 / max(total, 1e-9)
    phrases = (f"{name} {format_duration(seconds)} ({share * seconds:.0f} %)" for name, seconds in parts.items())
    return f"Of {format_duration(total)}, {' and '.join(phrases)}."


def remaining_learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the sum of Adam's learning rates from `step` (0-based) to the last of `steps`.

    With β₁ = 0, this is about the largest distance that a parameter can still move.
    """
    return math.fsum(learning_rate_at(recipe, i, steps) for i in range(step, steps))


class UnitBatch(NamedTuple):
    """A batch of one site in one unit."""

    x: Tensor
    """[B, d] activations in the unit, on the device of the jobs."""
    limited: Tensor | None
    """Number of rows that were scaled down, 0-d; None if the unit has no limit."""


UnitKey = tuple[str, Unit, torch.device]
"""The site, unit and device of a job: jobs with equal keys share their batch."""


def unit_key(job: Job) -> UnitKey:
    """Return the key of a job's batch."""
    return job.site, job.unit, job.device


def batches_in_units(batch: dict[str, Tensor], jobs: Sequence[Job]) -> dict[UnitKey, UnitBatch]:
    """Return the batch of each site in every unit in which a job needs it, on the device of the job.

    batch: [B, d] activations by site, in the LM's unit.
    """
    keys = dict.fromkeys(map(unit_key, jobs))
    return {key: UnitBatch(*key[1].apply(batch[key[0]].to(key[2]))) for key in keys}


def checkpoint_all(jobs: Sequence[Job], progress: Progress, stopping: bool) -> None:
    """Write the checkpoint of every job; if `stopping`, raise KeyboardInterrupt afterwards."""
    if stopping:
        progress.say("Stopping: writing checkpoints …")
    for job in jobs:
        job.checkpoint()
    if stopping:
        raise KeyboardInterrupt


def advance_job(job: Job, i: int, batch: UnitBatch, config: TrainConfig, kernels: Kernels) -> dict[str, float]:
    """Run step i (0-based) of a job.

    Return the values for the progress display; an empty dict if the step is not logged.
    batch: the batch of the job's site, in the job's unit.
    """
    x = batch.x
    rules, steps = job.state.arch.recipe, config.steps
    every, is_last = max(1, steps // LOG_LINES) | 1, i + 1 == steps
    lr, warmup = learning_rate_at(rules, i, steps), sparsity_warmup_share(rules, i)
    diagnostics = None
    if (i + 1) % (every * DIAGNOSTICS_EVERY) == 0 or is_last:
        diagnostics = StepDiagnostics(job.state, config.batch, warmup)
    result = job.step(x, lr, warmup, kernels, diagnostics)
    if batch.limited is not None:
        job.limited_rows = job.limited_rows + batch.limited
    if (i + 1) % every != 0 and not is_last:
        return {}
    job.synchronize(kernels)
    health = diagnostics and diagnostics.summary(job.state, remaining_learning_rate(rules, i + 1, steps))
    return job.log_step(result, x, lr, health)
