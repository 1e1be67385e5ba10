"""The times at which long work saves its state: soon after the start, then less and less often."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

FIRST_SECONDS = 15.0
"""Seconds of work before the first save, so that short work that is killed does not start anew."""
MAX_WRITING_SHARE = 0.05
"""Largest share of the time that saving takes, unless `minutes` asks for more saves."""


@final
class SaveSchedule:
    """Decides when a save is due.

    The time between two saves is `FIRST_SECONDS` at first, then all the time before the last one, and more if writing
    takes long (`MAX_WRITING_SHARE`), but never more than `minutes`.

    minutes: the largest time between two saves. clock: returns seconds.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes, self.clock = minutes, clock
        self.began = self.saved = clock()
        self.writing_seconds = 0.0
        """Duration of the last write."""

    @property
    def interval(self) -> float:
        """Return the seconds between the last save and the next one."""
        rising = max(FIRST_SECONDS, self.saved - self.began)
        return min(60 * self.minutes, max(rising, self.writing_seconds / MAX_WRITING_SHARE))

    @property
    def is_due(self) -> bool:
        """Return True if it is time to save."""
        return self.clock() - self.saved >= self.interval

    def record(self, started: float) -> None:
        """Record that the state was written from `started`, on the schedule's clock, until now."""
        self.saved = self.clock()
        self.writing_seconds = self.saved - started
