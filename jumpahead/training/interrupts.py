"""Ctrl-C and SIGTERM as a flag, so that no training step is cut in two."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM within this context into a flag; a second one raises KeyboardInterrupt.

    Yields a function that returns whether a signal came. Outside the main thread, signal handlers are left alone.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
