"""A permutation that depends only on its key: it is equal on every machine and with every version of numpy."""

from __future__ import annotations

import numpy as np


def fixed_permutation(n: int, *key: int) -> np.ndarray:
    """Return a permutation of range(n), int64 [n], that depends only on n and the key (non-negative integers).

    The permutation is a stable argsort of raw Philox output. numpy guarantees that Philox output and stable sorting
    never change, unlike `Generator.permutation`.
    """
    entropy = (len(key), *key)  # SeedSequence gives the same state for (1, 2) and (1, 2, 0)
    return np.argsort(np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n), kind="stable")
