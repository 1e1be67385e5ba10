"""Which SAEs of a panel are Pareto-optimal: no other is clearly better in one metric and not clearly worse in another.

A difference of two SAEs is clear if its interval, taken per bootstrap replicate of the documents they share, excludes
zero, and if it is more than 1 % of the smaller value: L0 4.00 and 4.03 are the same sparsity. Smaller is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jumpahead.frontier.curve import CONFIDENCE_LEVEL, SNAP_TOLERANCE
from jumpahead.frontier.series import is_finite_number
from jumpahead.storage.packed_numbers import packed_length, unpack_numbers

SAEJson = Mapping[str, Any]
"""One SAE in frontier.json."""


def pareto_flags(points: Sequence[SAEJson], keys: tuple[str, str]) -> list[bool]:
    """Return, per SAE, True if it is Pareto-optimal in the two metrics; False if it lacks one of them."""
    better = [clearly_better(points, key) for key in keys]
    dominates = (better[0] | better[1]) & ~better[0].T & ~better[1].T
    has_values = [all(is_finite_number(point["metrics"].get(key)) for key in keys) for point in points]
    dominates &= np.asarray(has_values, bool)[:, None]
    is_dominated = [bool(column.any()) for column in dominates.T]
    return [has and not dominated for has, dominated in zip(has_values, is_dominated, strict=True)]


def clearly_better(points: Sequence[SAEJson], key: str) -> np.ndarray:
    """Return for each pair (i, j) of SAEs whether i is clearly better than j in a metric, bool [n, n]."""
    values = np.array([_value(point, key) for point in points])
    replicates = [_replicates(point, key) for point in points]
    better = np.zeros((len(points), len(points)), bool)
    for j, value in enumerate(values):
        gain = value - values
        is_large = gain > SNAP_TOLERANCE * np.minimum(np.abs(values), abs(value))
        for i in np.flatnonzero(is_large):
            better[i, j] = _is_above_zero(replicates[j], replicates[i])
    return better


def _is_above_zero(larger: np.ndarray, smaller: np.ndarray) -> bool:
    """Return True unless the interval of the difference of two metrics' replicates contains zero."""
    count = min(len(larger), len(smaller))
    if count < 2:
        return True
    return bool(np.quantile(larger[:count] - smaller[:count], (1 - CONFIDENCE_LEVEL) / 2) > 0)


def _value(point: SAEJson, key: str) -> float:
    """Return the value of a metric; nan if there is none."""
    value = point["metrics"].get(key)
    return float(value) if value is not None and is_finite_number(value) else np.nan


def _replicates(point: SAEJson, key: str) -> np.ndarray:
    """Return the bootstrap replicates of a metric, [R]; empty if there are none."""
    packed = (point.get("bootstrap") or {}).get(key)
    return unpack_numbers(packed) if packed and packed_length(packed) else np.empty(0)
