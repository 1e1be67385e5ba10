"""Asynchronous GPU steps: they do not synchronize, and replayed steps give the same bytes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jumpahead.engine import async_step, dense_features, train_step
from jumpahead.engine.async_step import launch_step
from jumpahead.engine.step import run_step
from jumpahead.errors import DivergedError
from tests.engine.cases import CASES, activations, assert_close, assert_same_bytes, random_state
from tests.gpu.device import CASES_AND_PATHS, DEVICE, PATHS, copy_to, new_layer, to_cpu, to_device, triton_layer

B, D, M = 8, 5, 12


def architectures():
    found = {}
    for case in CASES:
        found.setdefault(case.architecture, case)
    return list(found.values())


ANNEALED = {
    "threshold_decay": 2.5,
    "initial_l0_multiplier": 1.3,
    "l0_anneal_steps": 21,
}  # schedules that change in every step
each_architecture = pytest.mark.parametrize("case", architectures(), ids=lambda case: case.architecture)


def batch(i, dtype=torch.float32):
    return activations(B, D, 7 * i, dtype).to(DEVICE)


SYNCHRONIZING = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive",
    "lift_fresh", "repeat_interleave", "equal", "is_nonzero", "allclose",
}  # fmt: skip
"""Torch operations that synchronize with a GPU (or copy a number from the host to it)."""


class NoSynchronization(TorchDispatchMode):
    """Fails on operations that would synchronize with a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        assert name not in SYNCHRONIZING, f"{func} synchronizes with the device"
        if name in ("index", "index_put", "_index_put_impl"):
            assert not any(one is not None and one.dtype == torch.bool for one in args[1]), (
                "indexing with a mask synchronizes"
            )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=lambda one: getattr(one, "label", one))
def test_a_step_does_not_synchronize(case, path, monkeypatch):
    """Except for the choice of the dense features, which is updated every few steps."""
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense_features, name, value)
    state, kernels = (
        to_device(random_state(case, D, M, 5, torch.float32, dead_after_tokens=24, **ANNEALED)),
        new_layer(),
    )
    state.steps_done = 40
    train_step(state, batch(0), 0.003, 0.7, kernels)
    if DEVICE.type == "cuda":
        train_step(state, batch(1), 0.003, 0.7, kernels)  # a second one, so that the allocator's cache is warm
        async_step.synchronize(state, kernels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            launch_step(partial(run_step, state, batch(2), 0.003, 0.7, kernels), kernels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    async_step.synchronize(state, kernels)
    x = batch(1)
    with NoSynchronization():
        launched = launch_step(partial(run_step, state, x, 0.003, 0.7, kernels), kernels)
    assert state.steps_done == 42
    assert launched.done.result.support_size > 0


def steps(state, kernels, count, lr=0.003):
    """Run steps on the device without synchronizing between them; return the state on the CPU, and the results."""
    state = to_device(state)
    results = [train_step(state, batch(i), lr, 0.7, kernels) for i in range(count)]
    found = to_cpu(state, kernels)
    return found, [result.read() for result in results]


@each_architecture
def test_buffer_overflow_is_repaired_and_changes_no_byte(case, monkeypatch):
    """Capacity for one candidate: the first steps overflow while later ones are already launched."""
    start = random_state(case, D, M, 5, torch.float32, dead_after_tokens=24, **ANNEALED)
    if "threshold" in start.params and case.is_topk:
        start.params["threshold"][:] = 0.0  # no guess can be too high
    wanted = steps(start, new_layer(), 3)
    monkeypatch.setattr(triton_layer, "INITIAL_CAPACITY", 0.1)
    monkeypatch.setattr(triton_layer, "CAPACITY_STEP", 1)
    monkeypatch.setattr(triton_layer, "PIECE", 10**6)  # the number of pieces depends on the capacity
    launches, real = [], launch_step

    def launch(*args):
        launches.append(1)
        return real(*args)

    monkeypatch.setattr(async_step, "launch_step", launch)
    kernels = new_layer()
    kernels._capacities = {}
    monkeypatch.setattr(kernels, "_capacity", lambda w, x: kernels._capacities.setdefault("", 1))
    monkeypatch.setattr(
        kernels, "record_demand", lambda w, needed, guess_too_high: kernels._capacities.update({"": max(1, needed)})
    )
    found = steps(start, kernels, 3)
    assert len(launches) > 4, "no step was replayed"
    assert_same_bytes(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_a_guess_that_is_too_high_is_lowered_and_does_not_change_the_update():
    case = next(case for case in CASES if case.architecture == "batchtopk" and case.options.get("aux") == 0.21)
    start = random_state(case, D, M, 5, torch.float32, dead_after_tokens=24, **ANNEALED)
    found = []
    for threshold in (0.0, 40.0):
        start.params["threshold"][:] = threshold
        state, _ = steps(start, new_layer(), 2)
        state.params["threshold"][:] = 0.0
        found.append(state)
    assert_same_bytes(*found)


@each_architecture
@pytest.mark.parametrize("bad", [float("nan"), 1e30])
def test_a_non_finite_batch_leaves_the_state_unchanged(case, bad):
    """It is detected after the next step is launched, which changes nothing either."""
    start, kernels = random_state(case, D, M, 5, torch.float32, dead_after_tokens=24, **ANNEALED), new_layer()
    wanted, _ = steps(start, new_layer(), 1)
    state, broken = to_device(start), batch(1)
    broken[3, 2] = bad
    train_step(state, batch(0), 0.003, 0.7, kernels)
    train_step(state, broken, 0.003, 0.7, kernels)
    with pytest.raises(DivergedError):
        train_step(state, batch(2), 0.003, 0.7, kernels)
    assert_same_bytes(to_cpu(state, kernels), wanted)
    train_step(state, batch(0), 0.003, 0.7, kernels)  # training can continue
    assert to_cpu(state, kernels).steps_done == wanted.steps_done + 1


@each_architecture
def test_a_run_is_reproducible_bit_by_bit(case):
    start = random_state(case, D, M, 6, torch.float32, dead_after_tokens=24, **ANNEALED)
    assert_same_bytes(steps(start, new_layer(), 3)[0], steps(start, new_layer(), 3)[0])


def test_resampling_and_diagnostics_equal_those_of_the_cpu():
    from jumpahead.engine import StepDiagnostics, kernel_layer

    case = next(case for case in CASES if case.architecture == "jumprelu" and case.setting.kind == "l0")
    start = random_state(
        case, D, M, 5, torch.float64, resample_every=2, revive_until_step=40, adam_epsilon=1.0, **ANNEALED
    )
    start.tokens_since_fired[:3] = 10**6
    start.steps_done, summaries, states = 16, [], []
    for layer_, device in ((new_layer(), DEVICE), (kernel_layer("torch"), torch.device("cpu"))):
        state = copy_to(start, device)
        for i in range(3):  # step 18 resamples
            x = activations(B, D, 300 + i).to(device)
            diagnostics = StepDiagnostics(state, B, 1.0) if i == 1 else None
            train_step(state, x, 0.01, 1.0, layer_, diagnostics)
            if diagnostics is not None:
                summaries.append(diagnostics.summary(state, 0.5))
        states.append(to_cpu(state, layer_))
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-9)
    assert (states[0].last_touched[:3] >= 18).all()
    assert_close(*states, 1e-9)
