"""The last stage: frontier.json and report.html, from the evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jumpahead import frontier
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.stage import Stage
from jumpahead.pipeline.training_log import training_records
from jumpahead.report import write_report
from jumpahead.report.series_style import sort_series
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.save import to_toml
from jumpahead.study.schema import SAESpec


class FrontierStage(Stage):
    """Writes frontier.json and report.html from all evaluations."""

    name = "report"

    def inputs(self) -> str:
        return self.provenance.frontier_digest([evaluation["inputs"] for evaluation in self._evaluations])

    def is_done(self) -> bool:
        return has_inputs(self.folder.frontier, self.inputs()) and self.folder.report.exists()

    def run(self) -> None:
        assert self._evaluations, "a study has at least one SAE, and evaluating comes before reporting"
        resources = self.resources
        if self.provenance.needs_lm:
            train_tokens = resources.load_contexts("train").rows
        else:
            train_tokens = resources.open_activations().total_rows
        built = frontier_json(
            resources, self._evaluations, train_tokens=train_tokens, held_out_tokens=resources.load_held_out().tokens
        )
        write_json(self.folder.frontier, {**built, "inputs": self.inputs()}, indent=None)
        write_report(self.folder.folder)

    @cached_property
    def _evaluations(self) -> list[dict[str, Any]]:
        """Return the contents of every evaluation.json of the study."""
        return read_evaluations(self.resources.specs_to_evaluate(), self.folder)


def read_evaluations(specs: Sequence[SAESpec], run: Run) -> list[dict[str, Any]]:
    """Return the contents of the evaluation.json of each SAE that has one, with the SAE's `path` in the run."""
    paths = {spec.key: run.sae_folder(spec.key).evaluation for spec in specs}
    return [{**read_json(path), "path": key} for key, path in paths.items() if path.exists()]


def frontier_json(
    resources: Resources,
    evaluations: Sequence[Mapping[str, Any]],
    *,
    train_tokens: int | None,
    held_out_tokens: int | None,
    progress: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the content of frontier.json of a run. progress: counts of SAEs, if the run is not finished."""
    study, provenance = resources.study, resources.provenance
    if provenance.needs_lm:
        dtype = provenance.lm_config().dtype if provenance.is_precision_known() else study.lm.dtype
        lm, source = {"name": study.lm.model, "dtype": dtype}, study.text.source
    else:
        lm, source = {"name": None}, f"{study.activations.origin} activations"
    return frontier.build_frontier(
        evaluations, name=study.name, study_text=to_toml(study), manifest=resources.run.read_manifest(),
        series=sort_series(series_legend(series.name, series.architecture) for series in study.series),
        lm=lm, text={"source": source, "train_tokens": train_tokens, "held_out_tokens": held_out_tokens},
        training=training_records(resources.specs_to_evaluate(), resources.run, study.train.steps), progress=progress,
        targets=read_targets(resources),
    )  # fmt: skip


def read_targets(resources: Resources) -> list[dict[str, Any]]:
    """Return the SAEs found for requested losses; empty if none is requested, or before the search."""
    if not any(series.delta_loss for series in resources.study.series):
        return []
    digest = resources.provenance.targets_digest(resources.specs)
    return read_json(resources.run.targets)["targets"] if has_inputs(resources.run.targets, digest) else []


def series_legend(name: str, architecture: str) -> dict[str, Any]:
    """Return a series' entry in frontier.json: its name, its title and its architecture.

    `whole`: whether its settings are whole numbers, because the architecture keeps whole features.
    """
    kind = ARCHITECTURES.get(architecture)
    title = kind.title if name == kind.name else name
    return {"name": name, "title": title, "architecture": kind.name, "whole": "k" in kind.settings}
