"""Progress reports of long operations: a live table on a terminal, rate-limited lines elsewhere, or nothing.

    progress = make_progress()
    with progress.phase("training", total=1_000_000, unit="tokens", done=resumed) as phase:
        for …:
            phase.advance(2048)                                                      # cheap: reads the clock
            phase.advance(2048, {"jumprelu l0 = 16": {"L0": 15.8, "FVU": 0.21}})     # with metrics of SAEs
    progress.say("7 of 18 SAEs are trained already.")

Values must be Python numbers: tensors raise AssertionError, because formatting them could wait for a GPU.
"""

from __future__ import annotations

import contextlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, final

from jumpahead.formatting import format_duration, format_number, sanitize

SAEValues = Mapping[str, Mapping[str, float]]
"""SAE label → metric name → value, such as {"jumprelu l0 = 16": {"L0": 15.8, "FVU": 0.21}}; shown as a table."""


@final
class Phase:
    """One phase of an operation, such as training: the completed amount, the rate, and metrics of SAEs.

    on_change: called with the phase after every update. clock: returns the time in seconds.
    """

    def __init__(
        self,
        title: str,
        total: float,
        unit: str,
        done: float,
        on_change: Callable[[Phase], None],
        clock: Callable[[], float],
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.sae_values: dict[str, dict[str, float]] = {}
        self._on_change, self._clock = on_change, clock
        # (time, done) of the first and the last report; the rate counts from the first, so it excludes compilation
        self._first_report: tuple[float, float] | None = None
        self._last_report: tuple[float, float] | None = None

    def advance(self, amount: float, sae_values: SAEValues | None = None) -> None:
        """Add `amount` units to the completed amount, and replace the shown metrics of the SAEs in `sae_values`."""
        self.update(self.done + amount, sae_values)

    def update(self, done: float, sae_values: SAEValues | None = None) -> None:
        """Set the completed amount to `done` units, and replace the shown metrics of the SAEs in `sae_values`."""
        self.done = done
        if sae_values:
            for label, values in sae_values.items():
                for key, value in values.items():
                    assert isinstance(value, int | float), f"{label} {key}: a {type(value).__name__} may need a device"
                self.sae_values[label] = dict(values)
        self._last_report = (self._clock(), done)
        self._first_report = self._first_report or self._last_report
        self._on_change(self)

    @property
    def rate(self) -> float | None:
        """Return the rate since the first report in units per second; None before the second report."""
        if self._first_report is None or self._last_report is None or self._last_report[0] <= self._first_report[0]:
            return None
        return (self._last_report[1] - self._first_report[1]) / (self._last_report[0] - self._first_report[0])

    @property
    def seconds_left(self) -> float | None:
        """Return the estimated remaining time of the phase in seconds; None while the rate is unknown."""
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
    """Interface through which long-running functions report progress."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Print a line that remains visible when the live table changes."""

    @abstractmethod
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> contextlib.AbstractContextManager[Phase]:
        """Return a context manager for a phase of `total` units (0: unknown); yields the `Phase` to update.

        done: units that an earlier process completed.
        """


@final
class SilentProgress(Progress):
    """Progress that prints nothing; the default of functions with a `progress` parameter."""

    def say(self, sentence: str) -> None:
        """Print nothing."""

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        """Yield a phase whose updates print nothing."""
        yield Phase(title, total, unit, done, lambda phase: None, self.clock)


@final
class LineProgress(Progress):
    """Progress as plain lines: a headline at most every `seconds`, metrics of SAEs at each quarter of a phase."""

    def __init__(self, stream: IO[str] | None = None, seconds: float = 15.0) -> None:
        self.stream, self.seconds = stream or sys.stderr, seconds

    def say(self, sentence: str) -> None:
        """Print a line."""
        print(sanitize(sentence), file=self.stream, flush=True)

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        """Yield a phase whose updates print rate-limited lines."""
        shown = self.clock()
        quarter = int(4 * done / total) if total else 4

        def report(phase: Phase) -> None:
            """Print the headline if `seconds` have passed or a quarter is complete."""
            nonlocal shown, quarter
            now = self.clock()
            reached = int(4 * phase.done / phase.total) if phase.total else 4
            if reached > quarter or now - shown >= self.seconds:
                shown = now
                self.say(phase.headline)
                if reached > quarter and phase.sae_values:
                    self.say("\n".join(self._value_lines(phase)))
                quarter = max(quarter, reached)

        began = self.clock()
        phase = Phase(title, total, unit, done, report, self.clock)
        yield phase
        self.say(f"{title}  done: {phase.done - done:,.0f} {unit} in {format_duration(self.clock() - began)}")

    @staticmethod
    def _value_lines(phase: Phase) -> list[str]:
        """Return one line per SAE: its label and its metrics."""
        width = max(len(label) for label in phase.sae_values)
        return [
            f"  {label:<{width}}  " + "  ".join(f"{key} {format_number(value)}" for key, value in values.items())
            for label, values in phase.sae_values.items()
        ]


@final
class LiveTableProgress(Progress):
    """Progress as a live table on a terminal, redrawn twice a second by rich."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr, highlight=False)

    def say(self, sentence: str) -> None:
        """Print a line above the live table."""
        self.console.print(sanitize(sentence), markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, done: float = 0) -> Iterator[Phase]:
        """Yield a phase whose state is drawn until the context ends; then print the final table."""
        from rich.live import Live as RichLive

        phase = Phase(title, total, unit, done, lambda phase: None, self.clock)
        began = self.clock()
        with RichLive(
            get_renderable=lambda: self._render(phase), console=self.console, refresh_per_second=2, transient=True
        ):
            yield phase
        if phase.sae_values:
            self.console.print(self._table(phase))
        self.say(f"{title}  done: {phase.done - done:,.0f} {unit} in {format_duration(self.clock() - began)}")

    @classmethod
    def _render(cls, phase: Phase) -> Any:
        """Return the headline, a progress bar and the table of SAEs as one rich renderable."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        bar = ProgressBar(total=phase.total or None, completed=phase.done)
        return Group(Text(phase.headline), bar, *([cls._table(phase)] if phase.sae_values else []))

    @staticmethod
    def _table(phase: Phase) -> Any:
        """Return the table of the metrics of SAEs, one row per SAE."""
        from rich.table import Table
        from rich.text import Text

        rows = dict(phase.sae_values)  # a copy: the main thread may add SAEs while the drawing thread iterates
        keys = list(dict.fromkeys(key for values in rows.values() for key in values))
        table = Table("SAE", *keys, box=None, pad_edge=False)
        for label, values in rows.items():
            table.add_row(Text(label), *(format_number(values[key]) if key in values else "" for key in keys))
        return table


def make_progress(stream: IO[str] | None = None) -> Progress:
    """Return a `LiveTableProgress` if `stream` (by default standard error) is a terminal, else a `LineProgress`."""
    stream = stream or sys.stderr
    return LiveTableProgress(stream) if stream is not None and stream.isatty() else LineProgress(stream)
