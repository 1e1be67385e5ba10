"""Progress reports: what is said, how often, and that no device is asked."""

from __future__ import annotations

import io

import pytest
import torch

from jumpahead.formatting import format_bytes, format_duration
from jumpahead.progress import LineProgress, LiveTableProgress, SilentProgress, make_progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7_830, "2 h 10 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(312, "312 B"), (8_388_608, "8.4 MB"), (1.3e9, "1.3 GB"), (999_900, "1.0 MB"), (9e12, "9.0 TB")],
)
def test_size(count: float, text: str):
    assert format_bytes(count) == text


def lines() -> tuple[LineProgress, Clock, io.StringIO]:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, seconds=15)
    progress.clock = clock
    return progress, clock, stream


def test_a_hundred_reports_become_a_few_lines():
    progress, clock, stream = lines()
    with progress.phase("training", total=100_000, unit="tokens") as phase:
        for _ in range(100):
            clock.now += 0.5
            phase.advance(1_000, {"topk k = 32": {"L0": 32, "FVU": 0.2}})
    text = stream.getvalue()
    # headlines at 25, 50, 75 and 100 % (each less than 15 s after the last), each with the SAE; then the end
    assert text.count("training ") == 5
    assert text.count("topk k = 32  L0 32  FVU 0.2") == 4
    # 50,000 − 1,000 tokens in 24.5 s of reports; 50,000 left
    assert "training   50 %  50,000 of 100,000 tokens  2,000 tokens/s  25 s left" in text
    assert text.endswith("training  done: 100,000 tokens in 50 s\n")


def test_slow_work_is_reported_every_fifteen_seconds():
    progress, clock, stream = lines()
    with progress.phase("evaluating", total=1_000, unit="tokens") as phase:
        for _ in range(10):
            clock.now += 8
            phase.advance(2)
    assert stream.getvalue().count(" % ") == 5


def test_time_left_counts_only_what_this_process_did():
    progress, clock, _ = lines()
    with progress.phase("training", total=1_000, unit="tokens", done=800) as phase:
        clock.now += 60  # compiling, before the first report
        phase.update(810)
        assert phase.seconds_left is None
        clock.now += 10
        phase.update(830)
        assert phase.rate == 2.0
        assert phase.seconds_left == 85.0


def test_work_of_unknown_length_shows_what_is_done():
    clock, said = Clock(), io.StringIO()
    progress = LineProgress(said, seconds=2.0)
    progress.clock = clock
    with progress.phase("tokenising", 0, "tokens") as phase:
        for _ in range(3):
            clock.now += 3.0
            phase.advance(1_500)
    assert said.getvalue().splitlines() == [
        "tokenising  1,500 tokens",
        "tokenising  3,000 tokens  500 tokens/s",
        "tokenising  4,500 tokens  500 tokens/s",
        "tokenising  done: 4,500 tokens in 9 s",
    ]


def test_tensors_are_refused():
    with (
        SilentProgress().phase("training", 10, "tokens") as phase,
        pytest.raises(AssertionError, match="may need a device"),
    ):
        phase.advance(3, {"a": {"L0": torch.tensor(3.0)}})  # type: ignore[dict-item]


def test_the_live_table_shows_every_sae_and_hostile_labels_stay_text():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = make_progress(stream)
    assert isinstance(progress, LiveTableProgress)
    with progress.phase("training", total=10, unit="tokens") as phase:
        phase.update(3, {"[red]x[/red]": {"L0": 15.8, "FVU": 0.2134}})
        progress.console.print(progress._render(phase))
        assert "training   30 %" in stream.getvalue()
    text = stream.getvalue()
    assert "[red]x[/red]" in text
    assert "15.8" in text
    assert "0.213" in text


def test_a_pipe_gets_lines():
    assert isinstance(make_progress(io.StringIO()), LineProgress)
