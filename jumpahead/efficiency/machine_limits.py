"""Lower bounds on a step's time on this machine: one encoder product, and one pass over the touched rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.efficiency.cost_model import StepSize, product_flops

BLOCK_NUMBERS = 2**23
"""Numbers per block of the product's result: it is computed in chunks of features, as in the engine."""
FLOPS_PER_TIMING = 3e10
"""FLOPs per timing. For wider SAEs only some of the features are multiplied, and the time is scaled up."""
COPY_NUMBERS = 2**25
"""Numbers copied to measure the memory bandwidth: 128 MiB, larger than any cache."""
ENCODER_PRODUCTS = {
    "float32 (torch's default)": ("highest", torch.float32),
    "float32 (oneDNN)": ("medium", torch.float32),  # on CPUs with AMX this computes in bfloat16
    "bfloat16": ("highest", torch.bfloat16),
}
"""Name → argument of torch.set_float32_matmul_precision, dtype of the factors."""


class ProductTiming(NamedTuple):
    """The time of one encoder product."""

    name: str
    ms: float
    gflops: float
    """10⁹ FLOPs per second."""


class MachineLimits(NamedTuple):
    """The machine's limits at one shape."""

    products: list[ProductTiming]
    """Fastest first."""
    bandwidth: float
    """Bytes per second, read plus written, of a copy."""

    @property
    def float32_precision(self) -> str:
        """Return the argument of torch.set_float32_matmul_precision with which float32 products are fastest."""
        products = ENCODER_PRODUCTS
        return next(products[one.name][0] for one in self.products if products[one.name][1] == torch.float32)

    @property
    def float32_flops(self) -> float:
        """Return the FLOPs per second of the fastest float32 product."""
        return next(1e9 * one.gflops for one in self.products if ENCODER_PRODUCTS[one.name][1] == torch.float32)

    def lower_bound_ms(self, rows_bytes: float) -> float:
        """Return the time of the fastest product plus that of moving `rows_bytes` at full bandwidth, in ms."""
        return self.products[0].ms + 1e3 * rows_bytes / self.bandwidth


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set torch's float32 matmul precision within this context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure_limits(batch: int, d: int, width: int, bandwidth: float) -> MachineLimits:
    """Time every encoder product at a shape; `bandwidth` as returned by `copy_bandwidth`."""
    timed_width = max(1, min(width, int(FLOPS_PER_TIMING / (2 * batch * d))))
    products = []
    for name, (precision, dtype) in ENCODER_PRODUCTS.items():
        x, w = torch.randn(batch, d).to(dtype), torch.randn(timed_width, d).to(dtype)
        with matmul_precision(precision):
            seconds = best_seconds(lambda x=x, w=w: chunked_product(x, w)) * width / timed_width
        gflops = product_flops(StepSize(batch, d, width)) / seconds / 1e9
        products.append(ProductTiming(name, 1e3 * seconds, gflops))
    return MachineLimits(sorted(products, key=lambda one: one.ms), bandwidth)


def chunked_product(x: Tensor, w: Tensor) -> None:
    """Compute x·wᵀ in chunks of w's rows, overwriting one buffer. x [B, d], w [M, d]."""
    size = max(1, BLOCK_NUMBERS // len(x))
    buffer = x.new_empty(len(x) * min(size, len(w)))
    for start in range(0, len(w), size):
        rows = w[start : start + size]
        torch.mm(x, rows.T, out=buffer[: len(x) * len(rows)].view(len(x), len(rows)))


def copy_bandwidth() -> float:
    """Measure the memory bandwidth of a copy, in bytes per second, read plus written."""
    source, target = torch.ones(COPY_NUMBERS), torch.ones(COPY_NUMBERS)
    return 2 * 4 * COPY_NUMBERS / best_seconds(lambda: target.copy_(source))


def best_seconds(work: Callable[[], object], repeats: int = 4) -> float:
    """Return the shortest of `repeats` run times in seconds, after one warm-up run."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
