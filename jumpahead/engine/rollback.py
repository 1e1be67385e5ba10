"""Roll back a step on the device: its validity flag, and a snapshot of what no kernel guards.

The flag of a step is 0, and the step changes nothing, if

    a support needed more entries than its buffers hold, or a guess of `TopKOfBatch` was too high, or
    the loss is not finite or huge, or
    the step before was not valid and has not been replayed yet.

Kernels that update rows read the flag; everything smaller is copied before the step and restored after it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.engine.interface import AsyncKernels, State, StepResult
from jumpahead.sae.controller import ControllerState

MAX_LOSS = 1e15
"""A loss above which squared gradients overflow float32, which would ruin rows for good. Usual losses are about 1."""


def check_validity(state: State, result: StepResult, kernels: AsyncKernels) -> Tensor:
    """Return the validity flag of the step at hand, [1] int32 on the device, and keep it in `state.in_flight`."""
    assert state.in_flight is not None
    is_finite = (torch.as_tensor(result.squared_error + result.penalty) < MAX_LOSS).reshape(1)
    is_valid = is_finite & (state.in_flight.is_valid > 0)
    for demand in kernels.buffer_demands:
        is_valid &= (demand.needed <= demand.capacity) & ~demand.guess_too_high
    state.in_flight.is_valid = is_valid.int()
    return state.in_flight.is_valid


class Snapshot(NamedTuple):
    """The parts of a state that a step changes, besides the rows of W_enc and W_dec."""

    vectors: dict[tuple[str, str], Tensor]
    """Copies of the [M] and [d] parameters and second moments, by (kind, name)."""
    tokens_since_fired: Tensor
    support_share: Tensor
    controller: ControllerState | None


def take_snapshot(state: State) -> Snapshot:
    """Return a snapshot of the state before a step."""
    kinds = {"params": state.params} | state.moment_tables()
    vectors = {(kind, name): t.clone() for kind, table in kinds.items() for name, t in table.items() if t.dim() == 1}
    return Snapshot(vectors, state.tokens_since_fired, state.support_share, state.controller)


def restore_if_failed(state: State, before: Snapshot, is_valid: Tensor | None) -> None:
    """Restore the snapshot, in place and on the device, if the step was not valid. is_valid [1] int32."""
    assert is_valid is not None
    keep = is_valid > 0
    kinds = {"params": state.params} | state.moment_tables()
    for (kind, name), old in before.vectors.items():
        now = kinds[kind][name]
        now.copy_(torch.where(keep, now, old))
    state.tokens_since_fired = torch.where(keep, state.tokens_since_fired, before.tokens_since_fired)
    if state.support_share is not before.support_share:
        state.support_share = torch.where(keep, state.support_share, before.support_share)
    if state.controller is not None and before.controller is not None:
        pairs = zip(state.controller, before.controller, strict=True)
        state.controller = type(state.controller)(*(torch.where(keep, now, old).reshape(()) for now, old in pairs))
