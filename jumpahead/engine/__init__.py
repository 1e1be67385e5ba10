"""The sparse training step, exact, and encoding with the same kernels.

    interface.py         the state of an SAE in training, the protocol of a kernel layer, and the tuples they exchange
    step.py              one training step: support, values, decode, rule, rows
    async_step.py        steps on a GPU that are launched without waiting for the device
    rollback.py          what restores and replays such steps if a buffer overflowed
    dense_features.py    features that are active on many tokens: dense matrix products instead of the support
    batch_topk.py        selections over a whole batch
    supports.py          the layout of a support; merging, filtering and trimming one
    error_bounds.py      rigorous error bounds of the low-precision encoder product
    canonical.py         the canonical pre-activations that decide every entry, and the largest of each token
    lazy_adam.py         Adam with β₁ = 0 for rows that are touched only now and then
    resample.py          re-initialisation of dead features
    step_diagnostics.py  training diagnostics computed from the entries of a step
    reference.py         the same step by dense autograd: the oracle of the tests
    encode.py            encoding and decoding with a saved SAE on its support
    kernels/             the kernel layers: torch, numba (CPU) and triton (GPU)

A kernel layer is one class that implements `Kernels`. Kernels do not depend on the architecture.
"""

from __future__ import annotations

from jumpahead.engine.async_step import synchronize
from jumpahead.engine.encode import SparseEncoder, SparseFeatures, decode, encode
from jumpahead.engine.interface import Kernels, State, StepResult
from jumpahead.engine.kernels import kernel_layer
from jumpahead.engine.state import initial_state, state_from_params
from jumpahead.engine.step import train_step
from jumpahead.engine.step_diagnostics import StepDiagnostics

__all__ = [
    "Kernels",
    "SparseEncoder",
    "SparseFeatures",
    "State",
    "StepDiagnostics",
    "StepResult",
    "decode",
    "encode",
    "initial_state",
    "kernel_layer",
    "state_from_params",
    "synchronize",
    "train_step",
]
