"""Making the next things while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K")
V = TypeVar("V")


def ahead(make: Callable[[K], V], keys: Iterable[K], count: int) -> Generator[V]:
    """make(key) of every key, in order; up to `count` of them are made in another thread before they are asked for.

    `keys` is advanced by the consumer, `make` runs in one other thread: nothing runs twice or side by side with itself.
    What `make` raises is raised here, at its key's turn. Closing the generator, or leaving it by an exception, waits
    for the one value that is being made, and drops the others.
    """
    threads = torch.get_num_threads()  # torch's setting is each thread's own, and an engine's loop may hold the default
    pool = ThreadPoolExecutor(1, "ahead", torch.set_num_threads, (threads,))
    waiting: deque[Future[V]] = deque()
    try:
        for key in keys:
            waiting.append(pool.submit(make, key))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def beside(
    begin: Callable[[K], Callable[[], dict[str, Tensor]]],
    keys: Iterable[K],
    count: int,
    device: torch.device,
    spent: Callable[[float], None] = lambda seconds: None,
) -> Generator[dict[str, Tensor]]:
    """begin(key)() of every key, in order, on a second stream of a GPU: what up to `count` keys take is launched before
    they are asked for, and runs beside what the caller launches meanwhile.

    No second thread: what is launched sees torch's settings as they are here. What begin(key)() raises is raised at its
    key's turn. `spent` is told how long the GPU took for each.
    """
    stream = torch.cuda.Stream(device)
    waiting: deque[tuple[Callable[[], dict[str, Tensor]], torch.cuda.Event, torch.cuda.Event]] = deque()

    def taken() -> dict[str, Tensor]:
        finish, begun, made = waiting.popleft()
        found, here = finish(), torch.cuda.current_stream(device)
        made.synchronize()
        spent(begun.elapsed_time(made) / 1e3)
        for tensor in found.values():
            tensor.record_stream(here)
        return found

    for key in keys:
        begun, made = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            begun.record()
            finish = begin(key)
            made.record()
        waiting.append((finish, begun, made))
        if len(waiting) > count:
            yield taken()
    while waiting:
        yield taken()
