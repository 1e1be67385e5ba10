"""One panel of the frontier, a site and a width: its SAEs in the order of the page, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jumpahead.nouns import TEXT, Nouns
from jumpahead.report.numbers import MISSING, exact

Json = Mapping[str, Any]
FIDELITY = {"delta_lm_loss": "delta LM loss", "fvu": "FVU"}
"""What the SAEs of a panel are compared by: the loss, or without a language model the reconstruction error."""
SEEDS = {"sae_seed": "SAE seed", "stream_seed": "stream seed"}


class Names(NamedTuple):
    """What the parts of a page call things by."""

    series: dict[str, int]
    """Name of a series → its place in legends and tables."""
    titles: dict[str, str]
    """Name of a series → what a reader calls it (hostile text)."""
    metrics: dict[str, Json]
    """Key of a metric → its declaration in frontier.json."""
    level: str
    """`95 %`."""
    health: list[Json]
    """Declarations of what is told of a training; empty in a frontier.json from before they were measured."""
    nouns: Nouns = TEXT
    """What the activations are called."""


@dataclass(frozen=True)
class Panel:
    """A panel of frontier.json, to be shown."""

    json: Json
    """As it stands in frontier.json."""
    number: int
    """From 1."""
    names: Names

    @property
    def width(self) -> int:
        """Features of each SAE."""
        return int(self.json["width"])

    @property
    def fidelity(self) -> str:
        """A key of FIDELITY."""
        return str(self.json.get("fidelity") or "delta_lm_loss")

    @cached_property
    def points(self) -> list[Json]:
        """The SAEs by series, setting and seeds: the order of tables, choices and the script's data."""

        def place(point: Json) -> tuple[Any, ...]:
            seeds = (point.get(key) or 0 for key in SEEDS)
            return self.names.series[point["series"]], point["setting"]["kind"], point["setting"]["value"], *seeds

        return sorted(self.json["points"], key=place)

    @cached_property
    def called(self) -> list[str]:
        """`JumpReLU, l0 = 16`, with the seeds that differ within the panel: one where both are always the same."""
        words = {key: word for key, word in SEEDS.items() if len({point.get(key) for point in self.points}) > 1}
        if all(point.get("sae_seed") == point.get("stream_seed") for point in self.points) and words:
            words = {"sae_seed": "seed"}
        return [
            ", ".join(
                [
                    self.names.titles[point["series"]],
                    setting_text(point["setting"]),
                    *(f"{word} {point.get(key)}" for key, word in words.items()),
                ]
            )
            for point in self.points
        ]

    @cached_property
    def alone(self) -> list[bool]:
        """For each SAE whether it is the only seed of its setting."""
        settings = [(p["series"], p["setting"]["kind"], p["setting"]["value"]) for p in self.points]
        count = Counter(settings)
        return [count[setting] == 1 for setting in settings]

    def series_of(self, point: Json) -> int:
        """Where a point's series stands in legends."""
        return self.names.series[point["series"]]


def setting_text(setting: Json | None) -> str:
    """`l0 = 16`, `λ = 0.0006`, `k = 32`."""
    if not setting:
        return MISSING
    return f"{'λ' if setting['kind'] == 'lambda' else setting['kind']} = {exact(setting['value'])}"
