"""Deferred handling of Ctrl-C and SIGTERM, so that a training step is never interrupted halfway."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def catch_interrupts() -> Iterator[Callable[[], bool]]:
    """Record the first Ctrl-C or SIGTERM in this context instead of raising; a second one raises KeyboardInterrupt.

    Yields a function that returns True once a signal was received. Outside the main thread, signals are not handled.
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
