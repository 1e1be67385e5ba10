"""The stage that writes feature pages of some SAEs, from held-out text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median_high
from typing import Any

from jumpahead.evaluation.held_out import HeldOut
from jumpahead.features.build import FeaturesConfig, SAEPoint, build_features
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.stage import Stage
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.json_files import read_json
from jumpahead.storage.layout import features_name
from jumpahead.study.schema import SAESpec
from jumpahead.training.devices import training_device


class FeaturesStage(Stage):
    """Writes the folder features/ for the SAEs that `features.saes` names."""

    name = "features"

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.pages = self.folder.features
        """The folder that is written."""
        self.with_neuronpedia = False
        """Whether batches of features are also written under Neuronpedia's names."""

    def inputs(self) -> str:
        metrics = self._metrics()
        chosen = [spec.key for spec in self._choose(metrics)]
        digest = self.provenance.evaluation_digest
        specs = self.resources.specs_to_evaluate()
        evaluations = [digest(spec, with_lm=True) if spec.key in metrics else None for spec in specs]
        return self.provenance.features_digest(chosen, evaluations)

    def is_done(self) -> bool:
        return bool(self.reason_without_pages()) or has_inputs(self.pages.contents, self.inputs())

    def run(self) -> None:
        study, table, metrics = self.study, self.study.features, self._metrics()
        chosen = self._choose(metrics)
        sites = {spec.site for spec in chosen}
        specs = self.resources.specs_to_evaluate()
        points = [self._point(spec, metrics[spec.key]) for spec in specs if spec.site in sites and spec.key in metrics]
        text = HeldOut.first_groups(self.resources.load_contexts("held_out"), table.tokens)
        build_features(
            self.pages, points, [features_name(spec.key) for spec in chosen],
            self.resources.load_whole_lm(), text,
            FeaturesConfig(table.bias_features, table.bias_tokens, self.with_neuronpedia),
            self.progress, name=study.name, source=study.text.source, inputs=self.inputs(),
            device=training_device(study.train),
        )  # fmt: skip

    def reason_without_pages(self) -> str:
        """Return why the study has no feature pages; "" if it has."""
        if not self.provenance.needs_lm:
            return "its activations come without text"
        if "none" in self.study.features.saes:
            return "features.saes is none"
        if not self._choose(self._metrics()):
            return "no SAE that features.saes names is evaluated"
        return self.resources.reason_without_loss()

    def _choose(self, metrics: Mapping[str, Mapping[str, Any]]) -> list[SAESpec]:
        """Return the specs of the SAEs that `features.saes` names, in the order of the study.

        metrics: of the evaluated SAEs, by key.
        """
        l0 = {key: value for key, each in metrics.items() if (value := each.get("l0"))}
        measured = [spec for spec in self.resources.specs_to_evaluate() if spec.key in l0]
        found: set[str] = set()
        for wanted in self.study.features.saes:
            if wanted == "middle":
                found |= middle_saes(measured, l0)
            else:
                found |= {spec.key for spec in measured if wanted == "all" or spec.is_called(wanted)}
        return [spec for spec in measured if spec.key in found]

    def _point(self, spec: SAESpec, metrics: Mapping[str, Any]) -> SAEPoint:
        """Return an SAE with the facts that the pages show of it."""
        path = self.folder.sae_folder(spec.key).path
        about = {
            "series": spec.series.name, "l0": metrics.get("l0"), "delta_lm_loss": metrics.get("delta_lm_loss"),
            "path": spec.key,
        }  # fmt: skip
        return SAEPoint(features_name(spec.key), self.resources.label(spec), spec.site, lambda: SAE.load(path), about)

    def _metrics(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of every evaluated SAE by key; reads all evaluations."""
        paths = {spec.key: self.folder.sae_folder(spec.key).evaluation for spec in self.resources.specs_to_evaluate()}
        return {key: read_json(path)["metrics"] for key, path in paths.items() if path.exists()}


def middle_saes(specs: Sequence[SAESpec], l0: Mapping[str, float]) -> set[str]:
    """Return, for each series at each site and width, the key of the SAE whose L0 is nearest to the middle.

    l0: by key. The middle is the upper median of all L0 at that site and width; distances are ratios. Of equally near
    SAEs the first is taken.
    """
    panels: dict[tuple[str, int], list[SAESpec]] = {}
    for spec in specs:
        panels.setdefault((spec.site, spec.width), []).append(spec)
    found: set[str] = set()
    for panel in panels.values():
        middle = median_high(math.log(l0[spec.key]) for spec in panel)
        nearest: dict[str, tuple[float, str]] = {}
        for spec in panel:
            distance = round(abs(math.log(l0[spec.key]) - middle), 9)
            if spec.series.name not in nearest or distance < nearest[spec.series.name][0]:
                nearest[spec.series.name] = (distance, spec.key)
        found |= {key for _, key in nearest.values()}
    return found
