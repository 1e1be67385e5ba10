"""The numba kernel layer: vector operations, rounding, threads, array bounds, and the choice of the matmul backend."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba import njit
from numba.core.dispatcher import Dispatcher

from jumpahead.engine.kernels.numba import entry_loops, matmul_backends, screen, sparse_ops
from jumpahead.engine.kernels.numba.matmul_backends import BACKENDS, TORCH_DEFAULT, float32_backend
from jumpahead.engine.kernels.numba.simd import (
    LANES,
    greater_mask,
    lowest_bit,
    round_bounds_down,
    to_float,
    upper_bound_mask,
)
from jumpahead.engine.kernels.numba.sparse_ops import round_rows_to_bf16
from jumpahead.engine.kernels.numba.threads import parallel_for, parallel_for_each, split_range
from tests.engine.cases import standard_normal


@njit
def _greater_mask(entries, start, bound):
    return greater_mask(entries, start, bound)


@njit
def _upper_bound_mask(entries, start, lost, shift, slope, row, floor):
    return upper_bound_mask(entries, start, lost, shift, slope, row, floor)


@njit
def _to_float(entries, out):
    for i in range(len(entries)):
        out[i] = to_float(entries[i])


@njit
def _lowest_bit(mask):
    return lowest_bit(mask)


def set_bits(mask):
    """Return the positions of the set bits of a uint64."""
    return [q for q in range(LANES) if (int(mask) >> q) & 1]


def bfloat16(values):
    """Return values rounded to bfloat16: their bits as int16, and as float32."""
    low = torch.as_tensor(values).bfloat16()
    return low.view(torch.int16).numpy(), low.float().numpy()


SPECIAL = [0.0, -0.0, 1.0, -1.0, 3e38, -3e38, float("inf"), -float("inf"), 1e-38, -1e-38, 2.0, -2.0]


def test_every_bfloat16_is_widened_exactly():
    low = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    out = np.empty(2**16, np.float32)
    _to_float(low.numpy(), out)
    np.testing.assert_array_equal(out, low.view(torch.bfloat16).float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("bound", [0.7, -0.3, 0.0, -2.5, 1e30, -1e30])
def test_a_rounded_bound_loses_no_entry_and_keeps_few_others(dtype, bound):
    values = torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), standard_normal(2 * LANES, seed=3)])[: 2 * LANES]
    bits, exact = bfloat16(values) if dtype == "bfloat16" else (values.to(getattr(torch, dtype)).numpy(),) * 2
    at = round_bounds_down(np.full(1, bound, exact.dtype), bits.dtype)[0]
    found = set_bits(_greater_mask(bits, LANES, at))
    wanted = [q for q in range(LANES) if exact[LANES + q] > exact.dtype.type(bound)]
    assert set(wanted) <= set(found)
    few = [q for q in range(LANES) if exact[LANES + q] > bound - 0.03 * abs(bound) - 1e-30]
    assert set(found) <= set(few), "a bfloat16 or two below the bound, no more"
    special = set_bits(_greater_mask(bits, 0, at))
    assert {q for q, value in enumerate(SPECIAL) if value > bound and value != float("inf")} <= set(special)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_upper_bound_mask_equals_numpy(dtype):
    values = standard_normal(3 * LANES, seed=4)
    bits, exact = bfloat16(values) if dtype == "bfloat16" else (values.to(getattr(torch, dtype)).numpy(),) * 2
    kind = exact.dtype.type
    row, floor = (standard_normal(3 * LANES, seed=seed).abs().numpy().astype(kind) for seed in (5, 6))
    for start in (0, LANES, 2 * LANES):
        found = set_bits(_upper_bound_mask(bits, start, kind(0.07), kind(0.3), kind(0.125), row, floor))
        some = slice(start, start + LANES)
        number_ = exact[some].astype(float)
        surplus = number_ + 0.07 * np.abs(number_) + 0.3 + 0.125 * row[some] - floor[some]
        assert (
            {q for q in range(LANES) if surplus[q] > 1e-5}
            <= set(found)
            <= {q for q in range(LANES) if surplus[q] > -1e-5}
        )


@pytest.mark.parametrize("position", [0, 1, 31, 32, 63])
def test_the_lowest_bit(position):
    assert _lowest_bit(np.uint64((1 << position) | (1 << 63))) == position


def test_rounding_to_bfloat16_equals_torchs_and_returns_rounding_norms():
    x = torch.cat(
        [standard_normal(40, 33, seed=7).float() * 10.0 ** torch.arange(-20, 20)[:, None], torch.ones(1, 33) + 2.0**-8]
    )
    low, rounding_norms = np.empty(x.shape, np.int16), np.empty(len(x), np.float32)
    round_rows_to_bf16(0, len(x), x.numpy(), low, rounding_norms)
    wanted = x.bfloat16()
    assert torch.equal(torch.from_numpy(low).view(torch.bfloat16), wanted), "ties to even included"
    exact = (x.double() - wanted.double()).norm(dim=1)
    seen = exact > 1e-18
    torch.testing.assert_close(torch.from_numpy(rounding_norms).double()[seen], exact[seen], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n", "pieces"), [(0, 4), (1, 4), (7, 3), (100, 16), (5, 5)])
def test_split_range_covers_every_index_once(n, pieces):
    found = split_range(n, pieces)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(n))
    assert len(found) <= max(1, min(n, pieces))


def test_parallel_for_covers_every_index_and_raises_errors():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        parallel_for(lambda start, stop: seen.extend(range(start, stop)), 1000)
        assert sorted(seen) == list(range(1000))

        def fails(start, stop):
            raise ValueError(f"{start}")

        with pytest.raises(ValueError, match="0"):
            parallel_for(fails, [(0, 1), (1, 2), (2, 3)])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_parallel_for_each_gives_each_item_once_to_a_worker_with_one_torch_thread(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parallel_for(lambda start, stop: None, 100)  # starts the threads
        seen, busy, settings = [], set(), set()

        def work(worker, item):
            assert worker not in busy
            busy.add(worker)
            settings.add(torch.get_num_threads())
            torch.rand(200, 200) @ torch.rand(200, 200)
            seen.append((worker, item))
            busy.remove(worker)

        parallel_for_each([7 * i for i in range(50)], work)
        assert sorted(item for _, item in seen) == [7 * i for i in range(50)]
        assert {worker for worker, _ in seen} <= set(range(threads))
        assert settings == {1}
        assert torch.get_num_threads() == threads

        def fails(worker, item):
            raise ValueError(f"item {item}")

        with pytest.raises(ValueError, match="item"):
            parallel_for_each([4, 5, 6], fails)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_no_index_is_out_of_bounds(tmp_path):
    """Run steps of every architecture compiled with bounds checks, in several blocks, with overflowing buffers."""
    program = """
        import torch
        from jumpahead.engine import train_step
        from jumpahead.engine.kernels.numba import NumbaKernels, layer, workspace
        from jumpahead.engine.kernels.numba.matmul_backends import ONEDNN_BF16, TORCH_DEFAULT, is_accurate
        from tests.engine.cases import CASES, activations, untrained_state

        layer.BLOCK_ENTRIES, workspace.INITIAL_CAPACITY = 70 * 64, 1
        seen = set()
        for case in CASES:
            if (case.architecture, str(case.options)) in seen:
                continue
            seen.add((case.architecture, str(case.options)))
            for backend in [TORCH_DEFAULT, *([ONEDNN_BF16] if is_accurate(ONEDNN_BF16) else [])]:
                state = untrained_state(case, 9, 200, torch.float32, dead_after_tokens=140)
                kernels = NumbaKernels(backend)
                for i in range(4):
                    train_step(state, activations(70, 9, i, torch.float32), 0.01, 1.0, kernels)
        print("steps done:", len(seen))
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert "steps done:" in done.stdout


