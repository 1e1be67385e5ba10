"""One panel of frontier.json, a site and a width: its SAEs in the order of the page, and their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jumpahead.formatting import SampleUnit, typeset_interval, typeset_metric, typeset_setting

Json = Mapping[str, Any]
SEEDS = {"sae_seed": "SAE seed", "stream_seed": "stream seed"}


class PageContext(NamedTuple):
    """What all parts of a page share."""

    series: dict[str, int]
    """Name of a series → its index in legends and tables."""
    titles: dict[str, str]
    """Name of a series → its title. Untrusted text."""
    metrics: Mapping[str, Json]
    """Key of a metric → its declaration in frontier.json, in the order of tables."""
    level: str
    """Of intervals: `95 %`."""
    diagnostics: list[Json]
    """Declarations of the diagnostics of a training."""
    unit: SampleUnit
    """What an activation is called."""

    def typeset(self, key: str, value: float | None) -> str:
        """Return a value of the metric `key`, without its unit; a share has a per cent sign."""
        return typeset_metric(self.metrics[key]["format"], value)

    def typeset_interval(self, key: str, low: float | None, high: float | None) -> str:
        """Return an interval of the metric `key`: `0.208 to 0.219`; empty if a bound is None."""
        return typeset_interval(self.metrics[key]["format"], low, high)

    def share_of(self, key: str) -> str:
        """Return the key of the metric that is `key` divided by the width; empty if there is none."""
        return next((share for share, one in self.metrics.items() if one["share_of"] == key), "")


@dataclass(frozen=True)
class Panel:
    """A panel of frontier.json, to be shown."""

    json: Json
    """As it stands in frontier.json."""
    number: int
    """From 1."""
    context: PageContext

    @property
    def width(self) -> int:
        """Return the number of features of each SAE."""
        return int(self.json["width"])

    @property
    def fidelity(self) -> str:
        """Return the metric that its SAEs are compared by."""
        return str(self.json["fidelity"])

    @property
    def fidelity_name(self) -> str:
        """Return the name of that metric in sentences: `delta LM loss`."""
        return str(self.context.metrics.get(self.fidelity, {}).get("name", self.fidelity))

    @cached_property
    def points(self) -> list[Json]:
        """Return the SAEs by series, setting and seeds: the order of tables, choices and the script's data."""

        def order(point: Json) -> tuple[Any, ...]:
            """Return the sort key of an SAE."""
            seeds = (point[key] for key in SEEDS)
            return self.context.series[point["series"]], point["setting"]["kind"], point["setting"]["value"], *seeds

        return sorted(self.json["points"], key=order)

    @cached_property
    def labels(self) -> list[str]:
        """Return a label per SAE: `JumpReLU, l0 = 16`, with the seeds that vary within the panel."""
        varied = {key: word for key, word in SEEDS.items() if len({point[key] for point in self.points}) > 1}
        if all(point["sae_seed"] == point["stream_seed"] for point in self.points) and varied:
            varied = {"sae_seed": "seed"}
        return [
            ", ".join(
                [
                    self.context.titles[point["series"]],
                    typeset_setting(point["setting"]),
                    *(f"{word} {point[key]}" for key, word in varied.items()),
                ]
            )
            for point in self.points
        ]

    @cached_property
    def is_only_seed(self) -> list[bool]:
        """Return, per SAE, True if it is the only seed of its setting."""
        settings = [(p["series"], p["setting"]["kind"], p["setting"]["value"]) for p in self.points]
        count = Counter(settings)
        return [count[setting] == 1 for setting in settings]

    def series_of(self, point: Json) -> int:
        """Return the index of a point's series in legends."""
        return self.context.series[point["series"]]
