"""Making the next things while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def ahead(make: Callable[[K], V], keys: Iterable[K], count: int) -> Generator[V]:
    """make(key) of every key, in order; up to `count` of them are made in another thread before they are asked for.

    `keys` is advanced by the consumer, `make` runs in one other thread: nothing runs twice or side by side with itself.
    What `make` raises is raised here, at its key's turn. Closing the generator, or leaving it by an exception, waits
    for the one value that is being made, and drops the others.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
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
