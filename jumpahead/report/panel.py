"""One panel of the report page (the SAEs of one site and width): sorted SAEs, labels, and shared page data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jumpahead.formatting import (
    NBSP,
    SampleUnit,
    sample_unit,
    series_widths,
    typeset_interval,
    typeset_metric,
    typeset_setting,
)

Json = Mapping[str, Any]
SEED_COLUMN_TITLES = {"sae_seed": "SAE seed", "stream_seed": "stream seed"}
"""Key of each seed of an SAE → title of the table column."""


class PageContext(NamedTuple):
    """Data of frontier.json that all sections of the page use."""

    series: dict[str, int]
    """Name of a series → index of the series in legends and tables."""
    titles: dict[str, str]
    """Name of a series → name for readers. Untrusted text."""
    metrics: Mapping[str, Json]
    """Key of a metric → metadata of the metric in frontier.json, in the order of tables."""
    level: str
    """Confidence level of intervals as text: `95 %`."""
    diagnostics: list[Json]
    """Metadata of the training diagnostics in frontier.json."""
    unit: SampleUnit
    """Nouns for activations: token or row."""

    def typeset(self, key: str, value: float | None) -> str:
        """Return a value of the metric `key` as text without unit; shares have a per cent sign."""
        return typeset_metric(self.metrics[key]["format"], value)

    def typeset_interval(self, key: str, low: float | None, high: float | None) -> str:
        """Return an interval of the metric `key` as text: `0.208 to 0.219`; empty if a bound is None."""
        return typeset_interval(self.metrics[key]["format"], low, high)

    def share_of(self, key: str) -> str:
        """Return the key of the metric that is the count `key` divided by the width; empty if there is none."""
        return next((share for share, declared in self.metrics.items() if declared["share_of"] == key), "")


def page_context(frontier: Json) -> PageContext:
    """Return the data that all sections of the page use: series, metric metadata, confidence level, nouns."""
    return PageContext(
        series={one["name"]: i for i, one in enumerate(frontier["series"])},
        titles={one["name"]: one["title"] for one in frontier["series"]},
        metrics={one["key"]: one for one in frontier["metrics"]},
        level=f"{100 * frontier['interval']['level']:g}{NBSP}%",
        diagnostics=frontier["health"],
        unit=sample_unit(frontier),
    )


@dataclass(frozen=True)
class Panel:
    """A panel of frontier.json, with derived data for the page."""

    json: Json
    """The element of `panels` in frontier.json."""
    number: int
    """Number of the panel on the page, from 1."""
    context: PageContext

    @property
    def widths(self) -> dict[str, int]:
        """Return the number of features of the SAEs of each series of the panel, by name."""
        return series_widths(self.json)

    @property
    def fidelity(self) -> str:
        """Return the key of the metric that compares the SAEs of the panel."""
        return str(self.json["fidelity"])

    @property
    def fidelity_name(self) -> str:
        """Return the name of the fidelity metric in sentences: `delta LM loss`."""
        return str(self.context.metrics.get(self.fidelity, {}).get("name", self.fidelity))

    @cached_property
    def points(self) -> list[Json]:
        """Return the SAEs sorted by series, setting and seeds: the order of tables, menus and script data."""

        def sort_key(point: Json) -> tuple[Any, ...]:
            """Return the sort key of an SAE: series, setting, seeds."""
            seeds = (point[key] for key in SEED_COLUMN_TITLES)
            return self.context.series[point["series"]], point["setting"]["kind"], point["setting"]["value"], *seeds

        return sorted(self.json["points"], key=sort_key)

    @cached_property
    def labels(self) -> list[str]:
        """Return a label per SAE: `JumpReLU, l0 = 16`, followed by the seeds that vary within the panel."""
        varied = {
            key: word for key, word in SEED_COLUMN_TITLES.items() if len({point[key] for point in self.points}) > 1
        }
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
        """Return, per SAE, True if no other SAE has the same series and sparsity setting."""
        settings = [(p["series"], p["setting"]["kind"], p["setting"]["value"]) for p in self.points]
        count = Counter(settings)
        return [count[setting] == 1 for setting in settings]

    def series_index(self, point: Json) -> int:
        """Return the index of the series of an SAE in legends."""
        return self.context.series[point["series"]]
