"""The times of saves, on a clock that the test sets."""

from __future__ import annotations

import pytest

from jumpahead.storage.save_schedule import SaveSchedule


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def checkpoints(minutes: float, writing: float, seconds: int) -> list[int]:
    """Return the seconds after the start at which checkpoints begin, with steps of one second."""
    clock = Clock()
    schedule, found = SaveSchedule(minutes, clock), []
    while clock.now < 1000 + seconds:
        clock.now += 1
        if schedule.is_due:
            found.append(round(clock.now - 1000))
            started = clock.now
            clock.now += writing
            schedule.record(started)
    return found


@pytest.mark.parametrize(
    ("minutes", "writing", "wanted"),
    [
        (2.0, 0.0, [15, 30, 60, 120, 240, 360, 480]),
        (0.25, 0.0, list(range(15, 500, 15))),
        (2.0, 5.0, [15, 120, 245, 370, 495]),  # 5 s are 5 % of 100 s
    ],
)
def test_checkpoints_come_early_then_rarely_and_cost_little(minutes: float, writing: float, wanted: list[int]):
    assert checkpoints(minutes, writing, 500) == wanted


def test_a_tiny_interval_is_kept():
    clock = Clock()
    schedule = SaveSchedule(1e-9, clock)
    clock.now += 1e-3
    assert schedule.is_due
