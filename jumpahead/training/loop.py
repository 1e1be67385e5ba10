"""Training many SAEs on one stream of activations.

Every SAE sees every batch. Batch i is a function of the study alone, an SAE's state after it is a function of its own
inputs and of batches 0 … i. So an SAE that joins later, or continues from a checkpoint, ends with the same bytes.
x is divided by the site's scale C first: training happens in the unit E‖x‖² = 1.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from jumpahead.engine import Kernels, StepDiagnostics
from jumpahead.formatting import format_duration
from jumpahead.progress import Progress, Silent
from jumpahead.sae.recipe import Recipe, TrainConfig, learning_rate_at, sparsity_warmup_share
from jumpahead.training.interrupts import interruptible
from jumpahead.training.job import Job

if TYPE_CHECKING:
    from jumpahead.activations.stream import Stream

LOG_LINES = 200
"""Lines of train.jsonl per SAE, about. Steps between lines are an odd number: with β₁ = 0 an SAE may oscillate from
step to step, and an even number would show one side only."""
DIAGNOSTICS_EVERY = 7
"""Every n-th of these lines has diagnostics: about 30 steps of a run, each of which takes some 3 % longer."""


def train(
    jobs: Sequence[Job],
    stream: Stream,
    config: TrainConfig,
    kernels: Kernels,
    progress: Progress | None = None,
    unit: str = "tokens",
) -> None:
    """Train every job to config.steps. Ctrl-C finishes the step, checkpoints all jobs, and raises KeyboardInterrupt.

    stream: the batches, by index. unit: what progress calls the activations. Raises DivergedError if a loss is not
    finite; StudyError and DataError of the stream pass through.
    """
    progress, steps = progress or Silent(), config.steps
    first = min(job.state.steps_done for job in jobs)
    saved = time.monotonic()
    with (
        interruptible() as interrupted,
        progress.phase("training", config.tokens, unit, first * config.batch) as p,
        contextlib.closing(stream.batches(first)) as batches,
    ):
        for i, batch in zip(range(first, steps), batches, strict=False):
            x, due = scaled_batch(batch, jobs), [job for job in jobs if job.state.steps_done == i]
            shown: dict[str, dict[str, float]] = {}

            def step_of(
                job: Job, i: int = i, x: dict[str, Tensor] = x, shown: dict[str, dict[str, float]] = shown
            ) -> None:
                if not interrupted():
                    shown[job.label] = advance_job(job, i, x[job.site], config, kernels)

            with attribute_shared_time(due):
                kernels.run_concurrently(due, step_of)
            p.advance(config.batch, {job.label: shown[job.label] for job in due if shown.get(job.label)})
            if interrupted() or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                for job in jobs:
                    job.synchronize(kernels)
                checkpoint_all(jobs, progress, interrupted())
                saved = time.monotonic()


@contextlib.contextmanager
def attribute_shared_time(jobs: Sequence[Job]) -> Iterator[None]:
    """Split the wall time of this context among the jobs, in proportion to the time that each measured for itself.

    Steps may run at the same time, and their own times would then add up to more than has passed.
    """
    before, begun = [job.seconds for job in jobs], time.perf_counter()
    yield
    passed, own = time.perf_counter() - begun, [job.seconds - was for job, was in zip(jobs, before, strict=True)]
    share = min(1.0, passed / max(sum(own), 1e-9))
    for job, was, seconds in zip(jobs, before, own, strict=True):
        job.seconds = was + share * seconds


def time_breakdown(whole: float, own: float, made: float, beside: bool) -> str:
    """Return a sentence on where a training's time went.

    whole, own, made: seconds in all, in SAEs' steps, and making activations. beside: whether activations were made
    at the same time as steps.
    """
    parts = {"SAEs' own steps": own, "their activations" + ", beside them," * beside: made}
    share = 100 / max(whole, 1e-9)
    words = (f"{what} {format_duration(seconds)} ({share * seconds:.0f} %)" for what, seconds in parts.items())
    return f"Of {format_duration(whole)}, {' and '.join(words)}."


def remaining_learning_rate(r: Recipe, step: int, steps: int) -> float:
    """Return Σ of Adam's learning rate from `step` (0-based) to the end: how far β₁ = 0 can move a parameter."""
    return math.fsum(learning_rate_at(r, i, steps) for i in range(step, steps))


def scaled_batch(batch: dict[str, Tensor], jobs: Sequence[Job]) -> dict[str, Tensor]:
    """Return each site's batch [B, d] in the unit E‖x‖² = 1, on the device of its jobs."""
    units = {(job.site, job.scale, job.device) for job in jobs}
    return {site: batch[site].to(device) * (1.0 / scale) for site, scale, device in units}


def checkpoint_all(jobs: Sequence[Job], progress: Progress, stopping: bool) -> None:
    """Checkpoint every job; if `stopping`, raise KeyboardInterrupt afterwards."""
    if stopping:
        progress.say("Stopping: writing checkpoints …")
    for job in jobs:
        job.checkpoint()
    if stopping:
        raise KeyboardInterrupt


def advance_job(job: Job, i: int, x: Tensor, config: TrainConfig, kernels: Kernels) -> dict[str, float]:
    """Run step i (0-based) of an SAE; return what progress shows of it, empty if the step has no line in the log."""
    rules, steps = job.state.arch.recipe, config.steps
    every, is_last = max(1, steps // LOG_LINES) | 1, i + 1 == steps
    lr, warmup = learning_rate_at(rules, i, steps), sparsity_warmup_share(rules, i)
    diagnostics = None
    if (i + 1) % (every * DIAGNOSTICS_EVERY) == 0 or is_last:
        diagnostics = StepDiagnostics(job.state, config.batch, warmup)
    result = job.step(x, lr, warmup, kernels, diagnostics)
    if (i + 1) % every != 0 and not is_last:
        return {}
    job.synchronize(kernels)
    health = diagnostics and diagnostics.summary(job.state, remaining_learning_rate(rules, i + 1, steps))
    return job.log_step(result, x, lr, health)
