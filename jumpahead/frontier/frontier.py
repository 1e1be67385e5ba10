"""`Frontier`: frontier.json, read and asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jumpahead import store
from jumpahead.errors import StudyError, nearest
from jumpahead.frontier.answer import Answer, Question, answer_panel, parse_amount
from jumpahead.frontier.series import SeriesCurve, seeds_of
from jumpahead.frontier.words import percent
from jumpahead.nouns import Nouns

SCHEMA = "jumpahead.frontier/1"


def fidelity(panel: Mapping[str, Any]) -> str:
    """What the SAEs of an element of `data["panels"]` are compared by: a key of `words.FIDELITY`."""
    return panel.get("fidelity", "delta_lm_loss")


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
        """Where it was loaded from; the points' paths are relative to it."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Frontier:
        """From a run's folder or a frontier.json; ArtefactError where that is missing, torn or foreign."""
        path = Path(path)
        file = store.Run.open(path).frontier if path.is_dir() else path
        return cls(store.read_json(file, SCHEMA), file.parent)

    def __repr__(self) -> str:
        saes, panels = len(self.points()), self.panels
        where = panels[0] if len(panels) == 1 else f"{len(panels)} panels"
        return f"Frontier({self.name!r}: {', '.join(self.series)}; {saes} SAEs at {where})"

    @property
    def name(self) -> str:
        return self.data["name"]

    @property
    def nouns(self) -> Nouns:
        """What its activations are called."""
        return Nouns.of(self.data)

    @property
    def series(self) -> list[str]:
        """Names of the series, in the order of legends."""
        return [series["name"] for series in self.data["series"]]

    @property
    def panels(self) -> list[str]:
        """`layers.1.residual/8192` for every site and width."""
        return [f"{panel['site']}/{panel['width']}" for panel in self.data["panels"]]

    def points(self, series: str | None = None, panel: str | int | None = None) -> list[dict[str, Any]]:
        """The measured SAEs (of one series, of one panel) as they stand in frontier.json."""
        names = self._series(series)
        return [point for each in self._panels(panel) for point in each["points"] if point["series"] in names]

    def curves(self, panel: Mapping[str, Any], names: Iterable[str] | None = None) -> list[SeriesCurve]:
        """The curves of an element of `data["panels"]`; series without a measured SAE have none."""
        names = self.series if names is None else list(names)
        universe = sorted({seeds_of(point) for point in panel["points"]})
        curves = []
        for series in self.data["series"]:
            if series["name"] in names:
                points = [point for point in panel["points"] if point["series"] == series["name"]]
                curves.append(SeriesCurve.of(series, panel["width"], points, universe, fidelity(panel)))
        return [curve for curve in curves if curve.settings]

    def ask(
        self,
        *,
        delta_loss: float | None = None,
        l0: float | None = None,
        fvu: float | None = None,
        above_10: float | str | None = None,
        above_1: float | str | None = None,
        series: str | Sequence[str] | None = None,
        limits: Mapping[str, float | str] | None = None,
        panel: str | int | None = None,
    ) -> Answer:
        """What each series costs where its curve meets one target, and which one to train.

        Exactly one of: `delta_loss` in nats per token, `l0` in features per token, `fvu`, `above_10` or `above_1` as a
        count (12) or as a share of the width ("0.06%"). `limits`: largest values accepted, e.g. {"above_10": "0.06%",
        "dead": 100}. `series` and `panel` (a site, a width, or `site/width`) narrow the answer.
        StudyError for what the run does not have.
        """
        given = {"delta_loss": delta_loss, "l0": l0, "fvu": fvu, "above_10": above_10, "above_1": above_1}
        asked = [item for item in given.items() if item[1] is not None]
        if len(asked) != 1:
            raise StudyError(
                "Ask by exactly one of: delta LM loss, L0, FVU, features above 10 %, features above 1 %"
                + (f"; you gave {len(asked)}." if asked else ".")
            )
        bounds = dict(parse_amount(*limit) for limit in (limits or {}).items())
        question = Question(*parse_amount(*asked[0]), bounds)  # type: ignore[arg-type]
        names = self._series(series)
        if question.metric == "delta_lm_loss" and all(fidelity(each) == "fvu" for each in self._panels(panel)):
            raise StudyError(
                f"No delta LM loss was measured in the run {self.name}, since there was no language model: ask by FVU, "
                "L0 or numbers of features."
            )
        return Answer(
            run=self.name,
            lm=self.data["lm"]["name"] or "",
            target=question.metric,
            value=question.value,
            limits=bounds,
            level=self.data["interval"]["level"],
            covers=self.covers,
            panels=[
                answer_panel(
                    each["site"], each["width"], self.curves(each, names), names, question, fidelity(each), self.nouns
                )
                for each in self._panels(panel)
            ],
            nouns=self.nouns,
        )

    @cached_property
    def covers(self) -> str:
        """What the intervals cover, as a sentence that can be quoted."""
        interval, panels = self.data["interval"], self.data["panels"]
        if not interval["replicates"]:
            return "There are no intervals: the evaluations hold no resamples."
        documents = {panel["documents"] for panel in panels}
        text = self.nouns("the held-out text")
        text += self.nouns(f" ({documents.pop():,} documents)") if len(documents) == 1 else ""
        seeds = {seeds_of(point) for panel in panels for point in panel["points"]}
        saes, streams = len({sae for sae, _ in seeds}), len({stream for _, stream in seeds})
        if interval["covers"] == "text":
            why = "one seed per SAE" if len(seeds) == 1 else "some settings have only one"
            seeds_text = f"only, not seeds: {why}"
        else:
            kinds = [f"{saes} initialisations"] if saes > 1 else ["one initialisation"]
            kinds += [f"{streams} data orders"] if streams > 1 else ["one data order"]
            seeds_text = f"and seeds: {', '.join(kinds)}"
        return f"The {percent(interval['level'])} intervals cover {text} {seeds_text}."

    def _series(self, names: str | Sequence[str] | None) -> list[str]:
        wanted = [names] if isinstance(names, str) else list(names or self.series)
        for name in wanted:
            if name not in self.series:
                raise StudyError(f"The run {self.name} has no series '{name}'.{nearest(name, self.series)}")
        return [name for name in self.series if name in wanted]

    def _panels(self, panel: str | int | None) -> list[dict[str, Any]]:
        pairs = zip(self.data["panels"], self.panels, strict=True)
        found = [
            each for each, name in pairs if panel is None or str(panel) in (name, each["site"], str(each["width"]))
        ]
        if panel is not None and not found:
            raise StudyError(f"The run {self.name} has no panel '{panel}'.{nearest(str(panel), self.panels)}")
        return found
