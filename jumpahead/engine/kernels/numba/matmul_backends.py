"""The libraries and precisions of matrix products on the CPU, and the choice between them.

torch has two float32 products on a CPU: the default one (MKL or OpenBLAS), and oneDNN's, selected by float32 matmul
precision "medium". It also has oneDNN's in bfloat16, whose rounding `bf16_product_error_bound` bounds. On CPUs with AMX
"medium" computes in bfloat16, too coarse for float32's error bound, so a backend is used only if a numerical self-test
finds the accuracy that its bound assumes.

The encoder product uses bfloat16 if that is clearly faster: every entry that could matter is recomputed canonically, so
the choice changes the time only, not a bit of the result. The last bits of the other products, those of frequently
active features and of dead features, do reach the weights: these always use the same backend on one machine, whatever
the timings say.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from jumpahead.engine.error_bounds import is_within_error_bound


class MatmulBackend(NamedTuple):
    """A library and precision for matrix products."""

    name: str
    precision: str | None
    """Argument of torch.set_float32_matmul_precision; None if the backend does not depend on it."""
    dtype: torch.dtype = torch.float32
    """The dtype that x and W_enc are rounded to."""
    reason: str = ""
    """Why it was chosen, for the log."""

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Make torch.mm use this backend within the context.

        The setting is process-wide: all threads that multiply at the same time must use the same backend.
        """
        if self.precision is None:
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


TORCH_DEFAULT = MatmulBackend("torch's default library, float32", "highest")
ONEDNN = MatmulBackend("oneDNN, float32", "medium")
ONEDNN_BF16 = MatmulBackend("oneDNN, bfloat16 with exact recomputation", None, torch.bfloat16)
BACKENDS = (TORCH_DEFAULT, ONEDNN, ONEDNN_BF16)
TOKENS, D, WIDTH = 1024, 256, 2048
"""The shape of the timed product."""
ROUNDS = 8
MAX_BF16_TIME_RATIO = 0.8
"""bfloat16 is chosen only below this ratio to float32's time, because it leaves more candidates to recompute."""


def is_accurate(backend: MatmulBackend) -> bool:
    """Return whether the backend's error stays within its bound on this machine."""
    with backend.enabled():
        return is_within_error_bound(torch.mm, backend.dtype, "cpu")


@functools.cache
def time_backends() -> dict[MatmulBackend, float]:
    """Time every accurate backend at a typical shape; return the best of ROUNDS in seconds.

    The backends alternate within each round, so that other load on the machine affects all of them.
    """
    seconds = {backend: float("inf") for backend in BACKENDS if is_accurate(backend)}
    factors = {
        dtype: tuple(torch.ones(*shape, dtype=dtype) for shape in ((WIDTH, D), (TOKENS, D), (WIDTH, TOKENS)))
        for dtype in {backend.dtype for backend in seconds}
    }
    for _ in range(ROUNDS):
        for backend in seconds:
            w, x, out = factors[backend.dtype]
            with backend.enabled():
                start = time.perf_counter()
                torch.mm(w, x.T, out=out)
                seconds[backend] = min(seconds[backend], time.perf_counter() - start)
    return seconds


@functools.cache
def float32_backend() -> MatmulBackend:
    """Return the float32 backend of this machine: oneDNN if it is accurate, else torch's default.

    oneDNN takes 0.4 to 0.7 of the default's time on the CPUs measured so far.
    """
    usable = [backend for backend in (ONEDNN, TORCH_DEFAULT) if is_accurate(backend)]
    assert usable, "torch's float32 product is not float32-accurate here"
    return usable[0]


@functools.cache
def screening_backend() -> MatmulBackend:
    """Return the backend of the encoder product: float32, or bfloat16 if that is accurate and clearly faster."""
    seconds, best = time_backends(), float32_backend()
    if ONEDNN_BF16 in seconds and seconds[ONEDNN_BF16] < MAX_BF16_TIME_RATIO * seconds[best]:
        best = ONEDNN_BF16
    report = ", ".join(f"{backend.name} {1e3 * one:.1f} ms" for backend, one in seconds.items())
    return best._replace(reason=f"exact; bfloat16 where it is clearly faster; {report} at {TOKENS}×{D}×{WIDTH}")
