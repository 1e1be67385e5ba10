"""Views of torch tensors as numpy arrays, in the forms that compiled loops take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def bf16_bits(tensor: Tensor) -> np.ndarray:
    """Return a bfloat16 tensor as int16, without copying."""
    return tensor.view(torch.int16).numpy()


def as_arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    """Return tensors as arrays, without copying."""
    return tuple(tensor.numpy() for tensor in tensors)


def array_or_empty(tensor: Tensor | None, dtype: Any) -> np.ndarray:
    """Return a tensor as an array, without copying; an empty array for None."""
    return np.empty(0, dtype) if tensor is None else tensor.numpy()
