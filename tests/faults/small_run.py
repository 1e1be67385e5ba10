"""A small finished run and damages of it, for the tests of faults.

`make test-faults` sets FAULTS=all: every case. Otherwise a part of them, chosen by a fixed seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
IS_COMPLETE = os.environ.get("FAULTS") == "all"

STUDY: dict[str, Any] = {
    "name": "rows",
    "activations": {
        "origin": "synthetic",
        "sites": ["rows"],
        "options": {"d": 12, "features": 40, "groups": 24, "rows_per_group": 256, "l0": 3},
    },
    "sae": {"width": 24},
    "train": {"tokens": 2560, "batch": 128, "threads": 1},
    "evaluate": {"tokens": 500, "replicates": 20},
    "series": [{"architecture": "jumprelu", "l0": [2, 4]}, {"architecture": "topk", "k": [3]}],
}


def some(cases: Sequence[T], count: int, *, complete: int = 10**9, seed: int = 7) -> list[T]:
    """Return `complete` of the cases for `make test-faults`, else `count` of them, in their order."""
    count = complete if IS_COMPLETE else count
    if len(cases) <= count:
        return list(cases)
    return [cases[i] for i in sorted(random.Random(seed).sample(range(len(cases)), count))]
