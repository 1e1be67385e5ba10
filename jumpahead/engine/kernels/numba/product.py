"""Which library and precision computes the encoder product.

The product that screens is in bfloat16 where that is clearly faster: every entry that could matter is recomputed
canonically, so that choice never changes a bit of the result, only the time it takes. Features that are on for a large
share of the tokens, and few dead ones, go through float32 products (`dense.py`) whose last bits do reach the weights:
these are always the same library's on one machine, whatever the clock says. Torch has two float32 products on a CPU:
the default one (MKL or OpenBLAS), and oneDNN's, reached with float32 matmul precision "medium"; and oneDNN's in
bfloat16, whose rounding `decide.low_slack` bounds. On CPUs with AMX the "medium" setting computes in bfloat16, too
coarse for float32's slack: a product is used only where a numeric self-check finds the accuracy that its bound assumes.
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
    precision: str | None
    """Argument of torch.set_float32_matmul_precision; None where it does not matter."""
    dtype: torch.dtype = torch.float32
    """What x and W_enc are rounded to."""
    why: str = ""
    """How it was chosen, for the log."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context torch.mm uses the library. The setting is the process's: of threads that multiply at the
        same time all must want the same."""
        if self.precision is None:
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


DEFAULT = Product("torch's default library, float32", "highest")
ONEDNN = Product("oneDNN, float32", "medium")
BFLOAT16 = Product("oneDNN, bfloat16 with exact recomputation", None, torch.bfloat16)
PRODUCTS = (DEFAULT, ONEDNN, BFLOAT16)
TOKENS, D, WIDTH = 1024, 256, 2048
ROUNDS = 8
WORTH = 0.8
"""bfloat16 must take less than this share of float32's time: it leaves more candidates to recompute."""


def is_exact(product: Product) -> bool:
    """Whether its error stays within its bound on this machine."""
    with product.active():
        return decide.is_exact(torch.mm, product.dtype, "cpu")


@functools.cache
def timings() -> dict[Product, float]:
    """Every product that is exact on this machine, and its seconds at a typical shape: the best of ROUNDS, in which the
    products take turns, so that a neighbour on the machine slows all of them."""
    found = {product: float("inf") for product in PRODUCTS if is_exact(product)}
    factors = {
        dtype: tuple(torch.ones(*shape, dtype=dtype) for shape in ((WIDTH, D), (TOKENS, D), (WIDTH, TOKENS)))
        for dtype in {product.dtype for product in found}
    }
    for _ in range(ROUNDS):
        for product in found:
            w, x, out = factors[product.dtype]
            with product.active():
                start = time.perf_counter()
                torch.mm(w, x.T, out=out)
                found[product] = min(found[product], time.perf_counter() - start)
    return found


@functools.cache
def float32() -> Product:
    """The float32 product for this machine: oneDNN's where it is exact, which takes 0.4 to 0.7 of the default's time
    where that was seen."""
    usable = [product for product in (ONEDNN, DEFAULT) if is_exact(product)]
    assert usable, "torch's float32 product is not float32-accurate here"
    return usable[0]


@functools.cache
def choose() -> Product:
    """The product to screen with, of those whose bound holds on this machine."""
    taken, best = timings(), float32()
    if BFLOAT16 in taken and taken[BFLOAT16] < WORTH * taken[best]:
        best = BFLOAT16
    report = ", ".join(f"{product.name} {1e3 * seconds:.1f} ms" for product, seconds in taken.items())
    return best._replace(why=f"exact; bfloat16 where it is clearly faster; {report} at {TOKENS}×{D}×{WIDTH}")
