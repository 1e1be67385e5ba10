"""The kernel layer for a GPU, in Triton.

    layer.py        `TritonKernels`
    selection.py    step 1: the selected entries, from the encoder product
    entries.py      feature-major entries in device buffers
    screen.py       Triton kernels of step 1
    sparse_ops.py   Triton kernels of steps 3 and 5
    launch.py       launch parameters

No kernel depends on an architecture.
"""

from __future__ import annotations

from jumpahead.engine.kernels.triton.layer import TritonKernels

__all__ = ["TritonKernels"]
