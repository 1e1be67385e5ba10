"""Which library and precision computes the encoder product.

The product only screens: every entry that could matter is recomputed canonically, so the choice never changes a bit of
the result, only the time it takes. Torch has two float32 products on a CPU: the default one (MKL or OpenBLAS), and
oneDNN's, reached with float32 matmul precision "medium"; and oneDNN's in bfloat16, whose rounding `decide.low_slack`
bounds. On CPUs with AMX the "medium" setting computes in bfloat16, too coarse for float32's slack: a product is used
only where a numeric self-check finds the accuracy that its bound assumes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from jumpahead.engine import decide


class Product(NamedTuple):
    """A library and how to switch to it."""

    name: str
    precision: str
    """Argument of torch.set_float32_matmul_precision."""
    dtype: torch.dtype = torch.float32
    """What x and W_enc are rounded to."""
    own_threads: bool = True
    """Whether each thread says for itself how many threads its products use: OpenMP's setting, not MKL's."""
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


DEFAULT = Product("torch's default library, float32", "highest", own_threads=False)
ONEDNN = Product("oneDNN, float32", "medium")
BFLOAT16 = Product("oneDNN, bfloat16 with exact recomputation", "highest", torch.bfloat16)
PRODUCTS = (DEFAULT, ONEDNN, BFLOAT16)
WORTH = 0.8
"""bfloat16 must take less than this share of float32's time: it leaves more candidates to recompute."""


def is_exact(product: Product) -> bool:
    """Whether its error stays within its bound on this machine."""
    with product.active():
        return decide.is_exact(torch.mm, product.dtype, "cpu")


def seconds(product: Product, tokens: int = 1024, d: int = 256, width: int = 2048) -> float:
    """Best of a few products at a typical shape."""
    x, w, out = (torch.ones(*shape, dtype=product.dtype) for shape in ((tokens, d), (width, d), (width, tokens)))
    best = float("inf")
    with product.active():
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(w, x.T, out=out)
            best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def float32() -> Product:
    """The fastest float32 product that is exact on this machine."""
    usable = [product for product in PRODUCTS if product.dtype == torch.float32 and is_exact(product)]
    assert usable, "torch's float32 product is not float32-accurate here"
    return min(usable, key=timing)


@functools.cache
def choose() -> Product:
    """The product to screen with: the fastest whose bound holds on this machine."""
    best = float32()
    if is_exact(BFLOAT16) and timing(BFLOAT16) < WORTH * timing(best):
        best = BFLOAT16
    tried = [product for product in PRODUCTS if is_exact(product)]
    report = ", ".join(f"{product.name} {1e3 * timing(product):.1f} ms" for product in tried)
    return best._replace(why=f"exact and fastest of: {report} at 1024×256×2048")


@functools.cache
def timing(product: Product) -> float:
    """`seconds`, once per process."""
    return seconds(product)
