"""What a step on a GPU finds out late: that it did not fit, or that its loss is not finite.

A step is launched without waiting for the device. Everything that it would change is changed under a flag on the
device: rows by kernels that look at it, everything smaller by keeping what was there (`small`, `keep`). The flag falls
where

    the support had more candidates than there was room for, or a guess of `LargestOfBatch` was too high, or
    the loss is not finite, or
    it fell in the step before.

It is read when the next step is on its way, whose kernels then touch nothing either. The host makes room, or lowers the
guess, and does both steps again, with the same batches: the state has the bytes that enough room would have given it.
Where the loss is not finite it raises DivergedError, and the state is that before the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from jumpahead.errors import DivergedError

if TYPE_CHECKING:
    from jumpahead.engine.step import Done, Kernels, LateKernels, State, StepResult
    from jumpahead.engine.step_diagnostics import Watch
    from jumpahead.sae.controller import Control

LARGEST = 1e15
"""A loss beyond which squared gradients overflow float32 and rows would be lost for good; about 1 is usual."""
TRIES = 16
"""Times that a step is done again before we think ourselves mistaken."""


class Demand(NamedTuple):
    """What a support would have needed."""

    w: Tensor
    """Of which encoder."""
    room: int
    """Places there were."""
    needed: Tensor
    """[1] int64: places wanted."""
    short: Tensor
    """[1] bool: a guess was too high to find as many entries as were asked for."""


@dataclass
class Launched:
    """A step on its way, and all it takes to do it again."""

    x: Tensor
    lr: float
    warmup: float
    watch: Watch | None
    done: Done
    demands: list[Demand]
    report: Tensor
    """float64 on the host, once `arrived`: whether it was fine, the loss; of every demand what was needed, and whether
    it fell short."""
    arrived: Any
    """The event that says so; None where there is nothing to wait for."""

    def is_fine(self) -> bool:
        """Waits for it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.report[0])


class Flight:
    """Of one state."""

    def __init__(self, device: torch.device):
        self.fine = torch.ones(1, dtype=torch.int32, device=device)
        """0 once a step failed, until the host has seen it."""
        self.last: Launched | None = None


def step(state: State, x: Tensor, lr: float, warmup: float, kernels: LateKernels, watch: Watch | None = None) -> Done:
    """Launch a step, then see to the one before."""
    if watch is not None:
        settle(state, kernels)
    flight = state.flight = state.flight or Flight(x.device)
    launched = launch(state, x, lr, warmup, kernels, watch)
    before, flight.last = flight.last, launched
    if before is not None:
        see_to(state, [before, launched], kernels)
    if watch is not None:
        settle(state, kernels)
    return launched.done


def settle(state: State, kernels: Kernels) -> None:
    """Wait for the last step of a state, and see to it: what is read of a state after this is as it should be.

    Nothing to do where the layer is not late.
    """
    flight = state.flight
    if flight is not None and flight.last is not None:
        last, flight.last = flight.last, None
        see_to(state, [last], cast("LateKernels", kernels))


def launch(state: State, x: Tensor, lr: float, warmup: float, kernels: LateKernels, watch: Watch | None) -> Launched:
    """One step, and its report on the way to the host."""
    from jumpahead.engine.step import once

    if watch is not None:
        watch.reset()
    kernels.demands.clear()
    done = once(state, x, lr, warmup, kernels, watch)
    demands = list(kernels.demands)
    assert done.fine is not None
    rows = [done.fine.double(), torch.as_tensor(done.result.error + done.result.penalty).reshape(1)]
    rows += [row.double() for demand in demands for row in (demand.needed, demand.short)]
    there, arrived = torch.cat(rows), None
    report = torch.empty(there.shape, dtype=there.dtype, pin_memory=there.is_cuda)
    report.copy_(there, non_blocking=True)
    if there.is_cuda:
        arrived = torch.cuda.Event()
        arrived.record()
    return Launched(x, lr, warmup, watch, done, demands, report, arrived)


def judge(state: State, result: StepResult, kernels: LateKernels) -> Tensor:
    """[1] int32 on the device: whether the step at hand may touch the state."""
    assert state.flight is not None
    fine = (torch.as_tensor(result.error + result.penalty) < LARGEST).reshape(1) & (state.flight.fine > 0)
    for demand in kernels.demands:
        fine &= (demand.needed <= demand.room) & ~demand.short
    state.flight.fine = fine.int()
    return state.flight.fine


class Small(NamedTuple):
    """What a step changes besides rows."""

    vectors: dict[tuple[str, str], Tensor]
    """[M] and [d] parameters and moments, by kind and name."""
    silent: Tensor
    share: Tensor
    control: Control | None


def small(state: State) -> Small:
    """As it is, to be kept."""
    kinds = {"p": state.p, "v": state.v}
    vectors = {(k, name): t.clone() for k, kind in kinds.items() for name, t in kind.items() if t.dim() == 1}
    return Small(vectors, state.silent, state.share, state.control)


def keep(state: State, before: Small, fine: Tensor | None) -> None:
    """Go back to `before` where the step was not fine, on the device."""
    assert fine is not None
    was_fine = fine > 0
    kinds = {"p": state.p, "v": state.v}
    for (kind, name), old in before.vectors.items():
        now = kinds[kind][name]
        now.copy_(torch.where(was_fine, now, old))
    state.silent = torch.where(was_fine, state.silent, before.silent)
    if state.share is not before.share:
        state.share = torch.where(was_fine, state.share, before.share)
    if state.control is not None and before.control is not None:
        pairs = zip(state.control, before.control, strict=True)
        state.control = type(state.control)(*(torch.where(was_fine, now, old).reshape(()) for now, old in pairs))


def see_to(state: State, steps: list[Launched], kernels: LateKernels) -> None:
    """Where the first of the steps that are on their way was not fine, do all of them again."""
    if steps[0].is_fine():
        for demand, needed in zip(steps[0].demands, steps[0].report[2::2].tolist(), strict=True):
            kernels.note(demand.w, int(needed), short=False)
        return
    flight = state.flight
    assert flight is not None
    flight.last = None
    flight.fine.fill_(1)
    state.t -= len(steps)
    for failed in steps:
        again = failed
        for _ in range(TRIES):
            mend(again, kernels)
            flight.fine.fill_(1)
            again = launch(state, failed.x, failed.lr, failed.warmup, kernels, failed.watch)
            if again.is_fine():
                break
            state.t -= 1
        else:
            raise AssertionError("a step that never fits")
        for old, new in zip(failed.done.result[:4], again.done.result[:4], strict=True):
            assert isinstance(old, Tensor)
            assert isinstance(new, Tensor)
            old.copy_(new)
        failed.done.error.copy_(again.done.error)
        failed.done.centred.x.copy_(again.done.centred.x)


def mend(failed: Launched, kernels: LateKernels) -> None:
    """Make the room that was wanting; raise DivergedError where it was not that."""
    failed.is_fine()  # its report has arrived
    fits = True
    numbers = failed.report[2:].view(-1, 2).tolist()
    for demand, (needed, short) in zip(failed.demands, numbers, strict=True):
        if needed > demand.room or short:
            fits = False
            kernels.note(demand.w, int(needed), short=bool(short))
    if fits and not failed.report[1] < LARGEST:
        raise DivergedError(f"the loss is {float(failed.report[1]):.3g}")
