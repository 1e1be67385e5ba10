"""Training steps on the card that is here: checked first, then timed, in at most nine minutes.

    make bench-gpu                      everything; results go to RESULTS/<card>_<yyyymm>.json and .md
    make bench-gpu ARGS=--dry-run       tiny shapes, no card, nothing written: does every part run? With plain torch;
                                        with TRITON_INTERPRET=1 in Triton's interpreter
    make bench-gpu ARGS="--parts check steps"

Needs torch, numpy and triton alone; the pair of LM and SAE needs transformers. Parts, each written once it is done:

    warm       kernels compiled by as many processes as there are cores: one after the other it would take minutes
    check      float32 steps against plain torch in float64 on the same card; the same bytes twice
    ceilings   a large bfloat16 product and a large copy: what the card gives
    steps      every architecture at every shape, beside its own encoder product
    breakdown  where a JumpReLU step's time goes, and what it takes to launch
    frontier   twelve SAEs of full width on one card and one stream of batches, or as many as it holds
    pair       an LM's forward pass in bfloat16 and JumpReLU steps, each alone and both at once on two streams
    dense      dense training of JumpReLU and TopK: torch.compile, bfloat16 autocast or TF32, fused Adam
    l0         JumpReLU from L0 16 to 1024, against the dense step, which does not depend on L0
    peers      TopK with the sparse kernels of other libraries, where they are installed (gpu_peers.py)

Our TopK steps hold AuxK, with no feature dead: they look for dead ones' largest all the same. Dense steps and peers do
not.

Activations are sums of a known dictionary (synthetic.py), SAEs start at it with thresholds at the asked L0. Times are
medians of single steps between CUDA events, over different batches, after a warm-up. |S| is the support per token. A
part that fails, or for which no time is left, says so instead of a number; what matters most is measured first.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import gpu_peers
from benchmarks.machine import command_line, file_name_of
from benchmarks.synthetic import SyntheticData, make_data
from benchmarks.table import format_digits, render_table
from jumpahead.engine import Kernels, State, kernel_layer, state_from_params, synchronize, train_step
from jumpahead.engine.async_step import launch_step
from jumpahead.engine.step import run_step
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.architectures.batchtopk import BatchTopK
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import Params, quantile_for_l0
from jumpahead.sae.recipe import Setting, Shape, TrainConfig
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import write_json

RESULTS = Path(__file__).parent / "RESULTS"
PAPER_TOKENS = 8e9
LR = 1e-6
"""Of timed steps: weights hardly move, so that L0 stays as asked."""
PATIENCE = 150
"""Seconds for compiling ahead: twice what it should take."""
NARROW = 1024
"""Features of the SAE from which a wide one takes everything but its matrices."""
DENSE = (("jumprelu", "bfloat16"), ("jumprelu", "tf32"), ("topk", "bfloat16"))
FRONTIER = tuple((name, share) for share in (1.0, 0.5, 2.0, 0.25) for name in ("jumprelu", "gated", "topk"))
"""Twelve SAEs: architecture, and which part of the size's L0."""


class Size(NamedTuple):
    """What a step is timed at."""

    d: int
    width: int
    tokens: int
    l0: int

    def __str__(self) -> str:
        return f"d {self.d:,}, M {self.width:,}, B {self.tokens:,}, L0 {self.l0}"


SIZES = [Size(3584, 131072, 4096, 64), Size(2304, 131072, 4096, 64), Size(768, 16384, 4096, 50)]
L0S = (16, 64, 256, 1024)
CHECKED = Size(768, 4096, 1024, 16)
CEILINGS = (8192, 2**28)
"""Sides of a product, and float32 numbers of a copy."""
TINY = Size(24, 96, 32, 4)


