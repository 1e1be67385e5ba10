"""The kernel layer for the CPU, compiled with numba.

    layer.py             `NumbaKernels`
    matmul_backends.py   the library and precision of matrix products
    screen.py            compiled loops of step 1: from a block of the encoder product to candidates
    topk_search.py       the k largest pre-activations of each token
    candidates.py        a growing buffer of candidates
    entries.py           feature-major entries: filter, merge, convert to a `Support`; loops in entry_loops.py
    sparse_ops.py        compiled loops of steps 3 and 5
    entry_ops.py         sums per feature, lookups at entries
    simd.py              SIMD operations that numba does not generate by itself
    jit.py               the compilers: strict floating point, sums reassociated, inlined into the caller
    threads.py           running compiled loops on all cores
    workspace.py         scratch memory
    arrays.py            tensors as numpy arrays

No loop depends on an architecture.
"""

from __future__ import annotations

from jumpahead.engine.kernels.numba.layer import NumbaKernels

__all__ = ["NumbaKernels"]
