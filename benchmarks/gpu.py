"""Training steps on this machine's GPU: checked first, then timed, in at most nine minutes.

    make bench-gpu                      all parts; writes RESULTS/<gpu>_<yyyymm>.json and .md
    make bench-gpu ARGS=--dry-run       tiny shapes on the CPU, writes nothing: checks that every part runs, with torch
                                        kernels, or with TRITON_INTERPRET=1 in Triton's interpreter
    make bench-gpu ARGS="--parts check steps"

Needs only torch, numpy and triton; part `pair` also needs transformers. Each part is written when it is done:

    warm       compiles the kernels, in as many processes as there are cores
    check      float32 steps against torch in float64 on the same GPU; two runs must give the same bytes
    ceilings   a large bfloat16 product and a large copy: the limits of the GPU
    steps      every architecture at every shape, with the time of its encoder product alone
    breakdown  the time per kernel-layer call of a JumpReLU step, and the time to launch it
    frontier   twelve SAEs of full width on one GPU and one stream of batches, or as many as fit
    pair       an LM's forward pass in bfloat16 and JumpReLU steps, each alone and both at once on two CUDA streams
    dense      dense training of JumpReLU and TopK: torch.compile, bfloat16 autocast or TF32, fused Adam
    l0         JumpReLU from L0 16 to 1024, against the dense step, whose time does not depend on L0
    peers      TopK with the sparse kernels of other libraries, if they are installed (gpu_peers.py)

jumpahead's TopK steps include AuxK, which searches for dead features though there are none. Dense steps and other
libraries have no AuxK.

Activations come from a known dictionary (synthetic.py). SAEs start at it, with thresholds at the requested L0. Times
are medians of single steps between CUDA events, over different batches, after a warm-up. |S| is the support size per
token. A part that fails, or for which no time is left, says so; the most important parts come first.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_peers
from benchmarks.gpu_report import PARTS, mask_digits, render_page
from benchmarks.gpu_setup import (
    CEILING_SIZES,
    CHECKED_SIZE,
    DENSE_VARIANTS,
    FRONTIER_SAES,
    L0S,
    PAPER_TOKENS,
    SIZES,
    TIMING_LR,
    TINY,
    Size,
    installed_version,
)
from benchmarks.gpu_steps import GPUSteps, TimedLayer
from benchmarks.machine import command_line, file_name_of
from jumpahead.engine import Kernels, State, kernel_layer, synchronize, train_step
from jumpahead.engine.async_step import launch_step
from jumpahead.engine.step import run_step
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import write_json

RESULTS = Path(__file__).parent / "RESULTS"
COMPILE_TIMEOUT_SECONDS = 150
"""Timeout of part `warm`: twice the expected time."""


class GPUBenchmark(GPUSteps):
    """The parts of the benchmark."""

    def warm(self) -> dict[str, Any]:
        """Compile the kernels of every architecture at every row length, in parallel processes."""
        began, asked = time.monotonic(), [(name, size) for size in self._distinct() for name in ARCHITECTURES.names()]
        if self.device.type != "cuda":
            return {"kernels": len(asked), "seconds": 0.0, "failed": 0}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with multiprocessing.get_context("spawn").Pool(min(len(asked), cores)) as pool:
            # A killed worker never returns a result; its kernels are then compiled when they are launched.
            done = pool.starmap_async(compile_kernels, asked, chunksize=1).get(COMPILE_TIMEOUT_SECONDS)
        return {"kernels": len(asked), "seconds": time.monotonic() - began, "failed": done.count(False)}

    def _distinct(self) -> list[Size]:
        """Return one small size per row length that kernels are compiled for: d rounded up to a power of two."""
        found = {(size.d - 1).bit_length(): Size(size.d, 4096, size.tokens, 64) for size in self.sizes}
        return list(found.values())

    def check(self) -> dict[str, Any]:
        """Compare steps of every architecture with torch in float64, and the bytes of two runs."""
        size, found = CHECKED_SIZE if self.device.type == "cuda" else TINY, []
        for name in ARCHITECTURES.names():
            runs = [self._run(name, size, layer, torch.float32) for layer in (self.layer, self.layer)]
            exact = self._run(name, size, kernel_layer("torch"), torch.float64)
            worst = max(
                (
                    (runs[0].params[key].double() - exact.params[key]).norm()
                    / exact.params[key].norm().clamp_min(1e-12)
                ).item()
                for key in exact.params
            )
            same = all(torch.equal(runs[0].params[key], runs[1].params[key]) for key in exact.params)
            found.append({"architecture": name, "worst": worst, "repeats": same, "fine": worst < 1e-3 and same})
        self._data = None
        return {"size": size._asdict(), "steps": 5, "rows": found}

    def _run(self, name: str, size: Size, layer: Kernels, dtype: torch.dtype) -> State:
        state, batches = self.state(name, size, dtype, adam_epsilon=1.0)  # a smooth function of the gradient
        for x in (batches * 5)[:5]:
            train_step(state, x.to(dtype), 0.1, 1.0, layer)
        synchronize(state, layer)
        return state

    def ceilings(self) -> dict[str, Any]:
        """Measure TFLOP/s of a bfloat16 product and GB/s of a copy (read plus written)."""
        n, numbers = CEILING_SIZES if self.device.type == "cuda" else (64, 2**10)
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        product = self.milliseconds([lambda: torch.mm(a, b)])
        source = torch.randn(numbers, device=self.device)
        target = torch.empty_like(source)
        copy = self.milliseconds([lambda: target.copy_(source)])
        return {"product_tflops": 2 * n**3 / product / 1e9, "copy_gb_per_s": 8 * source.numel() / copy / 1e6}

    def steps(self) -> dict[str, Any]:
        """Time every architecture at every size."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            for name in sorted(ARCHITECTURES.names(), key=lambda name: name not in ("jumprelu", "topk", "gated")):
                rows.append({"architecture": name, "size": size._asdict()})
                self.measure_into(rows[-1], lambda n=name, s=size: self.sparse_step(n, s))
        return {"rows": rows}

    def dense(self) -> dict[str, Any]:
        """Time dense training at every size."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            for name, how in DENSE_VARIANTS:
                row = {"architecture": name, "size": size._asdict(), "way": how}
                rows.append(row)
                self.measure_into(row, lambda n=name, s=size, h=how: self.compiled_step(n, s, h))
        return {"rows": rows}

    def peers(self) -> dict[str, Any]:
        """Time TopK with other libraries' kernels at every size."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            for peer in gpu_peers.PEERS:
                row = {"architecture": "topk", "size": size._asdict(), "way": peer.module}
                rows.append(row | {"version": installed_version(peer.package)})
                if importlib.util.find_spec(peer.module) is None:
                    rows[-1]["absent"] = f"{peer.module} is not installed"
                else:
                    self.measure_into(rows[-1], lambda p=peer, s=size: self.peer_step(p, s))
        return {"rows": rows}

    def frontier(self) -> dict[str, Any]:
        """Time twelve SAEs, or as many as fit, at each of the large sizes; all are trained on every batch."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes[:2]:
            rows.append({"size": size._asdict(), "asked": len(FRONTIER_SAES)})
            self.measure_into(rows[-1], lambda s=size: self.train_many(s))
        return {"rows": rows}

    def train_many(self, size: Size) -> dict[str, Any]:
        """Time as many of FRONTIER_SAES as fit."""
        self.free_memory()
        states, batches = [], []
        for name, share in FRONTIER_SAES:
            if self.free < 14 * size.width * size.d * 2:  # bytes of the state, and of one step's tensors
                break
            state, batches = self.state(name, size, l0=max(1, round(share * size.l0)))
            state.encoder_for(self.layer)  # allocates its bfloat16 copy
            states.append(state)
        if not states:
            raise MemoryError("no SAE of this size fits into memory")

        def every(x: Tensor) -> None:
            for state in states:
                train_step(state, x, TIMING_LR, 1.0, self.layer)

        for x in batches:
            every(x)
        milliseconds = self.milliseconds([lambda x=x: every(x) for x in batches], repeats=max(1, self.repeats // 5))
        for state in states:
            synchronize(state, self.layer)
        each = milliseconds / len(states)
        rate = 1e3 * size.tokens / milliseconds
        found = {"saes": len(states), "ms": milliseconds, "ms_each": each, "tokens_per_s": rate}
        return found | self.peak(size, len(states))

    def breakdown(self) -> dict[str, Any]:
        """Measure the ms of each kernel-layer call in a JumpReLU step; the rest is torch between them."""
        size = self.sizes[min(1, len(self.sizes) - 1)]
        state, batches = self.state("jumprelu", size)
        timed = TimedLayer(self.layer, self.device)
        for x in batches:
            train_step(state, x, TIMING_LR, 1.0, self.layer)
        synchronize(state, self.layer)
        whole = self.milliseconds([lambda x=x: train_step(state, x, TIMING_LR, 1.0, self.layer) for x in batches])
        for _ in range(self.repeats):
            for x in batches:
                train_step(state, x, TIMING_LR, 1.0, timed)  # type: ignore[arg-type] — it stands for the layer
        synchronize(state, self.layer)
        calls = timed.per_step(self.repeats * len(batches))
        return {
            "size": size._asdict(),
            "step_ms": whole,
            "calls_ms": calls,
            "launch_ms": self.launch_ms(state, batches),
        }

    def launch_ms(self, state: State, batches: list[Tensor]) -> float | None:
        """Return the median ms that the host takes to launch a step; None if the layer is not asynchronous."""
        if not self.layer.is_async:
            return None
        found = []
        for x in batches * 5:
            synchronize(state, self.layer)
            self._wait()
            begun_at = time.perf_counter()
            run = partial(run_step, state, x, TIMING_LR, 1.0, self.layer)
            launched = launch_step(run, self.layer)  # type: ignore[arg-type] — an asynchronous layer
            found.append(1e3 * (time.perf_counter() - begun_at))
            assert state.in_flight is not None
            state.in_flight.last_step = launched
        synchronize(state, self.layer)
        return statistics.median(found)

    def l0(self) -> dict[str, Any]:
        """Time JumpReLU at several L0, and the dense step."""
        size, rows = self.sizes[min(1, len(self.sizes) - 1)], []
        for l0 in self.l0s:
            rows.append({"asked": l0})
            self.measure_into(rows[-1], lambda one=l0: self.sparse_step("jumprelu", size._replace(l0=one)))
        dense: dict[str, Any] = {}
        self.measure_into(dense, lambda: self.compiled_step("jumprelu", size, "bfloat16"))
        return {"size": size._asdict(), "rows": rows, "dense": dense}

    def pair(self) -> dict[str, Any]:
        """Time an LM with random weights and hidden size d, and JumpReLU steps: each alone, and both at once."""
        size = self.sizes[min(1, len(self.sizes) - 1)]
        read, context = self.lm(size)
        state, batches = self.state("jumprelu", size)
        groups = max(1, size.tokens // context)
        ids = torch.randint(0, 1000, (groups, context), device=self.device)
        side = torch.cuda.Stream() if self.device.type == "cuda" else None

        def harvest() -> None:
            read(ids)

        def both(x: Tensor) -> None:
            if side is None:
                harvest()
            else:
                with torch.cuda.stream(side):
                    harvest()
            train_step(state, x, TIMING_LR, 1.0, self.layer)

        alone = self.milliseconds([harvest])
        steps = self.milliseconds([lambda x=x: train_step(state, x, TIMING_LR, 1.0, self.layer) for x in batches])
        synchronize(state, self.layer)
        once = self.wall_ms([lambda x=x: both(x) for x in batches])
        synchronize(state, self.layer)
        rows = groups * context
        seconds = {"sae": steps / size.tokens, "lm": alone / rows, "both": once / max(size.tokens, rows)}
        return {
            "size": size._asdict(), "lm_ms": alone, "sae_ms": steps, "both_ms": once,
            "lm_share": alone / (alone + steps),
            "tokens_per_s": {key: 1e3 / value for key, value in seconds.items()},
            "hours_to_8e9": {key: value * PAPER_TOKENS / 3.6e6 for key, value in seconds.items()},
        }  # fmt: skip


def compile_kernels(name: str, size: Size) -> bool:
    """Run steps of one architecture, so that its kernels are in Triton's disk cache; called in a subprocess."""
    try:
        bench = GPUBenchmark(torch.device("cuda"), [size], (), minutes=1)
        for l0 in (size.l0, size.l0 // 4):
            state, batches = bench.state(name, size, l0=l0)
            for x in batches:
                train_step(state, x, TIMING_LR, 1.0, bench.layer)
            synchronize(state, bench.layer)
    except Exception as error:  # noqa: BLE001 — then they are compiled when they are launched
        print(f"warm, {name} at d = {size.d}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def provenance(bench: GPUBenchmark) -> dict[str, Any]:
    """Return the GPU, versions, command and date of the measurement."""
    card: dict[str, Any] = {"name": "none"}
    if bench.device.type == "cuda":
        found = torch.cuda.get_device_properties(bench.device)
        card = {
            "name": found.name, "bytes": found.total_memory, "multiprocessors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}", "cuda": torch.version.cuda,
        }  # fmt: skip
    versions = {name: installed_version(name) for name in ("torch", "triton", "numpy", "transformers")}
    return {
        "card": card, "versions": versions, "kernels": bench.layer.name, "command": command_line(),
        "date": f"{datetime.date.today():%Y-%m-%d}",
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; writes nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.5, help="no row is started after it (default %(default)s)")
    parser.add_argument("--out", type=Path, help="results go to PATH.json and PATH.md")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("torch sees no GPU: nothing is measured. --dry-run checks that every part runs.", file=sys.stderr)
        return 1
    device = torch.device("cpu" if options.dry_run else "cuda")
    bench = GPUBenchmark(device, *(([TINY], (4, 8)) if options.dry_run else (SIZES, L0S)), options.minutes)
    results: dict[str, Any] = {"about": provenance(bench)}
    out = None
    if not options.dry_run:
        folder = Path(os.environ.get("OUT", RESULTS))
        name = file_name_of(results["about"]["card"]["name"])
        out = options.out or folder / f"{name}_{datetime.date.today():%Y%m}"
    failed = False
    for part in options.parts:
        results[part] = {}
        bench.measure_into(results[part], getattr(bench, part))
        failed |= "unavailable" in results[part] or any(
            "unavailable" in row or not row.get("fine", True) for row in results[part].get("rows", ())
        )
        if out is not None:
            write_json(out.with_name(f"{out.name}.json"), results)
            write_atomic(out.with_name(f"{out.name}.md"), render_page(results))
    print(render_page(results) if out is not None else mask_digits(render_page(results)))
    if out is not None:
        print(f"{out}.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