def test_compiled_functions_inline_every_compiled_function_that_they_call():
    """A callee that is not inlined exists twice under one name, and which of the two runs depends on the cache."""
    loops = {
        loop for module in (entry_loops, screen, sparse_ops) for loop in vars(module).values() if is_compiled(loop)
    }
    calls = [(loop, loop.py_func.__globals__.get(name)) for loop in loops for name in loop.py_func.__code__.co_names]
    calls = [(caller, callee) for caller, callee in calls if is_compiled(callee)]
    assert len(calls) > 10
    for caller, callee in calls:
        assert callee.targetoptions.get("forceinline"), f"{callee.__name__}, which {caller.__name__} calls"


def is_compiled(value):
    """Return whether a value is a function compiled with numba."""
    return isinstance(value, Dispatcher)


def test_a_process_that_compiles_and_one_that_loads_give_the_same_bytes(tmp_path):
    """The row update with a gradient of the decoder norm: float32 rows, as in training, and a cache empty at first."""
    program = """
        import hashlib
        import torch
        from jumpahead.engine.interface import RowUpdate
        from jumpahead.engine.kernels.numba import NumbaKernels
        from jumpahead.engine.kernels.numba.matmul_backends import TORCH_DEFAULT
        from jumpahead.engine.lazy_adam import AdamStep
        from tests.engine.cases import CASES, random_state, standard_normal

        torch.set_num_threads(1)
        case = next(case for case in CASES if case.architecture == "relu")
        width, d = 40, 23
        state = random_state(case, d, width, 5, torch.float32)
        g_enc, g_dec, norm, x = (standard_normal(width, n, seed=n, dtype=torch.float32) for n in (d, d, 1, d))
        update = RowUpdate(x, (), None, (), (), (), norm[:, 0].contiguous(), False, (), None)
        every, step = torch.arange(width), AdamStep(lr=0.01, beta1=0.0, beta2=0.98, epsilon=1e-8, step=18)
        NumbaKernels(TORCH_DEFAULT).apply_row_gradients(
            every, g_enc, g_dec, torch.ones(width, 2, dtype=torch.bool), update, state, step
        )
        for tensors in (state.params, state.second_moments):
            for name in ("W_enc", "W_dec"):
                print(name, hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest())
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = []
    for _ in ("compiles", "loads"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=200
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert list(tmp_path.rglob("sparse_ops.apply_row_gradients*.nbc")), "nothing was cached"
    assert found[0].count("W_") == 4
    assert found[0] == found[1]


def test_the_backend_of_products_that_reach_the_weights_does_not_depend_on_timings(monkeypatch):
    """oneDNN if it is float32-accurate, else torch's default; never bfloat16."""
    choice, exact = float32_backend.__wrapped__, set(BACKENDS)
    monkeypatch.setattr(matmul_backends, "time_backends", lambda: pytest.fail("timings decided"))
    monkeypatch.setattr(matmul_backends, "is_accurate", lambda one: one in exact)
    assert choice() == matmul_backends.ONEDNN
    exact.discard(matmul_backends.ONEDNN)
    assert choice() == TORCH_DEFAULT
    exact.discard(TORCH_DEFAULT)
    with pytest.raises(AssertionError, match="not float32-accurate"):
        choice()
