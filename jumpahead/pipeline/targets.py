"""The stage that trains SAEs with a requested delta LM loss (`delta_loss` of a series).

The SAEs of the study bracket the loss. Then, up to three times: measure delta LM loss on calibration text, which is
held-out text beyond the evaluation's; train at the L0 interpolated for every loss that no SAE has yet. The found SAEs
are evaluated like all others, on other text: their delta LM loss there is not biased by the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from jumpahead.errors import DataError, StudyError
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.formatting import format_number
from jumpahead.metrics import measure, standard_errors
from jumpahead.pipeline.stage import Stage
from jumpahead.pipeline.target_search import MAX_ROUNDS, TrainedPoint, closest, is_reached, next_l0
from jumpahead.pipeline.training import TrainingStage
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Setting
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.json_files import write_json
from jumpahead.study.schema import SAESpec, Series
from jumpahead.training.devices import training_device

LEAST_CALIBRATION = 0.25
"""Least calibration text, as a share of `evaluate.tokens`."""


class Target(NamedTuple):
    """One requested delta LM loss of one series in one panel."""

    site: str
    width: int
    series: Series
    loss: float


class TargetStage(Stage):
    """Trains SAEs with a requested delta LM loss; writes targets.json."""

    name = "targets"

    def inputs(self) -> str:
        return self.provenance.targets_digest(self.resources.specs)

    def is_done(self) -> bool:
        if not self._targets():
            return True
        found = self.resources.specs_to_evaluate()
        is_trained = [self.folder.sae_folder(spec.key).is_done(self.provenance.sae_digest(spec)) for spec in found]
        return has_inputs(self.folder.targets, self.inputs()) and all(is_trained)

    def run(self) -> None:
        if why := self.resources.reason_without_loss():
            raise StudyError(f"delta_loss cannot be searched for without the language model: {why}")
        specs, losses = list(self.resources.specs), {}
        text, training = self._calibration_text(), TrainingStage(self.resources)
        for left in range(MAX_ROUNDS, -1, -1):
            losses |= self._measure([spec for spec in specs if spec.key not in losses], text)
            new = self._next_specs(specs, losses) if left else []
            if not new:
                break
            for spec in new:
                self.progress.say(f"delta_loss: training {self.resources.label(spec)}")
            training.train(new)
            specs += new
        found = [self._result(target, specs, losses, text) for target in self._targets()]
        for one in found:
            self._report(one)
        trained = [spec for spec in specs if spec not in self.resources.specs]
        write_json(
            self.folder.targets,
            {"schema": "jumpahead.targets/1", "inputs": self.inputs(), "targets": found,
             "saes": [{"site": spec.site, "width": spec.width, "series": spec.series.name, "l0": spec.setting.value,
                       "sae_seed": spec.sae_seed, "stream_seed": spec.stream_seed} for spec in trained]},
        )  # fmt: skip
        training.record_saes()

    def _targets(self) -> list[Target]:
        """Return every requested loss of every series and panel."""
        study = self.study
        return [
            Target(site, width, series, loss)
            for site in study.activations.sites
            for width in study.sae.width
            for series in study.series
            for loss in series.delta_loss
        ]

    def _calibration_text(self) -> HeldOut:
        """Return held-out text beyond the evaluation's. Raises DataError if there is too little."""
        tokens, evaluated = self.study.evaluate.tokens, self.resources.load_held_out_text()
        text = HeldOut.groups_after(evaluated, tokens)
        if text.tokens < LEAST_CALIBRATION * tokens:
            raise DataError(
                f"delta_loss needs held-out text beyond evaluate.tokens = {tokens:,}, and there are {text.tokens:,} "
                "tokens: lower evaluate.tokens, or raise text.held_out."
            )
        return text

    def _measure(self, specs: Sequence[SAESpec], text: HeldOut) -> dict[str, tuple[float, float, float]]:
        """Return (L0, delta LM loss, its standard error) on the calibration text, by SAE."""
        found = {}
        lm, device = self.resources.load_whole_lm(), training_device(self.study.train)
        for site in dict.fromkeys(spec.site for spec in specs):
            saes = {spec.key: SAE.load(self.folder.sae_folder(spec.key).path) for spec in specs if spec.site == site}
            mean = torch.tensor(next(iter(saes.values())).about["mean"])
            for key, measured in evaluate(saes, lm, text, site, mean, self.progress, device=device).items():
                values = measure(measured.sums, keys=("l0", "delta_lm_loss"))
                error = standard_errors(measured.sums)["delta_lm_loss"]
                found[key] = values["l0"], values["delta_lm_loss"], error
        return found

    def _next_specs(self, specs: Sequence[SAESpec], losses: dict[str, tuple[float, float, float]]) -> list[SAESpec]:
        """Return the SAEs to train next: one per loss that no SAE has yet, and per seed; each once."""
        new: dict[str, SAESpec] = {}
        for target in self._targets():
            points = self._points(target, specs, losses)
            if any(is_reached(point, target.loss) for point in points.values()):
                continue
            kind = ARCHITECTURES.get(target.series.architecture)
            l0 = next_l0(list(points.values()), target.loss, target.width, is_integer=kind.requires_integer_l0)
            if l0 is not None:
                new |= {spec.key: spec for spec in self._specs_at(target, Setting("l0", l0))}
        return [spec for key, spec in new.items() if key not in {known.key for known in specs}]

    def _specs_at(self, target: Target, setting: Setting) -> list[SAESpec]:
        """Return the SAEs of a series at a setting, one per seed."""
        return [
            SAESpec(target.site, target.width, target.series, setting, sae_seed, stream_seed)
            for sae_seed in self.study.sae.seed
            for stream_seed in self.study.stream.seed
        ]

    def _points(
        self, target: Target, specs: Sequence[SAESpec], losses: dict[str, tuple[float, float, float]]
    ) -> dict[Setting, TrainedPoint]:
        """Return the trained settings of a series in a panel, with the means over their seeds."""
        groups: dict[Setting, list[tuple[float, float, float]]] = {}
        for spec in specs:
            if (spec.site, spec.width, spec.series.name) == (target.site, target.width, target.series.name):
                groups.setdefault(spec.setting, []).append(losses[spec.key])
        points = {}
        for setting, group in groups.items():
            l0, loss, error = (sum(values) / len(values) for values in zip(*group, strict=True))
            points[setting] = TrainedPoint(l0 if setting.kind == "lambda" else setting.value, loss, error)
        return points

    def _result(
        self, target: Target, specs: Sequence[SAESpec], losses: dict[str, tuple[float, float, float]], text: HeldOut
    ) -> dict[str, Any]:
        """Return the SAE that is closest to a requested loss, as JSON values."""
        points = self._points(target, specs, losses)
        setting = list(points)[closest(list(points.values()), target.loss)]
        point = points[setting]
        return {
            "site": target.site, "width": target.width, "series": target.series.name, "delta_loss": target.loss,
            "setting": setting._asdict(), "saes": [spec.key for spec in self._specs_at(target, setting)],
            "calibration": {"value": point.loss, "standard_error": point.error, "tokens": text.tokens},
            "is_reached": is_reached(point, target.loss),
        }  # fmt: skip

    def _report(self, found: dict[str, Any]) -> None:
        """Report the SAE that was found for a requested loss."""
        setting, measured = Setting(**found["setting"]), found["calibration"]
        missed = "" if found["is_reached"] else ", the closest found"
        self.progress.say(
            f"{found['series']}: delta_loss = {found['delta_loss']:g} is {setting.label}{missed} "
            f"({format_number(measured['value'])} ± {format_number(measured['standard_error'])} on calibration text)"
        )
