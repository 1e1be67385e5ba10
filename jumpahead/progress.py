"""Progress of long work: a live table on a terminal, plain lines with a rate limit elsewhere, nothing in tests.

    progress = progress_on()
    with progress.phase("training", total=1_000_000, unit="tokens", done=resumed) as phase:
        for …:
            phase.advance(2048)                                                      # cheap: a clock reading
            phase.advance(2048, {"jumprelu l0 = 16": {"L0": 15.8, "FVU": 0.21}})     # when the numbers are at hand
    progress.say("7 of 18 SAEs are trained already.")

Values are plain numbers, so nothing here waits for a device; tensors are refused.
"""

from __future__ import annotations

import contextlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, final

from jumpahead.formatting import format_duration, format_number

Rows = Mapping[str, Mapping[str, float]]
"""SAE label → {"L0": …, "FVU": …}: the values that the table shows."""


@final
class Phase:
    """One part of the work, such as training: how much of it is done, and how fast."""

    def __init__(
        self,
        title: str,
        total: float,
        unit: str,
        done: float,
        changed: Callable[[Phase], None],
        clock: Callable[[], float],
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.rows: dict[str, dict[str, float]] = {}
        self._changed, self._clock = changed, clock
        self._began: tuple[float, float] | None = None  # time and `done` at the first report: compiling is not counted
        self._last: tuple[float, float] | None = None

    def advance(self, amount: float, rows: Rows | None = None) -> None:
        """Add `amount` to what is done, and replace the values of the SAEs in `rows`."""
        self.update(self.done + amount, rows)

    def update(self, done: float, rows: Rows | None = None) -> None:
        """Set what is done, and replace the values of the SAEs in `rows`."""
        self.done = done
        if rows:
            for label, values in rows.items():
                for key, value in values.items():
                    assert isinstance(value, int | float), f"{label} {key}: a {type(value).__name__} may need a device"
                self.rows[label] = dict(values)
        self._last = (self._clock(), done)
        self._began = self._began or self._last
        self._changed(self)

    @property
    def rate(self) -> float | None:
        """Return units per second since the first report; None before the second."""
        if self._began is None or self._last is None or self._last[0] <= self._began[0]:
            return None
        return (self._last[1] - self._began[1]) / (self._last[0] - self._began[0])

    @property
    def seconds_left(self) -> float | None:
        """Return the estimated seconds left; None while the rate is unknown."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def headline(self) -> str:
        """Return a line: `training  12 %  123,000 of 1,000,000 tokens  8,410 tokens/s  1 min 44 s left`."""
        parts = [self.title, f"{self.done:,.0f} {self.unit}"]
        if self.total:
            share = f"{100 * self.done / self.total:3.0f} %"
            parts = [self.title, share, f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"]
        if self.rate is not None:
            parts.append(f"{format_number(self.rate)} {self.unit}/s")
        if self.seconds_left is not None and self.done < self.total:
            parts.append(f"{format_duration(self.seconds_left)} left")
        return "  ".join(parts)


class Progress(ABC):
    """What long-running functions report to."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Print a line that stays."""

    @abstractmethod
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> contextlib.AbstractContextManager[Phase]:
        """Report a phase of `total` units (0: unknown), of which an earlier process did `done`."""


@final
class Silent(Progress):
    """Prints nothing; the default of functions that take a progress."""

    def say(self, sentence: str) -> None:
        pass

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        yield Phase(title, total, unit, done, lambda phase: None, self.clock)


@final
class Lines(Progress):
    """Prints plain lines: a headline at most every `seconds`, the SAEs' values at each quarter of a phase."""

    def __init__(self, stream: IO[str] | None = None, seconds: float = 15.0) -> None:
        self.stream, self.seconds = stream or sys.stderr, seconds

    def say(self, sentence: str) -> None:
        print(sentence, file=self.stream, flush=True)

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        shown = self.clock()
        quarter = int(4 * done / total) if total else 4

        def changed(phase: Phase) -> None:
            nonlocal shown, quarter
            now = self.clock()
            reached = int(4 * phase.done / phase.total) if phase.total else 4
            if reached > quarter or now - shown >= self.seconds:
                shown = now
                self.say(phase.headline)
                if reached > quarter and phase.rows:
                    self.say("\n".join(self._rows(phase)))
                quarter = max(quarter, reached)

        began = self.clock()
        phase = Phase(title, total, unit, done, changed, self.clock)
        yield phase
        self.say(f"{title}  done: {phase.done - done:,.0f} {unit} in {format_duration(self.clock() - began)}")

    @staticmethod
    def _rows(phase: Phase) -> list[str]:
        width = max(len(label) for label in phase.rows)
        return [
            f"  {label:<{width}}  " + "  ".join(f"{key} {format_number(value)}" for key, value in values.items())
            for label, values in phase.rows.items()
        ]


@final
class LiveTable(Progress):
    """Draws a table twice a second, with rich."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr, highlight=False)

    def say(self, sentence: str) -> None:
        self.console.print(sentence, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        from rich.live import Live as RichLive

        phase = Phase(title, total, unit, done, lambda phase: None, self.clock)
        began = self.clock()
        with RichLive(
            get_renderable=lambda: self._render(phase), console=self.console, refresh_per_second=2, transient=True
        ):
            yield phase
        if phase.rows:
            self.console.print(self._table(phase))
        self.say(f"{title}  done: {phase.done - done:,.0f} {unit} in {format_duration(self.clock() - began)}")

    @classmethod
    def _render(cls, phase: Phase) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        bar = ProgressBar(total=phase.total or None, completed=phase.done)
        return Group(Text(phase.headline), bar, *([cls._table(phase)] if phase.rows else []))

    @staticmethod
    def _table(phase: Phase) -> Any:
        from rich.table import Table
        from rich.text import Text

        rows = dict(phase.rows)  # the drawing thread must not see it grow
        keys = list(dict.fromkeys(key for values in rows.values() for key in values))
        table = Table("SAE", *keys, box=None, pad_edge=False)
        for label, values in rows.items():
            table.add_row(Text(label), *(format_number(values[key]) if key in values else "" for key in keys))
        return table


def progress_on(stream: IO[str] | None = None) -> Progress:
    """Return a live table if `stream` (by default standard error) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    return LiveTable(stream) if stream is not None and stream.isatty() else Lines(stream)
