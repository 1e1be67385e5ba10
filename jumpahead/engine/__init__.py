"""The exact sparse training step, and encoding with the same kernels.

    step.py        the five calls, in order: support, values, decode, rule, rows
    select.py      selections that look at the whole batch; the support itself is in supports.py
    dense.py       features that are on for a large share of the tokens, through products
    decide.py      how far a product can be off, the canonical π, the largest of each token
    lazy_adam.py   Adam with β₁ = 0 for rows that are touched now and then
    late.py        steps that do not wait for their device, and what they find out afterwards
    watch.py       what a step's entries say about training's health
    reference.py   the same step by dense autograd: the oracle of every test
    plain.py       the kernels in plain torch: runs everywhere
    ordinary.py    what layers do by tensor operations where they have nothing better
    cpu/           the kernels compiled with numba, and the choice of the encoder product
    cuda/          the kernels in Triton, for a GPU

Every kernel layer is one small class with the methods of `step.Kernels`. No kernel knows an architecture.
"""

from __future__ import annotations

import importlib.util

import torch

from jumpahead.engine.async_step import settle
from jumpahead.engine.encode import Coder, Features, decode, encode
from jumpahead.engine.step import Kernels, State, StepResult, begun, fresh_state, step
from jumpahead.engine.step_diagnostics import Watch

__all__ = [
    "Coder",
    "Features",
    "Kernels",
    "State",
    "StepResult",
    "Watch",
    "begun",
    "decode",
    "encode",
    "fresh_state",
    "kernel_layer",
    "settle",
    "step",
]


def kernel_layer(name: str | None = None, device: torch.device | str = "cpu", *, late: bool = True) -> Kernels:
    """The kernel layer `plain`, `cpu` or `cuda`; by default the one for SAEs on `device`, and plain torch where its
    library is absent (numba; on a GPU, Triton).

    late: whether that of a GPU may leave what it finds out to the next step (late.py); for encoding it may not.
    """
    device, why = torch.device(device), ""
    if name is None:
        name, library = ("cuda", "triton") if device.type == "cuda" else ("cpu", "numba")
        if importlib.util.find_spec(library) is None:
            name, why = "plain", f"{library} is not installed, with it steps are several times as fast"
    if name == "plain":
        from jumpahead.engine.kernels.torch.layer import Plain

        return Plain(why)
    if name == "cuda":
        from jumpahead.engine.kernels.triton import Triton

        return Triton(device, late=late)
    from jumpahead.engine.kernels.numba import Compiled

    return Compiled()
