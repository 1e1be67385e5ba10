"""The stage that evaluates SAEs on held-out data; the SAEs of a site are evaluated together."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch

from jumpahead import diagnostics
from jumpahead.diagnostics import final_diagnostics
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.outliers import OutlierRule
from jumpahead.evaluation.reconstruct import reconstruct
from jumpahead.evaluation.saved_sums import SavedSums
from jumpahead.evaluation.sums import EvaluationSums, evaluation_json
from jumpahead.pipeline.stage import Stage
from jumpahead.resampling import replicate_weights
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import read_json_lines, write_json
from jumpahead.storage.set_aside import bring_evaluation
from jumpahead.study.schema import SAESpec
from jumpahead.training.devices import training_device
from jumpahead.training.interrupts import catch_interrupts


class EvaluationStage(Stage):
    """Evaluates all SAEs and writes the evaluation.json of each."""

    name = "evaluate"

    def inputs(self) -> str:
        return digest_json([self.sae_inputs(spec) for spec in self.resources.specs_to_evaluate()])

    def sae_inputs(self, spec: SAESpec) -> str:
        """Return the digest of all inputs of one SAE's evaluation."""
        return self.provenance.evaluation_digest(spec, with_lm=not self.resources.reason_without_loss())

    def pending(self) -> list[SAESpec]:
        """Return the specs of the SAEs that are not evaluated yet."""
        specs = self.resources.specs_to_evaluate()
        return [spec for spec in specs if not self.folder.sae_folder(spec.key).is_evaluated(self.sae_inputs(spec))]

    def is_done(self) -> bool:
        return not self.pending()

    def run(self) -> None:
        for spec in self.pending():
            bring_evaluation(self.folder, spec.key, self.sae_inputs(spec))
        by_site: dict[str, list[SAESpec]] = defaultdict(list)
        for spec in self.pending():
            by_site[spec.site].append(spec)
        if why := self.resources.reason_without_loss():
            self.progress.say(f"Delta LM loss cannot be measured, all that needs no LM is: {why}")
        for site, specs in by_site.items():
            self._evaluate_site(site, specs)

    def _evaluate_site(self, site: str, specs: list[SAESpec]) -> None:
        """Evaluate all given SAEs, which are at one site, and write their evaluation.json."""
        saes = {spec.key: SAE.load(self.folder.sae_folder(spec.key).path) for spec in specs}
        inputs = {spec.key: self.sae_inputs(spec) for spec in specs}
        with catch_interrupts() as is_interrupted:
            minutes = self.study.train.checkpoint_minutes
            saved = SavedSums(self.folder.evaluation_state, inputs, is_interrupted, minutes)
            measured, held_out = self._measure(saes, site, saved), self.resources.load_held_out()
        weights = replicate_weights(held_out.clusters, self.study.evaluate.replicates)
        for spec in specs:
            sae, lines = saes[spec.key], read_json_lines(self.folder.sae_folder(spec.key).log)
            setting = spec.setting._asdict()
            requested, unit = diagnostics.requested_l0(setting), self.resources.sample_unit
            converged = diagnostics.l0_convergence(lines, requested)
            warnings = diagnostics.training_warnings(lines, setting, spec.width, unit)
            evaluation = evaluation_json(measured[spec.key], held_out, weights, [*warnings, *self._notes(sae)])
            l0, error = evaluation["metrics"]["l0"], evaluation["standard_errors"].get("l0", math.inf)
            if missed := diagnostics.held_out_l0_warning(requested, l0, error, unit):
                evaluation["notes"].insert(len(warnings), missed)
            write_json(
                self.folder.sae_folder(spec.key).evaluation,
                {"inputs": self.sae_inputs(spec), "sae": sae_identity(spec, sae), **evaluation,
                 "training": {**sae.about["training"], "steps": sae.about["steps"], "seconds": sae.about["seconds"]},
                 "sparsity_coefficient": sae.about["sparsity_coefficient"],
                 "health": final_diagnostics(lines),
                 "converged_after": converged and converged._asdict(), "training_warnings": warnings},
            )  # fmt: skip
        saved.remove()

    def _measure(self, saes: dict[str, SAE], site: str, saved: SavedSums) -> dict[str, EvaluationSums]:
        """Return the sums that metrics are computed from, by SAE; delta LM loss is left out if there is no LM.

        saved: the sums of an earlier evaluation that was stopped, if it had the same inputs.
        """
        held_out, device = self.resources.load_held_out(), training_device(self.study.train)
        about = next(iter(saes.values())).about
        outliers = OutlierRule.of(about)
        if not isinstance(held_out, HeldOut):
            unit = self.resources.sample_unit.plural
            return reconstruct(
                saes, held_out, site, self.progress, unit=unit, device=device, outliers=outliers, saved=saved
            )
        lm, mean = self.resources.load_whole_lm(), torch.tensor(about["mean"])
        return evaluate(saes, lm, held_out, site, mean, self.progress, device=device, outliers=outliers, saved=saved)

    def _notes(self, sae: SAE) -> list[str]:
        """Return sentences to show with the SAE: repeated training data, and why delta LM loss is missing."""
        epochs, notes = sae.about["training"]["epochs"], []
        if epochs > 1:
            data = "text" if self.provenance.needs_lm else "activations"
            notes.append(f"Trained on repeated {data}: {epochs:.1f} epochs.")
        if why := self.resources.reason_without_loss():
            notes.append(f"Delta LM loss was not measured: {why}")
        return notes


def sae_identity(spec: SAESpec, sae: SAE) -> dict[str, Any]:
    """Return the fields of evaluation.json that identify the SAE: site, dimensions, series, setting and seeds."""
    return {
        "site": spec.site, "width": spec.width, "d": sae.d, "series": spec.series.name,
        "architecture": spec.series.architecture, "setting": spec.setting._asdict(),
        "sae_seed": spec.sae_seed, "stream_seed": spec.stream_seed,
    }  # fmt: skip
