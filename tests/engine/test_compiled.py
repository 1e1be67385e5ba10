"""What holds for the compiled loops alone: their vector operations by hand, and that no index leaves its array."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba import njit

from jumpahead.engine.kernels.numba import product, sparse_ops
from jumpahead.engine.kernels.numba.simd import LANES, above, coarse, lowest_bit, number, reaching
from jumpahead.engine.kernels.numba.threads import cuts, each, spread
from tests.engine.cases import draw


@njit
def _above(entries, start, bound):
    return above(entries, start, bound)


@njit
def _reaching(entries, start, lost, shift, slope, row, floor):
    return reaching(entries, start, lost, shift, slope, row, floor)


@njit
def _numbers(entries, out):
    for i in range(len(entries)):
        out[i] = number(entries[i])


@njit
def _lowest(mask):
    return lowest_bit(mask)


def places(mask):
    """The set bits of a uint64."""
    return [q for q in range(LANES) if (int(mask) >> q) & 1]


def bfloat16(values):
    """As the product has it: bits in int16, and the numbers they stand for."""
    low = torch.as_tensor(values).bfloat16()
    return low.view(torch.int16).numpy(), low.float().numpy()


SPECIAL = [0.0, -0.0, 1.0, -1.0, 3e38, -3e38, float("inf"), -float("inf"), 1e-38, -1e-38, 2.0, -2.0]


def test_every_bfloat16_is_widened_exactly():
    low = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    out = np.empty(2**16, np.float32)
    _numbers(low.numpy(), out)
    np.testing.assert_array_equal(out, low.view(torch.bfloat16).float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("bound", [0.7, -0.3, 0.0, -2.5, 1e30, -1e30])
def test_a_coarse_bound_loses_nothing_and_keeps_little(dtype, bound):
    values = torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), draw(2 * LANES, seed=3)])[: 2 * LANES]
    bits, exact = bfloat16(values) if dtype == "bfloat16" else (values.to(getattr(torch, dtype)).numpy(),) * 2
    at = coarse(np.full(1, bound, exact.dtype), bits.dtype)[0]
    found = places(_above(bits, LANES, at))
    wanted = [q for q in range(LANES) if exact[LANES + q] > exact.dtype.type(bound)]
    assert set(wanted) <= set(found)
    few = [q for q in range(LANES) if exact[LANES + q] > bound - 0.03 * abs(bound) - 1e-30]
    assert set(found) <= set(few), "a bfloat16 or two below the bound, no more"
    special = places(_above(bits, 0, at))
    assert {q for q, value in enumerate(SPECIAL) if value > bound and value != float("inf")} <= set(special)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_reaching_by_numpy(dtype):
    values = draw(3 * LANES, seed=4)
    bits, exact = bfloat16(values) if dtype == "bfloat16" else (values.to(getattr(torch, dtype)).numpy(),) * 2
    kind = exact.dtype.type
    row, floor = (draw(3 * LANES, seed=seed).abs().numpy().astype(kind) for seed in (5, 6))
    for start in (0, LANES, 2 * LANES):
        found = places(_reaching(bits, start, kind(0.07), kind(0.3), kind(0.125), row, floor))
        some = slice(start, start + LANES)
        number_ = exact[some].astype(float)
        surplus = number_ + 0.07 * np.abs(number_) + 0.3 + 0.125 * row[some] - floor[some]
        assert (
            {q for q in range(LANES) if surplus[q] > 1e-5}
            <= set(found)
            <= {q for q in range(LANES) if surplus[q] > -1e-5}
        )


@pytest.mark.parametrize("place", [0, 1, 31, 32, 63])
def test_the_lowest_bit(place):
    assert _lowest(np.uint64((1 << place) | (1 << 63))) == place


def test_rounding_to_bfloat16_is_torchs_and_the_gap_is_measured():
    x = torch.cat([draw(40, 33, seed=7).float() * 10.0 ** torch.arange(-20, 20)[:, None], torch.ones(1, 33) + 2.0**-8])
    low, gaps = np.empty(x.shape, np.int16), np.empty(len(x), np.float32)
    sparse_ops.round_rows(0, len(x), x.numpy(), low, gaps)
    wanted = x.bfloat16()
    assert torch.equal(torch.from_numpy(low).view(torch.bfloat16), wanted), "ties to even included"
    exact = (x.double() - wanted.double()).norm(dim=1)
    seen = exact > 1e-18
    torch.testing.assert_close(torch.from_numpy(gaps).double()[seen], exact[seen], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n", "pieces"), [(0, 4), (1, 4), (7, 3), (100, 16), (5, 5)])
def test_cuts_cover_everything_once(n, pieces):
    found = cuts(n, pieces)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(n))
    assert len(found) <= max(1, min(n, pieces))


def test_a_loop_is_spread_over_threads_and_its_errors_come_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        spread(lambda start, stop: seen.extend(range(start, stop)), 1000)
        assert sorted(seen) == list(range(1000))

        def fails(start, stop):
            raise ValueError(f"{start}")

        with pytest.raises(ValueError, match="0"):
            spread(fails, [(0, 1), (1, 2), (2, 3)])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_item_is_worked_on_once_by_a_worker_of_its_own_in_which_torch_has_one_thread(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        spread(lambda start, stop: None, 100)  # its threads are the same
        seen, busy, settings = [], set(), set()

        def work(worker, item):
            assert worker not in busy
            busy.add(worker)
            settings.add(torch.get_num_threads())
            torch.rand(200, 200) @ torch.rand(200, 200)
            seen.append((worker, item))
            busy.remove(worker)

        each([7 * i for i in range(50)], work)
        assert sorted(item for _, item in seen) == [7 * i for i in range(50)]
        assert {worker for worker, _ in seen} <= set(range(threads))
        assert settings == {1}
        assert torch.get_num_threads() == threads

        def fails(worker, item):
            raise ValueError(f"item {item}")

        with pytest.raises(ValueError, match="item"):
            each([4, 5, 6], fails)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_no_index_leaves_its_array(tmp_path):
    """A few steps of every architecture, in several chunks, with more entries than room, compiled with checks."""
    program = """
        import torch
        import jumpahead.engine.kernels.numba as cpu
        from jumpahead.engine import step
        from jumpahead.engine.kernels.numba.product import BFLOAT16, DEFAULT, is_exact
        from tests.engine.cases import CASES, activations, start

        cpu.CHUNK, cpu.ROOM = 70 * 64, 1
        seen = set()
        for case in CASES:
            if (case.architecture, str(case.options)) in seen:
                continue
            seen.add((case.architecture, str(case.options)))
            for product in [DEFAULT, *([BFLOAT16] if is_exact(BFLOAT16) else [])]:
                state, kernels = start(case, 9, 200, torch.float32, dead_after=140), cpu.Compiled(product)
                for i in range(4):
                    step(state, activations(70, 9, i, torch.float32), 0.01, 1.0, kernels)
        print("steps done:", len(seen))
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert "steps done:" in done.stdout


def test_the_product_that_reaches_the_weights_does_not_hang_on_the_clock(monkeypatch):
    """oneDNN's where it is float32-accurate, else torch's default; never bfloat16."""
    choice, exact = product.float32.__wrapped__, set(product.PRODUCTS)
    monkeypatch.setattr(product, "timings", lambda: pytest.fail("a clock decided"))
    monkeypatch.setattr(product, "is_exact", lambda one: one in exact)
    assert choice() == product.ONEDNN
    exact.discard(product.ONEDNN)
    assert choice() == product.DEFAULT
    exact.discard(product.DEFAULT)
    with pytest.raises(AssertionError, match="not float32-accurate"):
        choice()
