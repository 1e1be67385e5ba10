"""Running a compiled loop over all cores.

Threads are Python's (compiled code holds no lock): numba's own parallel loops take ten times as long to compile and
bring a second pool of threads beside torch's. A loop takes a range as its first two arguments, and what it writes for
an item depends on that item alone: neither the number of threads nor who took which range changes a bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

PIECES = 8
"""Ranges per thread, so that an uneven load evens out."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="jumpahead")


def cuts(n: int, pieces: int) -> list[tuple[int, int]]:
    """0 … n in at most `pieces` ranges."""
    pieces = max(1, min(n, pieces))
    return list(itertools.pairwise(n * piece // pieces for piece in range(pieces + 1)))


def spread(loop: Callable[..., Any], ranges: int | list[tuple[int, int]], *arguments: Any) -> None:
    """Run loop(start, stop, *arguments) over ranges (or over 0 … n − 1), on torch's number of threads."""
    threads = torch.get_num_threads()
    if isinstance(ranges, int):
        ranges = cuts(ranges, 1 if threads == 1 else threads * PIECES)
    if threads == 1 or len(ranges) < 2:
        for start, stop in ranges:
            loop(start, stop, *arguments)
        return
    following = itertools.count()

    def work() -> None:
        while (number := next(following)) < len(ranges):
            loop(*ranges[number], *arguments)

    waiting = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for future in waiting:
        future.result()
