"""The exact sparse training step, and encoding with the same kernels.

    step.py        the five calls, in order: support, values, decode, rule, rows
    select.py      selections that look at the whole batch; the support itself is in supports.py
    dense.py       features that are on for a large share of the tokens, through products
    decide.py      how far a product can be off, the canonical π, the largest of each token
    lazy_adam.py   Adam with β₁ = 0 for rows that are touched now and then
    watch.py       what a step's entries say about training's health
    reference.py   the same step by dense autograd: the oracle of every test
    plain.py       the kernels in plain torch: runs everywhere
    cpu/           the kernels compiled with numba, and the choice of the encoder product
    cuda/          the kernels in Triton, for a GPU

Every kernel layer is one small class with the methods of `step.Kernels`. No kernel knows an architecture.
"""

from __future__ import annotations

import importlib.util

import torch

from jumpahead.engine.encode import Coder, Features, decode, encode
from jumpahead.engine.step import Kernels, State, StepResult, fresh_state, step
from jumpahead.engine.watch import Watch

__all__ = [
    "Coder",
    "Features",
    "Kernels",
    "State",
    "StepResult",
    "Watch",
    "decode",
    "encode",
    "fresh_state",
    "kernels",
    "step",
]


def kernels(name: str | None = None, device: torch.device | str = "cpu") -> Kernels:
    """The kernel layer `plain`, `cpu` or `cuda`; by default the one for SAEs on `device`, and plain torch where its
    library is absent (numba; on a GPU, Triton)."""
    device = torch.device(device)
    if name is None:
        name = "cuda" if device.type == "cuda" else "cpu"
        if importlib.util.find_spec("triton" if name == "cuda" else "numba") is None:
            name = "plain"
    if name == "plain":
        from jumpahead.engine.plain import Plain

        return Plain()
    if name == "cuda":
        from jumpahead.engine.cuda import Triton

        return Triton(device)
    from jumpahead.engine.cpu import Compiled

    return Compiled()
