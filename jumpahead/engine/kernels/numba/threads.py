"""Running a compiled loop over all cores.

Threads are Python's (compiled code holds no lock): numba's own parallel loops take ten times as long to compile and
bring a second pool of threads beside torch's. A loop takes a range as its first two arguments, and what it writes for
an item depends on that item alone: neither the number of threads nor who took which range changes a bit.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
PIECES = 8
"""Ranges per thread, so that an uneven load evens out."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """All threads but the caller's; in these torch itself uses one. They are made at once: what torch is told there
    is also what threads begin with that are new to it."""
    made, met = ThreadPoolExecutor(threads - 1, thread_name_prefix="jumpahead"), threading.Barrier(threads)

    def begin() -> None:
        torch.set_num_threads(1)
        met.wait()

    for _ in range(threads - 1):
        made.submit(begin)
    met.wait()
    torch.set_num_threads(threads)
    return made


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

    waiting = [_pool(threads).submit(work) for _ in range(threads - 1)]
    work()
    for future in waiting:
        future.result()


def each(items: Sequence[Item], work: Callable[[int, Item], None]) -> None:
    """Run work(worker, item) over items, on torch's number of threads; in each of them torch uses one.

    No two items have the same worker, 0 … threads − 1, at the same time. Who gets which item is not determined.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for item in items:
            work(0, item)
        return
    following = itertools.count()

    def run(worker: int) -> None:
        while (number := next(following)) < len(items):
            work(worker, items[number])

    waiting = [_pool(threads).submit(run, worker) for worker in range(1, threads)]
    torch.set_num_threads(1)
    try:
        run(0)
    finally:
        torch.set_num_threads(threads)
        for future in waiting:
            future.result()
