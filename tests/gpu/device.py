"""The device that these tests run on, and copies of states between it and the CPU."""

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

# Triton reads TRITON_INTERPRET when it is imported; the tests take these names from here, after the skips above.
from jumpahead.engine.kernels.triton import TritonKernels, selection  # noqa: E402
from jumpahead.engine.kernels.triton import layer as triton_layer  # noqa: E402

__all__ = ["TritonKernels", "selection", "triton_layer"]

PATHS: dict[str, dict[str, float]] = {
    "support": {"DENSE_SHARE": 1.0, "MIN_DENSE_FEATURES": 10**9},
    "products": {"DENSE_SHARE": -1.0, "MIN_DENSE_FEATURES": 1, "BLOCK_ENTRIES": 100, "MAX_CACHED_ENTRIES": 0},
}
"""Constants of `dense_features` that send all features through the support, or as many as possible through products."""


def cases_and_paths() -> list[tuple[Case, str]]:
    """Return one case per architecture, options and recipe, with each path that its selection allows."""
    found = {}
    for case in CASES:
        found.setdefault((case.architecture, str(case.options), str(case.changes)), case)
    return [(c, path) for c in found.values() for path in PATHS if path == "support" or not c.is_topk]


CASES_AND_PATHS = cases_and_paths()


def new_layer(is_async: bool = True) -> TritonKernels:
    """Return a new kernel layer."""
    return TritonKernels(DEVICE, is_async=is_async)


def to_device(state: State) -> State:
    """Return a copy on the device."""
    return copy_to(state, DEVICE)


def to_cpu(state: State, kernels: TritonKernels) -> State:
    """Return a copy on the CPU, after synchronizing."""
    async_step.synchronize(state, kernels)
    return copy_to(state, torch.device("cpu"))


def copy_to(state: State, device: torch.device) -> State:
    """Return a copy of what a checkpoint stores, on `device`."""
    kept = State(
        arch=state.arch, params=state.params, second_moments=state.second_moments, last_touched=state.last_touched,
        tokens_since_fired=state.tokens_since_fired, support_share=state.support_share, steps_done=state.steps_done,
        first_moments=state.first_moments, controller=state.controller and state.controller.to_floats(),
    )  # fmt: skip
    kept = clone(kept)
    for kind in (kept.params, *kept.moment_tables().values()):
        kind |= {name: tensor.to(device) for name, tensor in kind.items()}
    kept.last_touched, kept.tokens_since_fired, kept.support_share = (
        tensor.to(device) for tensor in (kept.last_touched, kept.tokens_since_fired, kept.support_share)
    )
    return kept
