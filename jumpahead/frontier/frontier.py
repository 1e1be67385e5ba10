"""`Frontier`: the content of frontier.json, and answers to queries about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead.errors import StudyError, did_you_mean
from jumpahead.formatting import SampleUnit, format_percent, panel_name, sample_unit, sanitize, series_width
from jumpahead.frontier.answer import Answer
from jumpahead.frontier.other_study import other_study_note
from jumpahead.frontier.panel_answer import answer_panel
from jumpahead.frontier.query import Query, metric_by_target, parse_value
from jumpahead.frontier.seeds import seeds_of
from jumpahead.frontier.series import SeriesCurve, is_finite_number
from jumpahead.frontier.table import FrontierPoint, table_rows, to_csv, to_pandas
from jumpahead.metrics import METRICS, fidelity_metrics
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import read_json
from jumpahead.storage.plain_files import read_plain
from jumpahead.storage.run_folder import Run

if TYPE_CHECKING:
    import pandas

SCHEMA = "jumpahead.frontier/3"


class Frontier:
    """The measured sparsity–fidelity frontier of a run: SAEs of several series, trained on the same activations.

    A series is an architecture with its options; a panel contains the SAEs of one site and width.

    frontier = Frontier.load("runs/demo")
    answer = frontier.ask(delta_loss=0.2, limits={"above_10": "0.06%"})
    answer.panels[0].recommendation.series     # 'jumprelu'
    answer.panels[0].series[0].crossings[0].metrics["l0"]     # Estimate(value=17.7, low=16.0, high=19.4)
    """

    def __init__(self, data: Mapping[str, Any], folder: Path | None = None) -> None:
        self.data = data
        """Content of frontier.json."""
        self.folder = folder
        """Folder of the loaded frontier.json, to which paths of SAEs are relative; None if not loaded from a file."""
        self.note = ""
        """A sentence if the run was since started with another study, which these numbers are not of."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Frontier:
        """Return the frontier of a run folder or of a frontier.json file.

        Control and bidirectional characters in it are escaped. Raises ArtefactError if the file is missing, incomplete,
        or of another type or version.
        """
        path = Path(path)
        if not path.is_dir():
            return cls(sanitize(read_json(path, SCHEMA, has_checksum=None)), path.parent)
        run = Run.open(path)
        frontier = cls(sanitize(read_json(run.frontier, SCHEMA, has_checksum=None)), path)
        if run.study.exists():
            current = read_plain(run.study).decode("utf-8", "replace")
            frontier.note = other_study_note(str(frontier.data.get("study", "")), current)
        return frontier

    def __repr__(self) -> str:
        """Return the name of the study, the series, and the numbers of SAEs and panels, as text."""
        saes, panels = len(self.points()), self.panels
        where = panels[0] if len(panels) == 1 else f"{len(panels)} panels"
        return f"Frontier({self.name!r}: {', '.join(self.series)}; {saes} SAEs at {where})"

    @property
    def name(self) -> str:
        """Return the name of the study."""
        return self.data["name"]

    @property
    def progress(self) -> dict[str, int] | None:
        """Return {"saes", "trained", "evaluated"}, numbers of SAEs, of a run that is not finished; None if it is."""
        return self.data.get("progress")

    @property
    def unit(self) -> SampleUnit:
        """Return the nouns for activations: token, or row if the run has no language model."""
        return sample_unit(self.data)

    @property
    def rows(self) -> int:
        """Return the number of held-out activations that every SAE was measured on; 0 if none was."""
        return max((panel["rows"] for panel in self.data["panels"]), default=0)

    @property
    def series(self) -> list[str]:
        """Return the names of the series, in the order of legends."""
        return [series["name"] for series in self.data["series"]]

    @property
    def panels(self) -> list[str]:
        """Return the names of the panels, `site/width`, such as `layers.1.residual/8192`; `site` for several widths."""
        return [panel_name(panel) for panel in self.data["panels"]]

    def points(self, series: str | None = None, panel: str | int | None = None) -> list[FrontierPoint]:
        """Return the JSON of all measured SAEs, optionally only of one series or of matching panels.

        panel: a site, a width, or `site/width`. Raises StudyError for names that the run does not have.
        """
        names, panels = self._select_series(series), self._select_panels(panel)
        return [FrontierPoint(point) for each in panels for point in each["points"] if point["series"] in names]

    def table(self) -> list[dict[str, Any]]:
        """Return all measured SAEs as flat rows: identity, metrics, intervals, standard errors, path."""
        return table_rows(self.data)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the rows of `table` as CSV; also write them to a file if `path` is given."""
        text = to_csv(self.table())
        if path is not None:
            write_atomic(path, text)
        return text

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of `table` as a pandas DataFrame. Raises JumpaheadError if pandas is not installed."""
        return to_pandas(self.table())

    def curves(self, panel: Mapping[str, Any], names: Iterable[str] | None = None) -> list[SeriesCurve]:
        """Return the curves of the series `names` (default: all) in a panel; omit series without a measured SAE.

        panel: an element of `data["panels"]`.
        """
        names = self.series if names is None else list(names)
        panel_seeds = sorted({seeds_of(point) for point in panel["points"]})
        curves = []
        for series in self.data["series"]:
            if series["name"] in names:
                points = [point for point in panel["points"] if point["series"] == series["name"]]
                width = series_width(panel, series["name"])
                curves.append(SeriesCurve.from_points(series, width, points, panel_seeds, panel["fidelity"]))
        return [curve for curve in curves if curve.settings]

    def ask(
        self,
        *,
        series: str | Sequence[str] | None = None,
        limits: Mapping[str, float | str] | None = None,
        panel: str | int | None = None,
        **target: float | str | None,
    ) -> Answer:
        """Return the metrics that each series reaches at a target value, and the recommended series.

        target: exactly one keyword: `delta_loss` in nats per token, `l0` in features per token, `fvu`, or `above_10`
        or `above_1` as a count (12) or as a share of all features ("0.06%").
        limits: largest accepted values, such as {"above_10": "0.06%", "never_fired": 100}.
        series: restrict the answer to these series.
        panel: restrict the answer to a site, a width, or `site/width`.
        Raises StudyError for unknown names, or if the target metric was not measured.
        """
        query = self._parse_query(target, limits or {})
        names, panels = self._select_series(series), self._select_panels(panel)
        if query.metric in fidelity_metrics() and panels and not any(_has_value(each, query.metric) for each in panels):
            others = [METRICS[key].name for key in metric_by_target().values() if key != query.metric]
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
            covers=" ".join(filter(None, (self.note, self.covers))),
            panels=[
                answer_panel(
                    each["site"], each["width"], self.curves(each, names), names, query, each["fidelity"], self.unit
                )
                for each in panels
            ],
            unit=self.unit,
            rows=self.rows,
        )

    @cached_property
    def covers(self) -> str:
        """Return sentences on the variation that intervals cover, of text and of seeds, and on what is missing."""
        return " ".join(filter(None, [self.progress_sentence, self._interval_sentences()]))

    @property
    def progress_sentence(self) -> str:
        """Return a sentence on how far a run is that is not finished; empty if it is finished."""
        if not self.progress:
            return ""
        saes, trained, evaluated = (self.progress[key] for key in ("saes", "trained", "evaluated"))
        return f"Not finished: of {saes} SAEs, {trained} are trained and {evaluated} evaluated."

    def _interval_sentences(self) -> str:
        """Return sentences on the variation that intervals cover, and on intervals that are too narrow."""
        interval, panels = self.data["interval"], self.data["panels"]
        if not self.points():
            return ""
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
        sentences = [f"The {format_percent(interval['level'])} intervals cover {text} {seeds_text}."]
        return " ".join([*sentences, *interval["narrow"]])

    def _parse_query(self, target: Mapping[str, float | str | None], limits: Mapping[str, float | str]) -> Query:
        """Return the query with parsed target and limits. Raises StudyError unless exactly one target is given."""
        names = metric_by_target()
        unknown = [name for name in target if name not in names]
        if unknown:
            raise StudyError(f"The frontier cannot be asked about '{unknown[0]}'.{did_you_mean(unknown[0], names)}")
        given = [(name, value) for name, value in target.items() if value is not None]
        if len(given) != 1:
            ways = ", ".join(METRICS[key].name for key in names.values())
            raise StudyError(f"Ask by exactly one of: {ways}{f'; you gave {len(given)}' if given else ''}.")
        parsed = dict(parse_value(*limit) for limit in limits.items())
        return Query(*parse_value(*given[0]), parsed, f"{self.rows:,} {self.unit.plural}")

    def _select_series(self, names: str | Sequence[str] | None) -> list[str]:
        """Return the selected names of series (None: all) in the order of legends. Raises StudyError if unknown."""
        selected = [names] if isinstance(names, str) else list(names or self.series)
        for name in selected:
            if name not in self.series:
                raise StudyError(f"The run {self.name} has no series '{name}'.{did_you_mean(name, self.series)}")
        return [name for name in self.series if name in selected]

    def _select_panels(self, panel: str | int | None) -> list[dict[str, Any]]:
        """Return the panels matching a site, a width or `site/width` (None: all). Raises StudyError if none matches."""
        pairs = zip(self.data["panels"], self.panels, strict=True)
        selected = [
            each for each, name in pairs if panel is None or str(panel) in (name, each["site"], str(each["width"]))
        ]
        if panel is not None and not selected:
            raise StudyError(f"The run {self.name} has no panel '{panel}'.{did_you_mean(str(panel), self.panels)}")
        return selected


def _has_value(panel: Mapping[str, Any], metric: str) -> bool:
    """Return True if any SAE of a panel has a finite value of the metric `metric`."""
    return any(is_finite_number(point["metrics"].get(metric)) for point in panel["points"])
