"""The plan of a study as values, as JSON and as a table for the terminal."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from jumpahead.formatting import TOKENS, SampleUnit, format_bytes, format_counted, format_duration
from jumpahead.planning.measure import StudySeconds


class TokenCounts(NamedTuple):
    """The number of tokens of a study's text."""

    train: int
    held_out: int
    is_counted: bool
    """False: estimated from the bytes of the text."""
    is_known: bool = True
    """False: the size of the text is unknown; the numbers are those that the study requests."""
    context: int = 0
    """In conversations: tokens of roles that are neither trained on nor scored, in both splits."""


class PanelPlan(NamedTuple):
    """The SAEs of one site and width."""

    site: str
    width: int
    d: int | None
    """Width of the site; None if the model's config is not on this machine."""
    saes: int
    parameters: int | None
    """Parameters of one SAE."""


class StoredActivations(NamedTuple):
    """Activations that the study stores on disk."""

    bytes: int
    """Size of all of them."""
    present: int
    """Bytes that are on disk already."""
    free: int
    """Bytes that are free on that disk."""


class GPUCapacity(NamedTuple):
    """A GPU and the number of SAEs that fit on it."""

    name: str
    bytes: int
    fits: str
    """A clause that says how many SAEs of which width fit at once."""


@dataclass(frozen=True)
class Plan:
    """SAEs, tokens, disk, memory and time of a study."""

    name: str
    folder: str
    model: str
    panels: list[PanelPlan]
    series: dict[str, str]
    """The settings of each series, by its name: `l0 = 4, 8, 16`."""
    saes: int
    finished_saes: int
    """SAEs of the study that are saved in its run's folder already, also those that are set aside."""
    todo: list[str]
    """Sentences that say what will be trained and why; empty if everything is trained or nothing was begun."""
    tokens: TokenCounts
    train_tokens: int
    """Activations that each SAE is trained on."""
    epochs: float
    """Number of times that each training token is used."""
    scored_tokens: int
    """Held-out tokens that each SAE is evaluated on."""
    disk_bytes: int | None
    """Size of the finished run."""
    disk_bytes_training: int | None
    """Largest size of the run, during training."""
    memory_bytes: int | None
    stored_activations: StoredActivations | None = None
    """The activations if the study stores them on disk; part of `disk_bytes`."""
    seconds: StudySeconds | None = None
    gpu: GPUCapacity | None = None
    """The GPU of this machine that SAEs would be trained on."""
    notes: list[str] = field(default_factory=list)
    unit: SampleUnit = TOKENS
    """Name of an activation in the table: token, or row without a language model."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; sizes in bytes, times in seconds."""
        plain = asdict(self)
        del plain["unit"]
        plain["tokens"] = self.tokens._asdict()
        plain["gpu"] = self.gpu and self.gpu._asdict()
        plain["panels"] = [panel._asdict() for panel in self.panels]
        plain["stored_activations"] = self.stored_activations and self.stored_activations._asdict()
        plain["seconds"] = self.seconds and {**self.seconds._asdict(), "total": self.seconds.total}
        return plain

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the table: a name and its value."""
        return [*self._sae_rows(), *self._token_rows(), *self._resource_rows(), self._time_row()]

    def _sae_rows(self) -> list[tuple[str, str]]:
        """Return the rows of the model, the panels and the series."""
        rows = [("model", self.model)]
        for panel in self.panels:
            shape = f"{format_counted(panel.saes, 'SAE')} of {panel.width:,} features"
            if panel.d is not None and panel.parameters is not None:
                shape += f" × {panel.d:,} dimensions, {panel.parameters:,} parameters each"
            rows.append((panel.site, shape))
        rows += list(self.series.items())
        finished = f", of which {self.finished_saes} are in {self.folder}" if self.finished_saes else ""
        todo = [("" if i else "to do", sentence) for i, sentence in enumerate(self.todo)]
        return [*rows, ("SAEs", f"{self.saes}{finished}"), *todo]

    def _token_rows(self) -> list[tuple[str, str]]:
        """Return the rows of the training and the held-out text."""
        unit, rows = self.unit, []
        train, held_out = (self._format_count(tokens) for tokens in self.tokens[:2])
        rows.append((f"training {unit.text}", f"{train} {unit.plural}"))
        if self.tokens.context:
            rows.append(("other roles", f"{self._format_count(self.tokens.context)} tokens, read as context"))
        times = f"each {unit.singular} {self.epochs:.1f} times" if self.epochs > 1 else ""
        times = times or f"{100 * self.epochs:.0f} % of the {unit.text}"
        times = f": {times}" if self.tokens.is_known else ""
        rows.append(("trained on", f"{self.train_tokens:,} activations per SAE{times}"))
        scored = self._format_count(self.scored_tokens) if self.tokens.is_known else f"at most {self.scored_tokens:,}"
        rows.append((f"held-out {unit.text}", f"{held_out} {unit.plural}, of which {scored} are scored"))
        return rows

    def _resource_rows(self) -> list[tuple[str, str]]:
        """Return the rows of memory, GPU and disk, as far as they are known."""
        rows = []
        if self.memory_bytes is not None:
            rows.append(("memory", f"about {format_bytes(self.memory_bytes)}"))
        if self.gpu is not None:
            rows.append(("GPU", f"{self.gpu.name}, {format_bytes(self.gpu.bytes)}; {self.gpu.fits}"))
        if self.disk_bytes is not None and self.disk_bytes_training is not None:
            rows.append(
                (
                    "disk",
                    f"about {format_bytes(self.disk_bytes)}; {format_bytes(self.disk_bytes_training)} while training",
                )
            )
        if (stored := self.stored_activations) is not None:
            present = f", {format_bytes(stored.present)} are there already" if stored.present else ""
            free = f"{format_bytes(stored.free)} are free"
            rows.append(("activations", f"{format_bytes(stored.bytes)} of that{present}; {free}"))
        return rows

    def _time_row(self) -> tuple[str, str]:
        """Return the row of the time."""
        if self.seconds is None:
            return "time", "unknown: --measure times a few steps on this machine"
        named = zip(("start", "LM", "SAEs", "evaluation", "intervals"), self.seconds, strict=True)
        parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in named)
        return "time", f"roughly {format_duration(self.seconds.total)}: {parts}"

    def _format_count(self, tokens: int) -> str:
        """Return a number of tokens: exact if it was counted or is the study's, else rounded to two digits."""
        if not self.tokens.is_known:
            return "an unknown number of"
        if self.tokens.is_counted or tokens not in (*self.tokens[:2], self.tokens.context):
            return f"{tokens:,}"
        return f"about {int(float(f'{tokens:.1e}')):,}"

    def text(self, columns: int = 80) -> str:
        """Return the table in two columns, wrapped to a width of `columns` characters, and the notes below it."""
        rows = self.rows()
        left = max(len(name) for name, _ in rows) + 2
        lines = [self.name, ""]
        for name, value in rows:
            first, *more = textwrap.wrap(value, max(20, columns - left)) or [""]
            lines += [f"{name:<{left}}{first}", *(" " * left + line for line in more)]
        for note in self.notes:
            lines += ["", *textwrap.wrap(f"Note: {note}.", columns)]
        return "\n".join(lines)
