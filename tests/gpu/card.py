"""Where these tests run, and moving states there and back."""

from __future__ import annotations

import os

import pytest
import torch

from jumpahead.engine import State, async_step
from tests.engine.cases import CASES, Case, clone

pytest.importorskip("triton", reason="triton is not installed: make test-gpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and not in Triton's interpreter: make test-gpu", allow_module_level=True)

from jumpahead.engine.kernels import triton  # noqa: E402 — decides at import whether kernels are interpreted

PATHS: dict[str, dict[str, float]] = {
    "support": {"POPULAR": 1.0, "FEWEST": 10**9},
    "products": {"POPULAR": -1.0, "FEWEST": 1, "SIZE": 100, "KEPT": 0},
}
"""As in tests/engine/test_step_is_exact.py."""


def ways() -> list[tuple[Case, str]]:
    """One case of every architecture, options and recipe; through products where selections are `Above`."""
    found = {}
    for case in CASES:
        found.setdefault((case.architecture, str(case.options), str(case.changes)), case)
    return [(c, path) for c in found.values() for path in PATHS if path == "support" or not c.keeps_largest]


WAYS = ways()


def layer(is_late: bool = True) -> triton.Triton:
    """A fresh kernel layer."""
    return triton.Triton(DEVICE, late=is_late)


def there(state: State) -> State:
    """A copy on the device."""
    return moved(state, DEVICE)


def back(state: State, kernels: triton.Triton) -> State:
    """A copy on the CPU, after the last step is done."""
    async_step.settle(state, kernels)
    return moved(state, torch.device("cpu"))


def moved(state: State, device: torch.device) -> State:
    """A copy that holds what a checkpoint holds."""
    kept = State(
        arch=state.arch, p=state.p, v=state.v, last=state.last, silent=state.silent, share=state.share, t=state.t,
        control=state.control and state.control.read(),
    )  # fmt: skip
    kept = clone(kept)
    for kind in (kept.p, kept.v):
        kind |= {name: tensor.to(device) for name, tensor in kind.items()}
    kept.last, kept.silent, kept.share = (tensor.to(device) for tensor in (kept.last, kept.silent, kept.share))
    return kept
