"""The steps that the GPU benchmark times, and how it times them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_peers
from benchmarks.gpu_setup import (
    PAPER_TOKENS,
    TIMING_LR,
    Size,
    params_at_dictionary,
)
from benchmarks.synthetic import SyntheticData, make_data
from jumpahead.engine import Kernels, State, kernel_layer, state_from_params, synchronize, train_step
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.architectures.batchtopk import BatchTopK
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import threshold_for_l0
from jumpahead.sae.recipe import Setting, Shape, TrainConfig


class GPUSteps:
    """SAEs, batches and timers on one device; measurements stop at a deadline."""

    def __init__(self, device: torch.device, sizes: list[Size], l0s: tuple[int, ...], minutes: float):
        self.device, self.sizes, self.l0s = device, sizes, l0s
        interpreted = device.type != "cuda" and os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted:
            from tools.interpreter import prepare

            prepare()
        self.layer = kernel_layer("triton" if interpreted else None if device.type == "cuda" else "torch", device)
        self.ends = time.monotonic() + 60 * minutes
        self.repeats = 20 if device.type == "cuda" else 1
        self._data: tuple[Size, SyntheticData] | None = None
        self._dense: dict[tuple[str, Size, str], dict[str, Any]] = {}
        """Timed dense steps, whose time does not depend on L0."""
        self._products: dict[Size, float] = {}

    @property
    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.ends - time.monotonic()

    # ------------------------------------------------------------------------------------------ steps

    def state(
        self, name: str, size: Size, dtype: torch.dtype = torch.float32, l0: int | None = None, **changes: Any
    ) -> tuple[State, list[Tensor]]:
        """Return an SAE at the true dictionary, thresholds at the requested L0 (default: the data's), and batches."""
        data = self.data(size)
        kind, l0 = ARCHITECTURES.get(name), l0 or size.l0
        setting = Setting("l0", float(l0))
        config = TrainConfig()
        rules = kind.recipe_for(config, Shape(size.d, size.width, setting))
        rules = rules._replace(resample_every=0, proportional_gain=0.0, **changes)
        arch = kind(kind.Options(), setting, rules)
        sample = data.batches[0][:256].to(dtype)
        state = state_from_params(arch, params_at_dictionary(arch, data.dictionary, sample), sample)
        pre = sample @ state.params["W_enc"].T
        bound = 0.9999 * threshold_for_l0(pre, l0)  # no entry equals it
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
        """Return the data of a size; cached for the latest size."""
        if self._data is None or self._data[0] != size:
            self._data = None
            self._data = size, make_data(size.d, size.width, size.tokens, size.l0, count=4, device=self.device)
        return self._data[1]

    def sparse_step(self, name: str, size: Size) -> dict[str, Any]:
        """Time one architecture's step; return a row."""
        self.free_memory()
        state, batches = self.state(name, size)
        for x in batches:
            train_step(state, x, TIMING_LR, 1.0, self.layer)
        synchronize(state, self.layer)
        last = [train_step(state, x, TIMING_LR, 1.0, self.layer) for x in batches]
        milliseconds = self.milliseconds(
            [lambda x=x: train_step(state, x, TIMING_LR, 1.0, self.layer) for x in batches]
        )
        synchronize(state, self.layer)
        measured = last[-1].read()
        return {
            "ms": milliseconds, "product_ms": self.product(size), "tokens_per_s": 1e3 * size.tokens / milliseconds,
            "entries": measured.support_size, "l0": measured.l0, "through_products": measured.num_dense_features,
            **self.peak(size),
            "hours_to_8e9": PAPER_TOKENS / size.tokens * milliseconds / 3.6e6,
        }  # fmt: skip

    def peak(self, size: Size, saes: int = 1) -> dict[str, Any]:
        """Return the peak bytes on the GPU since `free_memory`, without the data; also per weight of the matrices."""
        if self.device.type != "cuda":
            return {"peak_bytes": None, "bytes_per_parameter": None}
        data = self.data(size)
        beside = 4 * (data.dictionary.numel() + sum(x.numel() for x in data.batches))
        found = torch.cuda.max_memory_allocated() - beside
        return {"peak_bytes": found, "bytes_per_parameter": found / (2 * saes * size.d * size.width)}

    @property
    def free(self) -> float:
        """Return the free bytes on the device; infinity on a CPU."""
        if self.device.type != "cuda":
            return float("inf")
        reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + reserved

    def peer_step(self, peer: type[gpu_peers.Peer], size: Size) -> dict[str, Any]:
        """Time another library's step; return a row."""
        self.free_memory()
        data = self.data(size)
        theirs = peer(data.dictionary, size.l0, TIMING_LR)
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
        """Time the compiled dense loss with fused Adam, once for all L0; return a row."""
        key = (name, size._replace(l0=0), how)
        if key not in self._dense:
            self._dense[key] = self._compiled_step(name, size, how) | {"product_ms": self.product(size)}
        return self._dense[key]

    def _compiled_step(self, name: str, size: Size, how: str) -> dict[str, Any]:
        self.free_memory()
        state, batches = self.state(name, size)
        trained = {key: state.params[key].requires_grad_() for key in state.second_moments}
        adam = torch.optim.Adam(
            list(trained.values()), lr=TIMING_LR, betas=(0.0, 0.999), fused=self.device.type == "cuda"
        )
        step_inputs = StepInputs(sparsity_coefficient=1e-3)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if how == "tf32" else "highest")
        loss: Any = state.arch.loss
        if self.device.type == "cuda":
            torch._dynamo.reset()  # else the second size is compiled with dynamic shapes
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
        """Return the ms of the encoder product alone, in bfloat16; cached."""
        if size not in self._products:
            w = torch.randn(size.width, size.d, device=self.device).bfloat16()
            x = torch.randn(size.tokens, size.d, device=self.device).bfloat16()
            self._products[size] = self.milliseconds([lambda: torch.mm(w, x.T)])
        return self._products[size]

    def lm(self, size: Size) -> tuple[Callable[[Tensor], Any], int]:
        """Return the forward pass of the first half of an LM with random weights, and its context length."""
        from transformers import AutoModel, GPTNeoXConfig  # pyright: ignore — not needed by the other parts

        heads = max(1, size.d // 128) if self.device.type == "cuda" else 2
        config = GPTNeoXConfig(
            hidden_size=size.d, num_hidden_layers=13 if self.device.type == "cuda" else 1, num_attention_heads=heads,
            intermediate_size=4 * size.d, vocab_size=1024, max_position_embeddings=1024,
        )  # fmt: skip
        with self.device:  # drawing random weights on the CPU is slow
            model = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
        context = 1024 if self.device.type == "cuda" else 16
        return torch.no_grad()(lambda ids: model(ids, use_cache=False)), context

    # ------------------------------------------------------------------------------------------ timing

    def milliseconds(self, calls: list[Callable[[], Any]], repeats: int | None = None) -> float:
        """Return the median ms of single calls, interleaved, after one warm-up call each."""
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

    def wall_ms(self, calls: list[Callable[[], Any]]) -> float:
        """Return the wall-clock ms per call of many calls in a row."""
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

    def free_memory(self) -> None:
        """Free cached memory and reset the peak."""
        if self.layer.is_async:
            self.layer.buffer_demands.clear()  # type: ignore[attr-defined] — a late layer has them; they hold the last W_enc
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def measure_into(self, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Add the measurement to the row, or the reason why there is none."""
        if self.left < 0:
            row["unavailable"] = "not measured: no time was left"
            return
        try:
            row |= measure()
        except Exception as error:  # noqa: BLE001 — an error of one row must not end the others
            row["unavailable"] = (
                f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )


class TimedLayer:
    """A proxy of a kernel layer that times its calls."""

    def __init__(self, layer: Kernels, device: torch.device):
        self._layer, self._device = layer, device
        self._spent: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._layer, name)
        if name not in (
            "centre_input",
            "find_support",
            "find_batch_topk",
            "decode",
            "update_rows",
            "sum_per_feature",
            "apply_row_gradients",
        ):
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
        """Return the ms per step of each method."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            self._spent = {k: [a.elapsed_time(b) for a, b in v] for k, v in self._spent.items()}
        return {name: sum(times) / steps for name, times in self._spent.items()}
