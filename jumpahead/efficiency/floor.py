"""What no step can beat on this machine: one encoder product, and reading and writing the touched rows once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.efficiency.counts import Step, product_flops

BLOCK = 2**23
"""Numbers of one block of the product's result: it is made in chunks of features, as the engine makes it."""
ENOUGH = 3e10
"""FLOPs per timing: of wider SAEs a part of the features is multiplied, and the time scaled."""
COPIED = 2**25
"""Numbers copied to measure the memory's bandwidth: 128 MiB, beyond any cache."""
PRODUCTS = {
    "float32 (torch's default)": ("highest", torch.float32),
    "float32 (oneDNN)": ("medium", torch.float32),  # on CPUs with AMX bfloat16 inside
    "bfloat16": ("highest", torch.bfloat16),
}
"""Name → argument of torch.set_float32_matmul_precision, type of the factors."""


class Product(NamedTuple):
    """One library's encoder product."""

    name: str
    ms: float
    gflops: float
    """10⁹ FLOPs per second."""


class Floor(NamedTuple):
    """The machine's limits at one shape."""

    products: list[Product]
    """Fastest first."""
    bandwidth: float
    """Bytes per second, read and written, of a copy."""

    @property
    def precision(self) -> str:
        """The argument of torch.set_float32_matmul_precision with which float32 products are fastest."""
        return next(PRODUCTS[one.name][0] for one in self.products if PRODUCTS[one.name][1] == torch.float32)

    @property
    def rate(self) -> float:
        """FLOPs per second of the fastest float32 product."""
        return next(1e9 * one.gflops for one in self.products if PRODUCTS[one.name][1] == torch.float32)

    def ms(self, rows_bytes: float) -> float:
        """The fastest product, then `rows_bytes` at the bandwidth."""
        return self.products[0].ms + 1e3 * rows_bytes / self.bandwidth


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Within this context torch multiplies float32 matrices with that precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure(batch: int, d: int, width: int, bandwidth: float) -> Floor:
    """Time every product at a shape."""
    some = max(1, min(width, int(ENOUGH / (2 * batch * d))))
    products = []
    for name, (how, kind) in PRODUCTS.items():
        x, w = torch.randn(batch, d).to(kind), torch.randn(some, d).to(kind)
        with precision(how):
            seconds = best_of(lambda x=x, w=w: multiply(x, w)) * width / some
        products.append(Product(name, 1e3 * seconds, product_flops(Step(batch, d, width)) / seconds / 1e9))
    return Floor(sorted(products, key=lambda one: one.ms), bandwidth)


def multiply(x: Tensor, w: Tensor) -> None:
    """x·wᵀ in chunks of w's rows, over one block. x [B, d], w [M, d]."""
    size = max(1, BLOCK // len(x))
    block = x.new_empty(len(x) * min(size, len(w)))
    for start in range(0, len(w), size):
        rows = w[start : start + size]
        torch.mm(x, rows.T, out=block[: len(x) * len(rows)].view(len(x), len(rows)))


def bandwidth() -> float:
    """Bytes per second, read and written, of a copy."""
    source, target = torch.ones(COPIED), torch.ones(COPIED)
    return 2 * 4 * COPIED / best_of(lambda: target.copy_(source))


def best_of(work: Callable[[], object], times: int = 4) -> float:
    """Seconds of the fastest of `times` runs, after one that is not counted."""
    work()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found)
