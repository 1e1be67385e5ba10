"""Prefetching: compute the next values while the current value is used, in a thread or on a second GPU stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K")
V = TypeVar("V")

THREAD_NAME = "prefetch"


def prefetch_in_thread(compute: Callable[[K], V], keys: Iterable[K], depth: int) -> Generator[V]:
    """Yield compute(key) for every key, in order. One thread computes up to `depth` values in advance.

    The consumer's thread advances `keys`; calls of `compute` do not overlap. An exception in compute(key) is raised
    when the value for that key would be yielded. Closing the generator waits for the running call and cancels pending
    calls.
    """
    threads = torch.get_num_threads()  # torch's thread count is per thread, and a training loop may have changed it
    pool = ThreadPoolExecutor(1, THREAD_NAME, torch.set_num_threads, (threads,))
    pending: deque[Future[V]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(compute, key))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prefetch_on_gpu_stream(
    launch: Callable[[K], Callable[[], dict[str, Tensor]]],
    keys: Iterable[K],
    depth: int,
    device: torch.device,
    on_gpu_seconds: Callable[[float], None] = lambda seconds: None,
) -> Generator[dict[str, Tensor]]:
    """Yield launch(key)() for every key, in order. Up to `depth` keys are launched in advance on a second GPU stream.

    Launched work runs concurrently with work that the caller launches. No second thread is used. An exception in
    launch(key)() is raised when the tensors for that key would be yielded. on_gpu_seconds: called with the GPU time of
    each key, in seconds.
    """
    stream = torch.cuda.Stream(device)
    pending: deque[tuple[Callable[[], dict[str, Tensor]], torch.cuda.Event, torch.cuda.Event]] = deque()

    def wait_for_next() -> dict[str, Tensor]:
        """Return the tensors of the oldest pending key, after its GPU work has ended."""
        finish, started, done = pending.popleft()
        tensors, consumer = finish(), torch.cuda.current_stream(device)
        done.synchronize()
        on_gpu_seconds(started.elapsed_time(done) / 1e3)
        for tensor in tensors.values():
            tensor.record_stream(consumer)
        return tensors

    for key in keys:
        started, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            started.record()
            finish = launch(key)
            done.record()
        pending.append((finish, started, done))
        if len(pending) > depth:
            yield wait_for_next()
    while pending:
        yield wait_for_next()
