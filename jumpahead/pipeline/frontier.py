"""The last stage: frontier.json and report.html, from the evaluations."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from jumpahead import frontier
from jumpahead.pipeline.stage import Stage
from jumpahead.report import write_report
from jumpahead.report.series_style import sort_series
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.study.save import to_toml


class FrontierStage(Stage):
    """Writes frontier.json and report.html from all evaluations."""

    name = "report"

    def inputs(self) -> str:
        return self.provenance.frontier_digest([evaluation["inputs"] for evaluation in self._evaluations])

    def is_done(self) -> bool:
        return has_inputs(self.folder.frontier, self.inputs()) and self.folder.report.exists()

    def run(self) -> None:
        study, evaluations = self.study, self._evaluations
        built = frontier.build_frontier(
            evaluations, name=study.name, study_text=to_toml(study), manifest=self.folder.read_manifest(),
            series=sort_series(series_legend(series.name, series.architecture) for series in study.series),
            **self._lm_and_text(),
        )  # fmt: skip
        write_json(self.folder.frontier, {**built, "inputs": self.inputs()}, indent=None)
        write_report(self.folder.folder)

    @cached_property
    def _evaluations(self) -> list[dict[str, Any]]:
        """Return the contents of every evaluation.json of the study, each with the SAE's `path` in the run."""
        evaluations = []
        for spec in self.resources.specs:
            path = self.folder.sae_folder(spec.key).evaluation
            if path.exists():
                evaluations.append({**read_json(path), "path": spec.key})
        assert evaluations, "a study has at least one SAE, and evaluating comes before reporting"
        return evaluations

    def _lm_and_text(self) -> dict[str, Any]:
        """Return the fields of frontier.json that describe the LM and the text."""
        study, held_out = self.study, self.resources.load_held_out()
        if self.provenance.needs_lm:
            lm = {"name": study.lm.model, "dtype": self.provenance.lm_config().dtype}
            source, train_tokens = study.text.source, self.resources.load_contexts("train").rows
        else:
            lm, source = {"name": None}, f"{study.activations.origin} activations"
            train_tokens = self.resources.open_activations().total_rows
        text = {"source": source, "train_tokens": train_tokens, "held_out_tokens": held_out.tokens}
        return {"lm": lm, "text": text}


def series_legend(name: str, architecture: str) -> dict[str, Any]:
    """Return a series' entry in the page's legend: its name, its title and its architecture."""
    kind = ARCHITECTURES.get(architecture)
    return {"name": name, "title": kind.title if name == kind.name else name, "architecture": kind.name}
