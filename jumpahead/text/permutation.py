"""A permutation that depends on its key alone: the same on every machine and with every version of numpy."""

from __future__ import annotations

import numpy as np


def fixed_permutation(n: int, *key: int) -> np.ndarray:
    """Return a permutation of range(n), int64 [n], that is a function of the key (non-negative integers) alone.

    It sorts raw Philox output stably. numpy promises never to change either, unlike `Generator.permutation`.
    """
    entropy = (len(key), *key)  # SeedSequence gives the same state for (1, 2) and (1, 2, 0)
    return np.argsort(np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n), kind="stable")
