"""Loops over the features of a support: sums per feature, and `EntryOps`."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.kernels.numba.arrays import array_or_empty
from jumpahead.engine.kernels.numba.sparse_ops import broadcast_to_entries, indicator_between
from jumpahead.engine.kernels.numba.threads import parallel_for
from jumpahead.engine.supports import Support

MIN_PARALLEL_ENTRIES = 2**18
"""Entries from which a loop with a few operations per entry is faster on several threads than on one."""


@final
class NumbaEntryOps:
    """`EntryOps` on a support."""

    def __init__(self, support: Support):
        self._support = support

    def per_feature(self, vector: Tensor) -> Tensor:
        out = vector.new_empty(self._support.pre.shape)
        run_over_features(broadcast_to_entries, self._support, vector.numpy(), out.numpy())
        return out

    def between(self, low: Tensor, high: Tensor | None, weight: Tensor | None) -> Tensor:
        pre = self._support.pre.numpy()
        out, optional = np.empty_like(pre), (array_or_empty(high, pre.dtype), array_or_empty(weight, pre.dtype))
        run_over_features(indicator_between, self._support, pre, low.numpy(), *optional, out)
        return torch.from_numpy(out)


def run_over_features(loop: Any, support: Support, *arguments: Any) -> None:
    """Run loop(first, last, colptr, *arguments) over all features, on several threads if there are enough entries."""
    width = len(support.colptr) - 1
    if len(support.pre) < MIN_PARALLEL_ENTRIES:
        loop(0, width, support.colptr.numpy(), *arguments)
    else:
        parallel_for(loop, width, support.colptr.numpy(), *arguments)


def reduce_per_feature(loop: Any, support: Support, *arguments: Any) -> Tensor:
    """Return what the loop computes per feature, [M], in the pre-activations' dtype."""
    out = support.pre.new_empty(len(support.colptr) - 1)
    run_over_features(loop, support, *arguments, out.numpy())
    return out
