"""Sinks of the lines of training logs, beside train.jsonl: the interface of a sink, and the sinks of a training."""

from __future__ import annotations

import contextlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jumpahead.errors import StudyError
from jumpahead.training.sinks import SINKS

TEXT_KEYS = ("step", "health")
"""Keys of a line of the log that are no values: the step, and the table of diagnostics, whose values are taken out."""


class Sink(ABC):
    """Takes the lines of the training logs of all SAEs of a run. Nothing leaves the machine unless the user says so."""

    needs: ClassVar[str] = ""
    """The module that must be installed; empty for none."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    @abstractmethod
    def log(self, sae: str, step: int, values: Mapping[str, float]) -> None:
        """Take the values of an SAE after a step. sae: its label, which is unique in the run."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet; called once, also after an interruption."""


def check_sinks(names: Sequence[str]) -> None:
    """Raise StudyError for a sink that does not exist, or whose library is not installed."""
    for name in names:
        needs = SINKS.get(name).needs
        if needs and importlib.util.find_spec(needs) is None:
            raise StudyError(f"train.log_to = '{name}' needs {needs}: `pip install 'jumpahead[{name}]'`.")


@contextlib.contextmanager
def open_sinks(names: Sequence[str], folder: Path, run: str) -> Iterator[list[Sink]]:
    """Open the sinks called `names`, each in a subfolder of `folder`, and close them at the end of the `with` block."""
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            sinks.append(SINKS.get(name)(folder / name, run))
            stack.callback(sinks[-1].close)
        yield sinks


def values_of_line(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a line of train.jsonl by name; diagnostics as `health/theta_50`."""
    plain = {key: float(value) for key, value in line.items() if key not in TEXT_KEYS}
    return plain | {f"health/{key}": float(value) for key, value in (line.get("health") or {}).items()}
