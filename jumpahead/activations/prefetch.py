"""Prefetching: compute the next values while the current one is used, in a thread or on a second stream of a GPU."""

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
    """Yield compute(key) of every key, in order; up to `depth` values are computed in one other thread in advance.

    `keys` is advanced by the consumer; `compute` never runs twice at the same time. An exception of `compute` is
    raised at its key's turn. Closing the generator, or leaving it by an exception, waits for the one value that is
    being computed and drops the others.
    """
    threads = torch.get_num_threads()  # the setting is per thread, and a training loop may have changed it
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
    """Yield launch(key)() of every key, in order; up to `depth` keys are launched in advance on a second GPU stream.

    They run concurrently with what the caller launches in the meantime. There is no second thread, so torch's settings
    are the caller's. An exception of launch(key)() is raised at its key's turn. `on_gpu_seconds` is called with the
    GPU time of each key, in seconds.
    """
    stream = torch.cuda.Stream(device)
    pending: deque[tuple[Callable[[], dict[str, Tensor]], torch.cuda.Event, torch.cuda.Event]] = deque()

    def wait_for_next() -> dict[str, Tensor]:
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