class Bench:
    """One call of this program."""

    def __init__(self, device: torch.device, sizes: list[Size], l0s: tuple[int, ...], minutes: float):
        self.device, self.sizes, self.l0s = device, sizes, l0s
        interpreted = device.type != "cuda" and os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted:
            from tools.interpreter import prepare

            prepare()
        self.layer = kernel_layer("triton" if interpreted else None if device.type == "cuda" else "plain", device)
        self.ends = time.monotonic() + 60 * minutes
        self.repeats = 20 if device.type == "cuda" else 1
        self._data: tuple[Size, SyntheticData] | None = None
        self._dense: dict[tuple[str, Size, str], dict[str, Any]] = {}
        """Dense steps that were timed: they do not depend on L0."""
        self._products: dict[Size, float] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    # ------------------------------------------------------------------------------------------ parts

    def warm(self) -> dict[str, Any]:
        """Compile what the parts after this one launch: every architecture at every row length, a process each."""
        began, asked = time.monotonic(), [(name, size) for size in self._distinct() for name in ARCHITECTURES.names()]
        if self.device.type != "cuda":
            return {"kernels": len(asked), "seconds": 0.0, "failed": 0}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with multiprocessing.get_context("spawn").Pool(min(len(asked), cores)) as pool:
            # A worker that was killed never answers; what it had to do is compiled later then.
            done = pool.starmap_async(compiled, asked, chunksize=1).get(PATIENCE)
        return {"kernels": len(asked), "seconds": time.monotonic() - began, "failed": done.count(False)}

    def _distinct(self) -> list[Size]:
        """One small size for each row length that kernels are compiled for: the power of two that holds a row."""
        found = {(size.d - 1).bit_length(): Size(size.d, 4096, size.tokens, 64) for size in self.sizes}
        return list(found.values())

    def check(self) -> dict[str, Any]:
        """Steps of every architecture against plain torch in float64; and whether a run repeats its bytes."""
        size, found = CHECKED if self.device.type == "cuda" else TINY, []
        for name in ARCHITECTURES.names():
            runs = [self._run(name, size, layer, torch.float32) for layer in (self.layer, self.layer)]
            exact = self._run(name, size, kernel_layer("torch"), torch.float64)
            worst = max(
                (
                    (runs[0].p[key].double() - exact.params[key]).norm() / exact.params[key].norm().clamp_min(1e-12)
                ).item()
                for key in exact.params
            )
            same = all(torch.equal(runs[0].p[key], runs[1].p[key]) for key in exact.params)
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
        """TFLOP/s of a bfloat16 product, GB/s of a copy (read and written)."""
        n, numbers = CEILINGS if self.device.type == "cuda" else (64, 2**10)
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        product = self.milliseconds([lambda: torch.mm(a, b)])
        source = torch.randn(numbers, device=self.device)
        target = torch.empty_like(source)
        copy = self.milliseconds([lambda: target.copy_(source)])
        return {"product_tflops": 2 * n**3 / product / 1e9, "copy_gb_per_s": 8 * source.numel() / copy / 1e6}

    def steps(self) -> dict[str, Any]:
        """Every architecture at every size."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            for name in sorted(ARCHITECTURES.names(), key=lambda name: name not in ("jumprelu", "topk", "gated")):
                rows.append({"architecture": name, "size": size._asdict()})
                self.tried(rows[-1], lambda n=name, s=size: self.sparse(n, s))
        return {"rows": rows}

    def dense(self) -> dict[str, Any]:
        """Dense training at every size."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            for name, how in DENSE:
                row = {"architecture": name, "size": size._asdict(), "way": how}
                rows.append(row)
                self.tried(row, lambda n=name, s=size, h=how: self.compiled_step(n, s, h))
        return {"rows": rows}

    def peers(self) -> dict[str, Any]:
        """TopK with other libraries' kernels at every size."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            for peer in gpu_peers.PEERS:
                row = {"architecture": "topk", "size": size._asdict(), "way": peer.module}
                rows.append(row | {"version": is_there(peer.package)})
                if importlib.util.find_spec(peer.module) is None:
                    rows[-1]["absent"] = f"{peer.module} is not installed"
                else:
                    self.tried(rows[-1], lambda p=peer, s=size: self.peer_step(p, s))
        return {"rows": rows}

    def frontier(self) -> dict[str, Any]:
        """Twelve SAEs at each of the large sizes, or as many as fit, every one trained on every batch."""
        rows: list[dict[str, Any]] = []
        for size in self.sizes[:2]:
            rows.append({"size": size._asdict(), "asked": len(FRONTIER)})
            self.tried(rows[-1], lambda s=size: self.beside_each_other(s))
        return {"rows": rows}

    def beside_each_other(self, size: Size) -> dict[str, Any]:
        """As many of the FRONTIER's SAEs as fit."""
        self.forget()
        states, batches = [], []
        for name, share in FRONTIER:
            if self.free < 14 * size.width * size.d * 2:  # what it takes to begin, and room for a step
                break
            state, batches = self.state(name, size, l0=max(1, round(share * size.l0)))
            state.encoder_for(self.layer)  # its bfloat16 copy counts too
            states.append(state)
        if not states:
            raise MemoryError("not one SAE of this size fits")

        def every(x: Tensor) -> None:
            for state in states:
                train_step(state, x, LR, 1.0, self.layer)

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
        """Milliseconds of the layer's calls in a JumpReLU step; what is left is torch's between them."""
        size = self.sizes[min(1, len(self.sizes) - 1)]
        state, batches = self.state("jumprelu", size)
        timed = Timed(self.layer, self.device)
        for x in batches:
            train_step(state, x, LR, 1.0, self.layer)
        synchronize(state, self.layer)
        whole = self.milliseconds([lambda x=x: train_step(state, x, LR, 1.0, self.layer) for x in batches])
        for _ in range(self.repeats):
            for x in batches:
                train_step(state, x, LR, 1.0, timed)  # type: ignore[arg-type] — it stands for the layer
        synchronize(state, self.layer)
        calls = timed.per_step(self.repeats * len(batches))
        return {
            "size": size._asdict(),
            "step_ms": whole,
            "calls_ms": calls,
            "launch_ms": self.launching(state, batches),
        }

    def launching(self, state: State, batches: list[Tensor]) -> float | None:
        """Milliseconds that the host takes to launch a step, without waiting for anything: the median."""
        if not self.layer.is_async:
            return None
        found = []
        for x in batches * 5:
            synchronize(state, self.layer)
            self._wait()
            begun_at = time.perf_counter()
            run = partial(run_step, state, x, LR, 1.0, self.layer)
            launched = launch_step(run, self.layer)  # type: ignore[arg-type] — an asynchronous layer
            found.append(1e3 * (time.perf_counter() - begun_at))
            assert state.in_flight is not None
            state.in_flight.last_step = launched
        synchronize(state, self.layer)
        return statistics.median(found)

    def l0(self) -> dict[str, Any]:
        """JumpReLU at several L0."""
        size, rows = self.sizes[min(1, len(self.sizes) - 1)], []
        for l0 in self.l0s:
            rows.append({"asked": l0})
            self.tried(rows[-1], lambda one=l0: self.sparse("jumprelu", size._replace(l0=one)))
        dense: dict[str, Any] = {}
        self.tried(dense, lambda: self.compiled_step("jumprelu", size, "bfloat16"))
        return {"size": size._asdict(), "rows": rows, "dense": dense}

    def pair(self) -> dict[str, Any]:
        """An LM with random weights, as wide as the SAE, and JumpReLU steps: alone, and at once."""
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
            train_step(state, x, LR, 1.0, self.layer)

        alone = self.milliseconds([harvest])
        steps = self.milliseconds([lambda x=x: train_step(state, x, LR, 1.0, self.layer) for x in batches])
        synchronize(state, self.layer)
        once = self.wall([lambda x=x: both(x) for x in batches])
        synchronize(state, self.layer)
        rows = groups * context
        seconds = {"sae": steps / size.tokens, "lm": alone / rows, "both": once / max(size.tokens, rows)}
        return {
            "size": size._asdict(), "lm_ms": alone, "sae_ms": steps, "both_ms": once,
            "lm_share": alone / (alone + steps),
            "tokens_per_s": {key: 1e3 / value for key, value in seconds.items()},
            "hours_to_8e9": {key: value * PAPER_TOKENS / 3.6e6 for key, value in seconds.items()},
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------ what is timed

    def state(
        self, name: str, size: Size, dtype: torch.dtype = torch.float32, l0: int | None = None, **changes: Any
    ) -> tuple[State, list[Tensor]]:
        """An SAE at the dictionary, thresholds at the asked L0 (by default the data's), and batches."""
        data = self.data(size)
        kind, l0 = ARCHITECTURES.get(name), l0 or size.l0
        setting = Setting("l0", float(l0))
        config = TrainConfig()
        rules = kind.recipe_for(config, Shape(size.d, size.width, setting))
        rules = rules._replace(resample_every=0, proportional_gain=0.0, **changes)
        arch = kind(kind.Options(), setting, rules)
        sample = data.batches[0][:256].to(dtype)
        state = state_from_params(arch, parameters(arch, data.dictionary, sample), sample)
        pre = sample @ state.params["W_enc"].T
        bound = 0.9999 * quantile_for_l0(pre, l0)  # no entry lies exactly there
        everyone = torch.arange(size.width, device=self.device)
        if isinstance(arch, BatchTopK):
            state.params["threshold"].fill_(bound)
        else:
            arch.reinitialise_features(
                state.params, everyone, torch.full((size.width,), bound, dtype=dtype, device=self.device)
            )
        state.support_share = (pre > bound).float().mean(0)
        return state, data.batches

    def data(self, size: Size) -> SyntheticData:
        """Kept for the size at hand."""
        if self._data is None or self._data[0] != size:
            self._data = None
            self._data = size, make_data(size.d, size.width, size.tokens, size.l0, count=4, device=self.device)
        return self._data[1]

    def sparse(self, name: str, size: Size) -> dict[str, Any]:
        """One architecture's step."""
        self.forget()
        state, batches = self.state(name, size)
        for x in batches:
            train_step(state, x, LR, 1.0, self.layer)
        synchronize(state, self.layer)
        last = [train_step(state, x, LR, 1.0, self.layer) for x in batches]
        milliseconds = self.milliseconds([lambda x=x: train_step(state, x, LR, 1.0, self.layer) for x in batches])
        synchronize(state, self.layer)
        measured = last[-1].read()
        return {
            "ms": milliseconds, "product_ms": self.product(size), "tokens_per_s": 1e3 * size.tokens / milliseconds,
            "entries": measured.support_size, "l0": measured.l0, "through_products": measured.num_dense_features, **self.peak(size),
            "hours_to_8e9": PAPER_TOKENS / size.tokens * milliseconds / 3.6e6,
        }  # fmt: skip

    def peak(self, size: Size, saes: int = 1) -> dict[str, Any]:
        """Bytes of the card since `forget`, less the data's; and per parameter of W_enc and W_dec."""
        if self.device.type != "cuda":
            return {"peak_bytes": None, "bytes_per_parameter": None}
        data = self.data(size)
        beside = 4 * (data.dictionary.numel() + sum(x.numel() for x in data.batches))
        found = torch.cuda.max_memory_allocated() - beside
        return {"peak_bytes": found, "bytes_per_parameter": found / (2 * saes * size.d * size.width)}

    @property
    def free(self) -> float:
        """Bytes to be had."""
        if self.device.type != "cuda":
            return float("inf")
        reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + reserved

    def peer_step(self, peer: type[gpu_peers.Peer], size: Size) -> dict[str, Any]:
        """Another library's step."""
        self.forget()
        data = self.data(size)
        theirs = peer(data.dictionary, size.l0, LR)
        for x in data.batches[:2]:
            theirs.step(x)
        calls = [lambda x=x: theirs.step(x) for x in data.batches]
        milliseconds = self.milliseconds(calls, repeats=max(1, self.repeats // 5))
        values = theirs.features(data.batches[0])[1]
        return {
            "ms": milliseconds, "product_ms": self.product(size), "tokens_per_s": 1e3 * size.tokens / milliseconds,
            "l0": (values > 0).sum().item() / size.tokens,
        }  # fmt: skip

    def compiled_step(self, name: str, size: Size, how: str) -> dict[str, Any]:
        """The architecture's loss on dense tensors, compiled, with fused Adam; timed once for all L0."""
        key = (name, size._replace(l0=0), how)
        if key not in self._dense:
            self._dense[key] = self._compiled_step(name, size, how) | {"product_ms": self.product(size)}
        return self._dense[key]

    def _compiled_step(self, name: str, size: Size, how: str) -> dict[str, Any]:
        self.forget()
        state, batches = self.state(name, size)
        trained = {key: state.params[key].requires_grad_() for key in state.second_moments}
        adam = torch.optim.Adam(list(trained.values()), lr=LR, betas=(0.0, 0.999), fused=self.device.type == "cuda")
        step_inputs = StepInputs(sparsity_coefficient=1e-3)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if how == "tf32" else "highest")
        loss: Any = state.arch.loss
        if self.device.type == "cuda":
            torch._dynamo.reset()  # else the second size is compiled for sizes that vary
            loss = torch.compile(loss, dynamic=False)

        def train(x: Tensor) -> None:
            adam.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=how == "bfloat16"):
                value = loss(state.params, x, step_inputs)
            value.backward()
            adam.step()
            with torch.no_grad():
                state.params["W_dec"] /= state.params["W_dec"].norm(dim=1, keepdim=True)

        try:
            for x in batches[:2]:
                train(x)
            milliseconds = self.milliseconds([lambda x=x: train(x) for x in batches], repeats=max(1, self.repeats // 5))
        finally:
            torch.set_float32_matmul_precision(before)
        return {"ms": milliseconds, "tokens_per_s": 1e3 * size.tokens / milliseconds}

    def product(self, size: Size) -> float:
        """Milliseconds of the encoder product alone, in bfloat16."""
        if size not in self._products:
            w = torch.randn(size.width, size.d, device=self.device).bfloat16()
            x = torch.randn(size.tokens, size.d, device=self.device).bfloat16()
            self._products[size] = self.milliseconds([lambda: torch.mm(w, x.T)])
        return self._products[size]

    def lm(self, size: Size) -> tuple[Callable[[Tensor], Any], int]:
        """A forward pass of an LM with random weights, as far as its middle, and its context."""
        from transformers import AutoModel, GPTNeoXConfig  # pyright: ignore — not needed by the other parts

        heads = max(1, size.d // 128) if self.device.type == "cuda" else 2
        config = GPTNeoXConfig(
            hidden_size=size.d, num_hidden_layers=13 if self.device.type == "cuda" else 1, num_attention_heads=heads,
            intermediate_size=4 * size.d, vocab_size=1024, max_position_embeddings=1024,
        )  # fmt: skip
        with self.device:  # random weights are drawn there: on the CPU it takes longer than all that is timed
            model = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
        context = 1024 if self.device.type == "cuda" else 16
        return torch.no_grad()(lambda ids: model(ids, use_cache=False)), context

    # ------------------------------------------------------------------------------------------ timing

    def milliseconds(self, calls: list[Callable[[], Any]], repeats: int | None = None) -> float:
        """The median of single calls, by turns, after each was called once."""
        for call in calls:
            call()
        found = []
        for _ in range(repeats or self.repeats):
            for call in calls:
                if self.device.type != "cuda":
                    state_from_params = time.perf_counter()
                    call()
                    found.append(1e3 * (time.perf_counter() - state_from_params))
                    continue
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                call()
                after.record()
                found.append((before, after))
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            found = [before.elapsed_time(after) for before, after in found]
        return statistics.median(found)

    def wall(self, calls: list[Callable[[], Any]]) -> float:
        """Milliseconds per call on the clock, of many in a row."""
        self._wait()
        state_from_params = time.perf_counter()
        for _ in range(self.repeats):
            for call in calls:
                call()
        self._wait()
        return 1e3 * (time.perf_counter() - state_from_params) / (self.repeats * len(calls))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give memory back, and count its peak anew."""
        if self.layer.is_async:
            self.layer.buffer_demands.clear()  # type: ignore[attr-defined] — a late layer has them; they hold the last W_enc
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def tried(self, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Fill the row with what was measured, or with why nothing was."""
        if self.left < 0:
            row["unavailable"] = "not measured: no time was left"
            return
        try:
            row |= measure()
        except Exception as error:  # noqa: BLE001 — one row must not cost the others
            row["unavailable"] = (
                f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )


class Timed:
    """A kernel layer whose calls are timed."""

    def __init__(self, layer: Kernels, device: torch.device):
        self._layer, self._device = layer, device
        self._spent: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._layer, name)
        if name not in ("centre", "support", "largest_of_batch", "decode", "rows", "sums", "given_rows"):
            return found

        def call(*args: Any) -> Any:
            if self._device.type != "cuda":
                state_from_params = time.perf_counter()
                out = found(*args)
                self._spent.setdefault(name, []).append(1e3 * (time.perf_counter() - state_from_params))
                return out
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            out = found(*args)
            after.record()
            self._spent.setdefault(name, []).append((before, after))
            return out

        return call

    def per_step(self, steps: int) -> dict[str, float]:
        """Milliseconds of each kind of call per step."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            self._spent = {k: [a.elapsed_time(b) for a, b in v] for k, v in self._spent.items()}
        return {name: sum(times) / steps for name, times in self._spent.items()}


PARTS = ("warm", "check", "ceilings", "steps", "breakdown", "frontier", "pair", "dense", "l0", "peers")


def parameters(arch: Architecture, dictionary: Tensor, sample: Tensor) -> Params:
    """Of an SAE at the dictionary [M, d]; all else as a narrow one begins. Drawing a wide one takes half a minute."""
    width, d = dictionary.shape
    narrow = min(width, NARROW)
    p = arch.initialise(d, narrow, torch.Generator().manual_seed(0), sample.float().cpu())
    vectors = {
        name: tensor.flatten()[:1].expand(width).clone() if tensor.shape == (narrow,) and name != "b_dec" else tensor
        for name, tensor in p.items()
    }
    return vectors | {"W_enc": dictionary.clone(), "W_dec": dictionary.clone(), "b_dec": torch.zeros(d)}


def compiled(name: str, size: Size) -> bool:
    """In a process of its own: steps of one architecture at one size, so that its kernels lie compiled on the disk."""
    try:
        bench = Bench(torch.device("cuda"), [size], (), minutes=1)
        for l0 in (size.l0, size.l0 // 4):
            state, batches = bench.state(name, size, l0=l0)
            for x in batches:
                train_step(state, x, LR, 1.0, bench.layer)
            synchronize(state, bench.layer)
    except Exception as error:  # noqa: BLE001 — it is compiled later then
        print(f"warm, {name} at d = {size.d}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def is_there(package: str) -> str:
    """A package's version, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def about(bench: Bench) -> dict[str, Any]:
    """The card and the versions: nothing means anything without them."""
    card: dict[str, Any] = {"name": "none"}
    if bench.device.type == "cuda":
        found = torch.cuda.get_device_properties(bench.device)
        card = {
            "name": found.name, "bytes": found.total_memory, "multiprocessors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}", "cuda": torch.version.cuda,
        }  # fmt: skip
    versions = {name: is_there(name) for name in ("torch", "triton", "numpy", "transformers")}
    return {
        "card": card, "versions": versions, "kernels": bench.layer.name, "command": command_line(),
        "date": f"{datetime.date.today():%Y-%m-%d}",
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    card, parts = results["about"]["card"], []
    memory = f", {card['bytes'] / 2**30:.0f} GiB" if "bytes" in card else ""
    versions = ", ".join(f"{name} {version}" for name, version in results["about"]["versions"].items())
    parts.append(f"# Steps on {card['name']}{memory}\n\n{results['about']['kernels']}. {versions}. `{results['about']['command']}`, {results['about']['date']}.")  # noqa: E501  # fmt: skip
    for name in PARTS:
        if name in results:
            found = results[name]
            text = f"Not available: {found['unavailable']}." if "unavailable" in found else TEXTS[name](found)
            parts.append(f"## {name}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def check_text(found: dict[str, Any]) -> str:
    rows = [[r["architecture"], f"{r['worst']:.1e}", "yes" if r["repeats"] else "NO", "yes" if r["fine"] else "NO"]
            for r in found["rows"]]  # fmt: skip
    text = render_table(("architecture", "worst ‖error‖/‖value‖", "same bytes twice", "fine"), rows)
    return f"{found['steps']} steps at {Size(**found['size'])}.\n\n{text}"


def ceilings_text(found: dict[str, Any]) -> str:
    return f"bfloat16 product {format_digits(found['product_tflops'])} TFLOP/s, copy {format_digits(found['copy_gb_per_s'])} GB/s."


def warm_text(found: dict[str, Any]) -> str:
    failed = f", {found['failed']} of them without success" if found["failed"] else ""
    return f"{found['kernels']} steps compiled beside each other in {format_digits(found['seconds'])} s{failed}."


def steps_text(found: dict[str, Any]) -> str:
    head = ("architecture", "size", "way", "ms", "÷ product", "tokens/s", "|S|", "L0", "B/parameter", "hours to 8e9")
    rows = []
    for row in found["rows"]:
        cells = [row["architecture"], str(Size(**row["size"])), row.get("way", "sparse")]
        why = row.get("unavailable") or row.get("absent")
        if why is not None:
            rows.append([cells[0], f"{cells[1]}: {why}", cells[2], *[""] * (len(head) - 3)])
            continue
        numbers = (row["ms"], row["ms"] / row["product_ms"], row["tokens_per_s"], row.get("entries"), row.get("l0"),
                   row.get("bytes_per_parameter"), row.get("hours_to_8e9"))  # fmt: skip
        rows.append([*cells, *map(format_digits, numbers)])
    return render_table(head, rows)


def frontier_text(found: dict[str, Any]) -> str:
    head, rows = ("size", "SAEs", "GiB", "ms per batch", "ms each", "tokens/s"), []
    for row in found["rows"]:
        size = str(Size(**row["size"]))
        if "unavailable" in row:
            rows.append([f"{size}: {row['unavailable']}", *[""] * (len(head) - 1)])
            continue
        gibibytes = row["peak_bytes"] and row["peak_bytes"] / 2**30
        numbers = map(format_digits, (gibibytes, row["ms"], row["ms_each"], row["tokens_per_s"]))
        rows.append([size, f"{row['saes']} of {row['asked']}", *numbers])
    return render_table(head, rows)


def breakdown_text(found: dict[str, Any]) -> str:
    calls = found["calls_ms"] | {"between them": found["step_ms"] - sum(found["calls_ms"].values())}
    rows = [[name, format_digits(value)] for name, value in calls.items()]
    table = render_table(("call", "ms per step"), rows)
    launch = (
        "" if found["launch_ms"] is None else f"\n\nThe host launches a step in {format_digits(found['launch_ms'])} ms."
    )
    return f"{Size(**found['size'])}, {format_digits(found['step_ms'])} ms.\n\n{table}{launch}"


def l0_text(found: dict[str, Any]) -> str:
    rows = [[str(r["asked"]), *(["", r["unavailable"], ""] if "unavailable" in r else map(format_digits, (r["entries"], r["ms"], r["tokens_per_s"])))]  # noqa: E501
            for r in found["rows"]]  # fmt: skip
    dense = found["dense"].get("unavailable") or f"{format_digits(found['dense']['ms'])} ms"
    beyond = [r["asked"] for r in found["rows"] if r.get("ms", 0) > found["dense"].get("ms", float("inf"))]
    crossover = f"slower than dense from L0 {beyond[0]}" if beyond else "no crossover seen"
    return f"{render_table(('L0', '|S|', 'ms', 'tokens/s'), rows)}\n\nDense, bfloat16: {dense}; {crossover}."


def pair_text(found: dict[str, Any]) -> str:
    rows = [
        [key, format_digits(found["tokens_per_s"][key]), format_digits(found["hours_to_8e9"][key])]
        for key in ("lm", "sae", "both")
    ]
    text = render_table(("what", "tokens/s", "hours to 8e9"), rows)
    return f"{Size(**found['size'])}. The LM takes {100 * found['lm_share']:.0f} % of the time of both.\n\n{text}"


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "warm": warm_text, "check": check_text, "ceilings": ceilings_text, "steps": steps_text,
    "breakdown": breakdown_text, "frontier": frontier_text, "pair": pair_text, "dense": steps_text, "l0": l0_text,
    "peers": steps_text,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; writes nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no further row is begun")
    parser.add_argument("--out", type=Path, help="PATH of PATH.json and PATH.md")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("torch sees no GPU here: nothing is measured. --dry-run shows that everything runs.", file=sys.stderr)
        return 1
    device = torch.device("cpu" if options.dry_run else "cuda")
    bench = Bench(device, *(([TINY], (4, 8)) if options.dry_run else (SIZES, L0S)), options.minutes)
    results: dict[str, Any] = {"about": about(bench)}
    out = None
    if not options.dry_run:
        folder = Path(os.environ.get("OUT", RESULTS))
        name = file_name_of(results["about"]["card"]["name"])
        out = options.out or folder / f"{name}_{datetime.date.today():%Y%m}"
    failed = False
    for part in options.parts:
        results[part] = {}
        bench.tried(results[part], getattr(bench, part))
        failed |= "unavailable" in results[part] or any(
            "unavailable" in row or not row.get("fine", True) for row in results[part].get("rows", ())
        )
        if out is not None:
            write_json(out.with_name(f"{out.name}.json"), results)
            write_atomic(out.with_name(f"{out.name}.md"), page(results))
    print(page(results) if out is not None else dry(page(results)))
    if out is not None:
        print(f"{out}.md")
    return 1 if failed else 0


def dry(text: str) -> str:
    """A page of a dry run: its figures mean nothing, so they are not shown."""
    return "".join("·" if c.isdigit() else c for c in text) + "\nA dry run: no figure above was measured on a card."


if __name__ == "__main__":
    sys.exit(main())
