"""Timing of single calls, and the SAEs that were timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jumpahead.sae.saved import SAE


class TimedSAE(NamedTuple):
    """An SAE whose training step and evaluation were timed."""

    site: str
    sae: SAE
    stands_for: float
    """Number of SAEs of the study that it represents; a fraction if an extreme setting stands for those between."""


def time_call(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes and its result; on a GPU, includes the kernels that it launched."""
    import torch

    start = time.perf_counter()
    result = work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def time_second_call(work: Callable[[], object]) -> float:
    """Return the seconds that the second of two calls takes: the first compiles and fills caches."""
    work()
    return time_call(work)[0]
