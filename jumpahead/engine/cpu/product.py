"""Which library computes the encoder product.

The product only screens: every entry that could matter is recomputed canonically, so the choice never changes a bit of
the result, only the time it takes. Torch has two float32 products on a CPU: the default one (MKL or OpenBLAS), and
oneDNN's, reached with float32 matmul precision "medium". On CPUs with AMX that setting computes in bfloat16, and a
wider slack than float32's would be needed: a library is used only where a numeric self-check finds float32 accuracy.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Product(NamedTuple):
    """A library and how to switch to it."""

    name: str
    precision: str
    """Argument of torch.set_float32_matmul_precision."""
    why: str = ""
    """How it was chosen, for the log."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context torch.mm uses the library."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


DEFAULT = Product("torch's default library, float32", "highest")
ONEDNN = Product("oneDNN, float32", "medium")


def is_exact(product: Product) -> bool:
    """Whether its error stays within d·2⁻²⁴·‖x‖·‖w‖, on random rows, constant rows, one massive dimension."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 512, generator=generator)
    w = torch.randn(96, 512, generator=generator)
    x[0], w[0] = 1.0 + 2.0**-9, 1.0 - 2.0**-10
    x[1, 3] = 3e3
    exact = x.double() @ w.double().T
    with product.active():
        error = (torch.mm(x, w.T).double() - exact).abs()
    bound = torch.outer(x.double().norm(dim=1), w.double().norm(dim=1)) * (512 * 2.0**-24)
    return bool((error <= bound).all())


def seconds(product: Product, tokens: int = 1024, d: int = 256, width: int = 2048) -> float:
    """Best of a few products at a typical shape."""
    x, w, out = torch.ones(tokens, d), torch.ones(width, d), torch.empty(tokens, width)
    best = float("inf")
    with product.active():
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(x, w.T, out=out)
            best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def choose() -> Product:
    """The fastest product that is exact on this machine."""
    usable = [product for product in (DEFAULT, ONEDNN) if is_exact(product)]
    assert usable, "torch's float32 product is not float32-accurate here"
    timed = sorted((seconds(product), product.name, product) for product in usable)
    report = ", ".join(f"{name} {1e3 * time_:.1f} ms" for time_, name, _ in timed)
    return timed[0][2]._replace(why=f"exact and fastest of: {report} at 1024×256×2048")
