"""Scratch memory of the kernel layer, reused from step to step."""

from __future__ import annotations

import threading
from typing import Any, final

import numpy as np

INITIAL_CAPACITY = 32
"""Initial candidates per feature that a candidate buffer can hold."""


@final
class Workspace:
    """Scratch arrays of each thread, and the capacity of candidate buffers."""

    def __init__(self) -> None:
        self.candidates_per_feature = INITIAL_CAPACITY
        """Grows after an overflow."""
        self._local = threading.local()

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an uninitialised array of the calling thread; the next call with the same name reuses its memory."""
        size, arrays = int(np.prod(shape)), self._local.__dict__
        buffer = arrays.get(name)
        if buffer is None or len(buffer) < size or buffer.dtype != dtype:
            arrays[name] = buffer = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
