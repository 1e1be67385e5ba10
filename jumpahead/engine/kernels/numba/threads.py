"""Run compiled loops on all cores, with Python threads.

Compiled code releases the GIL. numba's own parallel loops take ten times as long to compile and add a second thread
pool to torch's. A loop takes a range as its first two arguments, and what it writes for an item depends on that item
alone, so the results do not depend on the number of threads or on their schedule.
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
RANGES_PER_THREAD = 8
"""For load balancing."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of `threads` − 1 threads, in each of which torch itself uses one thread.

    All threads are started at once, because the setting made in them is also the default of threads that torch sees
    for the first time later.
    """
    pool, barrier = ThreadPoolExecutor(threads - 1, thread_name_prefix="jumpahead"), threading.Barrier(threads)

    def initialise() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    for _ in range(threads - 1):
        pool.submit(initialise)
    barrier.wait()
    torch.set_num_threads(threads)
    return pool


def split_range(n: int, parts: int) -> list[tuple[int, int]]:
    """Return 0 … n − 1 as at most `parts` ranges (start, stop)."""
    parts = max(1, min(n, parts))
    return list(itertools.pairwise(n * part // parts for part in range(parts + 1)))


def parallel_for(loop: Callable[..., Any], ranges: int | list[tuple[int, int]], *arguments: Any) -> None:
    """Run loop(start, stop, *arguments) over the ranges, or over 0 … n − 1, on torch's number of threads."""
    threads = torch.get_num_threads()
    if isinstance(ranges, int):
        ranges = split_range(ranges, 1 if threads == 1 else threads * RANGES_PER_THREAD)
    if threads == 1 or len(ranges) < 2:
        for start, stop in ranges:
            loop(start, stop, *arguments)
        return
    next_index = itertools.count()

    def work() -> None:
        while (i := next(next_index)) < len(ranges):
            loop(*ranges[i], *arguments)

    futures = [_pool(threads).submit(work) for _ in range(threads - 1)]
    work()
    for future in futures:
        future.result()


def parallel_for_each(items: Sequence[Item], work: Callable[[int, Item], None]) -> None:
    """Run work(worker, item) for all items, on torch's number of threads; in each of them torch uses one thread.

    worker: 0 … threads − 1; no two items run on the same worker at the same time. The assignment of items to workers
    is not deterministic.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for item in items:
            work(0, item)
        return
    next_index = itertools.count()

    def run(worker: int) -> None:
        while (i := next(next_index)) < len(items):
            work(worker, items[i])

    futures = [_pool(threads).submit(run, worker) for worker in range(1, threads)]
    torch.set_num_threads(1)
    try:
        run(0)
    finally:
        torch.set_num_threads(threads)
        for future in futures:
            future.result()
