"""A step that does not wait: what it may not do, and that what it finds out late changes no byte."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jumpahead.engine.cuda as cuda
from jumpahead.engine import dense, late, step
from jumpahead.errors import DivergedError
from tests.engine.cases import CASES, activations, assert_same_bytes, scrambled
from tests.gpu.card import DEVICE, PATHS, back, layer, there

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
B, D, M = 12, 7, 20


def architectures():
    found = {}
    for case in CASES:
        found.setdefault(case.architecture, case)
    return list(found.values())


some = pytest.mark.parametrize("case", architectures(), ids=lambda case: case.architecture)


def batch(i, dtype=torch.float32):
    return activations(B, D, 7 * i, dtype).to(DEVICE)


WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive",
    "lift_fresh", "repeat_interleave", "equal", "is_nonzero", "allclose",
}  # fmt: skip
"""Torch operations that wait for a GPU (or copy a number from the host to it)."""


class NoWaiting(TorchDispatchMode):
    """Fails where torch would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        assert name not in WAITS, f"{func} waits for the device"
        if name in ("index", "index_put", "_index_put_impl"):
            assert not any(one is not None and one.dtype == torch.bool for one in args[1]), "a mask as an index waits"
        return func(*args, **(kwargs or {}))


@cases
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_waited_for_within_a_step(case, path, monkeypatch):
    """But who goes through products, every KEEP steps."""
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense, name, value)
    state, kernels = there(scrambled(case, D, M, 5, torch.float32, dead_after=24)), layer()
    state.t = 40
    step(state, batch(0), 0.003, 0.7, kernels)
    if DEVICE.type == "cuda":
        step(state, batch(1), 0.003, 0.7, kernels)  # a second, with the layout of memory settled
        late.settle(state, kernels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            late.launch(state, batch(2), 0.003, 0.7, kernels, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    late.settle(state, kernels)
    x = batch(1)
    with NoWaiting():
        launched = late.launch(state, x, 0.003, 0.7, kernels, None)
    assert state.t == 42
    assert launched.done.result.entries > 0
