"""Asynchronous GPU steps: buffer overflow and non-finite loss are detected after launch; affected steps are replayed.

A step is launched without waiting for the device, and its report is read when the next step has been launched. A step
that was not valid changed nothing on the device (`rollback.py`), and neither did the one launched after it. The host
grows the buffers, or lowers the guess of `TopKOfBatch`, and runs both again on the same batches: the state gets the
bytes that large enough buffers would have given it. If the loss is not finite, DivergedError is raised and the state is
that before the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from jumpahead.engine.interface import (
    AsyncKernels,
    CompletedStep,
    InFlightState,
    Kernels,
    PendingStep,
    State,
    StepObserver,
)
from jumpahead.engine.rollback import MAX_LOSS
from jumpahead.errors import DivergedError

MAX_RETRIES = 16
"""Replays of one step after which the engine itself must be wrong: buffers grow to the measured demand."""


def step_async(
    run: Callable[[], CompletedStep], state: State, kernels: AsyncKernels, observer: StepObserver | None = None
) -> CompletedStep:
    """Launch a step and check the one before; return the launched step. With an observer, wait for both.

    run: runs the step on the state as it is then; called again if the step is replayed.
    """
    if observer is not None:
        synchronize(state, kernels)
    in_flight = state.in_flight = state.in_flight or InFlightState(state.last_touched.device)
    pending = launch_step(run, kernels, observer)
    previous, in_flight.last_step = in_flight.last_step, pending
    if previous is not None:
        check_and_replay(state, [previous, pending], kernels)
    if observer is not None:
        synchronize(state, kernels)
    return pending.done


def synchronize(state: State, kernels: Kernels) -> None:
    """Wait for the last step of a state, and replay it if it was not valid. Call before reading anything of the state.

    Does nothing for a synchronous layer. Raises DivergedError if the loss of that step was not finite.
    """
    in_flight = state.in_flight
    if in_flight is not None and in_flight.last_step is not None:
        last, in_flight.last_step = in_flight.last_step, None
        check_and_replay(state, [last], cast(AsyncKernels, kernels))


def launch_step(
    run: Callable[[], CompletedStep], kernels: AsyncKernels, observer: StepObserver | None = None
) -> PendingStep:
    """Launch a step and the copy of its report to the host; return both, without waiting for the device."""
    if observer is not None:
        observer.reset()
    kernels.buffer_demands.clear()
    done = run()
    demands = list(kernels.buffer_demands)
    assert done.is_valid is not None
    numbers = [done.is_valid.double(), torch.as_tensor(done.result.squared_error + done.result.penalty).reshape(1)]
    numbers += [number.double() for demand in demands for number in (demand.needed, demand.guess_too_high)]
    on_device, arrived = torch.cat(numbers), None
    report = torch.empty(on_device.shape, dtype=on_device.dtype, pin_memory=on_device.is_cuda)
    report.copy_(on_device, non_blocking=True)
    if on_device.is_cuda:
        arrived = torch.cuda.Event()
        arrived.record()
    return PendingStep(run, observer, done, demands, report, arrived)


def check_and_replay(state: State, steps: list[PendingStep], kernels: AsyncKernels) -> None:
    """Wait for the first of the pending steps; if it was not valid, replay all of them, in place.

    The results that were handed out get the replayed numbers. Raises DivergedError if the loss is not finite.
    """
    if steps[0].was_valid():
        for demand, needed in zip(steps[0].demands, steps[0].report[2::2].tolist(), strict=True):
            kernels.record_demand(demand.w_enc, int(needed), guess_too_high=False)
        return
    in_flight = state.in_flight
    assert in_flight is not None
    in_flight.last_step = None
    in_flight.is_valid.fill_(1)
    state.steps_done -= len(steps)
    for failed in steps:
        replayed = failed
        for _ in range(MAX_RETRIES):
            grow_buffers(replayed, kernels)
            in_flight.is_valid.fill_(1)
            replayed = launch_step(failed.run, kernels, failed.observer)
            if replayed.was_valid():
                break
            state.steps_done -= 1
        else:
            raise AssertionError("a step whose buffers never suffice")
        for old, new in zip(failed.done.result[:4], replayed.done.result[:4], strict=True):
            assert isinstance(old, Tensor)
            assert isinstance(new, Tensor)
            old.copy_(new)
        failed.done.error.copy_(replayed.done.error)
        failed.done.centred.x.copy_(replayed.done.centred.x)


def grow_buffers(failed: PendingStep, kernels: AsyncKernels) -> None:
    """Record the demands of a failed step, so that its buffers grow or its guess falls; waits for its report.

    Raises DivergedError if all buffers sufficed: then the loss was not finite or huge.
    """
    failed.was_valid()  # waits for the report
    fits = True
    numbers = failed.report[2:].view(-1, 2).tolist()
    for demand, (needed, guess_too_high) in zip(failed.demands, numbers, strict=True):
        if needed > demand.capacity or guess_too_high:
            fits = False
            kernels.record_demand(demand.w_enc, int(needed), guess_too_high=bool(guess_too_high))
    if fits and not failed.report[1] < MAX_LOSS:
        raise DivergedError(f"the loss is {float(failed.report[1]):.3g}")
