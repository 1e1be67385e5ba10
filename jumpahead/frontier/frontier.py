"""`Frontier`: frontier.json read from a run, and the questions it answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jumpahead.errors import StudyError, nearest
from jumpahead.formatting import SampleUnit, format_percent, sample_unit
from jumpahead.frontier.answer import Answer
from jumpahead.frontier.panel_answer import answer_panel
from jumpahead.frontier.query import Query, parse_value, target_names
from jumpahead.frontier.seeds import seeds_of
from jumpahead.frontier.series import SeriesCurve, is_number
from jumpahead.metrics import METRICS, fidelity_metrics
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run

SCHEMA = "jumpahead.frontier/1"


class Frontier:
    """The measured frontier of a run: many SAEs of several series, at several sparsities, on the same activations.

    frontier = Frontier.load("runs/demo")
    answer = frontier.ask(delta_loss=0.2, limits={"above_10": "0.06%"})
    answer.panels[0].recommendation.series     # 'jumprelu'
    answer.panels[0].series[0].crossings[0].metrics["l0"]     # Estimate(value=17.7, low=16.0, high=19.4)
    """

    def __init__(self, data: Mapping[str, Any], folder: Path | None = None) -> None:
        self.data = data
        """frontier.json as it is."""
        self.folder = folder
        """The folder it was loaded from; the points' paths are relative to it."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Frontier:
        """Load a run's folder or a frontier.json. Raises ArtefactError if it is missing, torn or of another kind."""
        path = Path(path)
        file = Run.open(path).frontier if path.is_dir() else path
        return cls(read_json(file, SCHEMA), file.parent)

    def __repr__(self) -> str:
        """Return the name, the series and the panels."""
        saes, panels = len(self.points()), self.panels
        where = panels[0] if len(panels) == 1 else f"{len(panels)} panels"
        return f"Frontier({self.name!r}: {', '.join(self.series)}; {saes} SAEs at {where})"

    @property
    def name(self) -> str:
        """Return the name of the study."""
        return self.data["name"]

    @property
    def unit(self) -> SampleUnit:
        """Return what an activation is called: a token, or a row."""
        return sample_unit(self.data)

    @property
    def series(self) -> list[str]:
        """Return the names of the series, in the order of legends."""
        return [series["name"] for series in self.data["series"]]

    @property
    def panels(self) -> list[str]:
        """Return `layers.1.residual/8192` for every site and width."""
        return [f"{panel['site']}/{panel['width']}" for panel in self.data["panels"]]

    def points(self, series: str | None = None, panel: str | int | None = None) -> list[dict[str, Any]]:
        """Return the measured SAEs (of one series, of one panel) as they stand in frontier.json."""
        names = self._series(series)
        return [point for each in self._panels(panel) for point in each["points"] if point["series"] in names]

    def curves(self, panel: Mapping[str, Any], names: Iterable[str] | None = None) -> list[SeriesCurve]:
        """Return the curves of an element of `data["panels"]`; series without a measured SAE have none."""
        names = self.series if names is None else list(names)
        panel_seeds = sorted({seeds_of(point) for point in panel["points"]})
        curves = []
        for series in self.data["series"]:
            if series["name"] in names:
                points = [point for point in panel["points"] if point["series"] == series["name"]]
                curves.append(SeriesCurve.of(series, panel["width"], points, panel_seeds, panel["fidelity"]))
        return [curve for curve in curves if curve.settings]

    def ask(
        self,
        *,
        series: str | Sequence[str] | None = None,
        limits: Mapping[str, float | str] | None = None,
        panel: str | int | None = None,
        **target: float | str | None,
    ) -> Answer:
        """Return what each series costs at one target, and which series to train.

        target: exactly one of `delta_loss` in nats per token, `l0` in features per token, `fvu`, `above_10` and
        `above_1` as a count (12) or as a share of the width ("0.06%"). limits: largest values accepted, such as
        {"above_10": "0.06%", "dead": 100}. series and panel (a site, a width, or `site/width`) narrow the answer.
        Raises StudyError for names that the run does not have.
        """
        query = self._query(target, limits or {})
        names, panels = self._series(series), self._panels(panel)
        if query.metric in fidelity_metrics() and panels and not any(_has(each, query.metric) for each in panels):
            others = [METRICS[key].name for key in target_names().values() if key != query.metric]
            raise StudyError(
                f"No {METRICS[query.metric].name} was measured in the run {self.name}, which has no language model. "
                f"Ask by {', '.join(others[:-1])} or {others[-1]}."
            )
        return Answer(
            run=self.name,
            lm=self.data["lm"]["name"] or "",
            target=query.metric,
            value=query.value,
            limits=query.limits,
            level=self.data["interval"]["level"],
            covers=self.covers,
            panels=[
                answer_panel(
                    each["site"], each["width"], self.curves(each, names), names, query, each["fidelity"], self.unit
                )
                for each in panels
            ],
            unit=self.unit,
        )

    @cached_property
    def covers(self) -> str:
        """Return a sentence on what the intervals cover."""
        interval, panels = self.data["interval"], self.data["panels"]
        if not interval["replicates"]:
            return "There are no intervals: the evaluations hold no resamples."
        documents = {panel["documents"] for panel in panels}
        text = f"the held-out {self.unit.text}"
        text += f" ({documents.pop():,} {self.unit.groups})" if len(documents) == 1 else ""
        seeds = {seeds_of(point) for panel in panels for point in panel["points"]}
        saes, streams = len({sae for sae, _ in seeds}), len({stream for _, stream in seeds})
        if interval["covers"] == "text":
            why = "one seed per SAE" if len(seeds) == 1 else "some settings have only one"
            seeds_text = f"only, not seeds: {why}"
        else:
            kinds = [f"{saes} initialisations"] if saes > 1 else ["one initialisation"]
            kinds += [f"{streams} data orders"] if streams > 1 else ["one data order"]
            seeds_text = f"and seeds: {', '.join(kinds)}"
        return f"The {format_percent(interval['level'])} intervals cover {text} {seeds_text}."

    def _query(self, target: Mapping[str, float | str | None], limits: Mapping[str, float | str]) -> Query:
        """Return the parsed target and limits. Raises StudyError unless exactly one target is given."""
        names = target_names()
        unknown = [name for name in target if name not in names]
        if unknown:
            raise StudyError(f"The frontier cannot be asked about '{unknown[0]}'.{nearest(unknown[0], names)}")
        given = [(name, value) for name, value in target.items() if value is not None]
        if len(given) != 1:
            ways = ", ".join(METRICS[key].name for key in names.values())
            raise StudyError(f"Ask by exactly one of: {ways}{f'; you gave {len(given)}' if given else ''}.")
        return Query(*parse_value(*given[0]), dict(parse_value(*limit) for limit in limits.items()))

    def _series(self, names: str | Sequence[str] | None) -> list[str]:
        """Return the chosen series in the order of legends. Raises StudyError for an unknown name."""
        wanted = [names] if isinstance(names, str) else list(names or self.series)
        for name in wanted:
            if name not in self.series:
                raise StudyError(f"The run {self.name} has no series '{name}'.{nearest(name, self.series)}")
        return [name for name in self.series if name in wanted]

    def _panels(self, panel: str | int | None) -> list[dict[str, Any]]:
        """Return the chosen panels. Raises StudyError if there is none."""
        pairs = zip(self.data["panels"], self.panels, strict=True)
        found = [
            each for each, name in pairs if panel is None or str(panel) in (name, each["site"], str(each["width"]))
        ]
        if panel is not None and not found:
            raise StudyError(f"The run {self.name} has no panel '{panel}'.{nearest(str(panel), self.panels)}")
        return found


def _has(panel: Mapping[str, Any], metric: str) -> bool:
    """Return True if any SAE of a panel has a value of a metric."""
    return any(is_number(point["metrics"].get(metric)) for point in panel["points"])
