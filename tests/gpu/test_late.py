"""A step that does not wait: what it may not do, and that what it finds out late changes no byte."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jumpahead.engine import async_step, dense_features, step
from jumpahead.errors import DivergedError
from tests.engine.cases import CASES, activations, assert_close, assert_same_bytes, scrambled
from tests.gpu.card import DEVICE, PATHS, WAYS, back, cuda, layer, moved, there

B, D, M = 8, 5, 12


def architectures():
    found = {}
    for case in CASES:
        found.setdefault(case.architecture, case)
    return list(found.values())


FALLING = {"threshold_pull": 2.5, "l0_start": 1.3, "l0_steps": 21}  # whatever else a step does
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


@pytest.mark.parametrize(("case", "path"), WAYS, ids=lambda one: getattr(one, "label", one))
def test_nothing_is_waited_for_within_a_step(case, path, monkeypatch):
    """But who goes through products, every KEEP steps."""
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense_features, name, value)
    state, kernels = there(scrambled(case, D, M, 5, torch.float32, dead_after=24, **FALLING)), layer()
    state.t = 40
    step(state, batch(0), 0.003, 0.7, kernels)
    if DEVICE.type == "cuda":
        step(state, batch(1), 0.003, 0.7, kernels)  # a second, with the layout of memory settled
        async_step.settle(state, kernels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            async_step.launch(state, batch(2), 0.003, 0.7, kernels, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    async_step.settle(state, kernels)
    x = batch(1)
    with NoWaiting():
        launched = async_step.launch(state, x, 0.003, 0.7, kernels, None)
    assert state.t == 42
    assert launched.done.result.entries > 0


def steps(state, kernels, count, lr=0.003):
    """On the device, launched one behind the other, and back."""
    state = there(state)
    results = [step(state, batch(i), lr, 0.7, kernels) for i in range(count)]
    found = back(state, kernels)
    return found, [result.read() for result in results]


@some
def test_too_little_room_is_made_and_changes_no_byte(case, monkeypatch):
    """Room for one candidate: the first steps overflow while others are on their way already."""
    start = scrambled(case, D, M, 5, torch.float32, dead_after=24, **FALLING)
    if "threshold" in start.p and case.keeps_largest:
        start.p["threshold"][:] = 0.0  # no guess that could be too high
    wanted = steps(start, layer(), 3)
    monkeypatch.setattr(cuda, "ROOM", 0.1)
    monkeypatch.setattr(cuda, "STEP", 1)
    monkeypatch.setattr(cuda, "LONG", 10**6)  # with the same cuts: how many there may be follows from the room
    launches, real = [], async_step.launch

    def launch(*args):
        launches.append(1)
        return real(*args)

    monkeypatch.setattr(async_step, "launch", launch)
    kernels = cuda.Triton(DEVICE, late=True)
    kernels._rooms = {}
    monkeypatch.setattr(kernels, "_room", lambda w, x: kernels._rooms.setdefault("", 1))
    monkeypatch.setattr(kernels, "note", lambda w, needed, short: kernels._rooms.update({"": max(1, needed)}))
    found = steps(start, kernels, 3)
    assert len(launches) > 4, "nothing was done again"
    assert_same_bytes(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_a_guess_that_is_too_high_is_lowered_and_decides_only_what_is_observed():
    case = next(case for case in CASES if case.architecture == "batchtopk" and case.options.get("aux") == 0.21)
    start = scrambled(case, D, M, 5, torch.float32, dead_after=24, **FALLING)
    found = []
    for threshold in (0.0, 40.0):
        start.p["threshold"][:] = threshold
        state, _ = steps(start, layer(), 2)
        state.p["threshold"][:] = 0.0
        found.append(state)
    assert_same_bytes(*found)


@some
@pytest.mark.parametrize("bad", [float("nan"), 1e30])
def test_a_batch_that_is_not_finite_leaves_the_state_before_it(case, bad):
    """Seen when the next batch is on its way, which then has done nothing either."""
    start, kernels = scrambled(case, D, M, 5, torch.float32, dead_after=24, **FALLING), layer()
    wanted, _ = steps(start, layer(), 1)
    state, broken = there(start), batch(1)
    broken[3, 2] = bad
    step(state, batch(0), 0.003, 0.7, kernels)
    step(state, broken, 0.003, 0.7, kernels)
    with pytest.raises(DivergedError):
        step(state, batch(2), 0.003, 0.7, kernels)
    assert_same_bytes(back(state, kernels), wanted)
    step(state, batch(0), 0.003, 0.7, kernels)  # and it can go on
    assert back(state, kernels).t == wanted.t + 1


@some
def test_a_run_is_repeated_bit_by_bit(case):
    start = scrambled(case, D, M, 6, torch.float32, dead_after=24, **FALLING)
    assert_same_bytes(steps(start, layer(), 3)[0], steps(start, layer(), 3)[0])


def test_resampling_and_watching_wait_and_see_what_the_cpu_sees():
    from jumpahead.engine import Watch, kernel_layer

    case = next(case for case in CASES if case.architecture == "jumprelu" and case.setting.kind == "l0")
    start = scrambled(case, D, M, 5, torch.float64, resample_every=2, revive_until=40, adam_epsilon=1.0, **FALLING)
    start.silent[:3] = 10**6
    start.t, healths, states = 16, [], []
    for layer_, device in ((layer(), DEVICE), (kernel_layer("plain"), torch.device("cpu"))):
        state = moved(start, device)
        for i in range(3):  # step 18 resamples
            x = activations(B, D, 300 + i).to(device)
            watch = Watch(state, B, 1.0) if i == 1 else None
            step(state, x, 0.01, 1.0, layer_, watch)
            if watch is not None:
                healths.append(watch.health(state, 0.5))
        states.append(back(state, layer_))
    assert healths[0] == pytest.approx(healths[1], rel=1e-9)
    assert (states[0].last[:3] >= 18).all()
    assert_close(*states, 1e-9)
