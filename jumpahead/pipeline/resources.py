"""Resources shared by the stages of a run: the LM, the text, tokens and activations, each loaded on first use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, final

from jumpahead.activations.base import Activations
from jumpahead.activations.moments import Moments, measure_moments
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError, JumpaheadError
from jumpahead.evaluation.held_out import HeldOut, HeldOutRows
from jumpahead.formatting import ROWS, TOKENS, SampleUnit
from jumpahead.lm import checks, isolation
from jumpahead.lm.fingerprint import model_checks_digest
from jumpahead.lm.loss_notes import loss_notes
from jumpahead.lm.model import LM
from jumpahead.pipeline.provenance import Provenance
from jumpahead.progress import Progress
from jumpahead.sae.recipe import Recipe, Setting
from jumpahead.sae.unit import Unit
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.folders import remove_path
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import SAESpec, Study, sae_specs
from jumpahead.text.contexts import Contexts, Split
from jumpahead.text.source import Source
from jumpahead.text.sources import source_of
from jumpahead.training.devices import set_threads, training_device

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

SAMPLE_ROWS = 8192
"""Maximum number of activations used to initialise an SAE."""


@final
class Resources:
    """A study, its run's folder, and the resources shared by its stages, each loaded on first use."""

    def __init__(self, study: Study, run: Run, progress: Progress) -> None:
        self.study, self.run, self.progress = study, run, progress
        self.specs = sae_specs(study)
        """The specs of all SAEs that the study lists; `specs_to_evaluate` has those found for a `delta_loss` too."""
        self.provenance = Provenance(study, run, self.open_text)
        self._loaded: dict[str, Any] = {}

    def _load_once(self, key: str, load: Callable[[], T]) -> T:
        """Return the resource stored under `key`; the first call loads it with `load`."""
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    def specs_to_evaluate(self) -> list[SAESpec]:
        """Return the specs of all SAEs of the run: those of the study, and those found for a requested loss."""
        if not any(series.delta_loss for series in self.study.series):
            return self.specs
        if not has_inputs(self.run.targets, self.provenance.targets_digest(self.specs)):
            return self.specs
        series, known = {one.name: one for one in self.study.series}, {spec.key for spec in self.specs}
        found = [
            SAESpec(one["site"], one["width"], series[one["series"]], Setting("l0", one["l0"]), one["sae_seed"],
                    one["stream_seed"])
            for one in read_json(self.run.targets)["saes"]
        ]  # fmt: skip
        return [*self.specs, *(spec for spec in found if spec.key not in known)]

    # ------------------------------------------------------------------------------------------ text and LM

    def open_text(self) -> Source:
        """Return the text source. Text that can be read only once, such as stdin, is copied into the run's folder."""

        def load() -> Source:
            source = source_of(self.study.text, self.run.folder)
            source.prepare(self.progress)
            return source

        return self._load_once("text", load)

    def load_lm(self) -> LM:
        """Return the LM, truncated after the last site and in the dtype for reading activations.

        The first load in a run checks the LM.
        """
        return self._load_once("lm", self._load_checked_lm)

    def _load_checked_lm(self) -> LM:
        """Load the LM truncated after the last site; check it unless the run's checks file records these inputs."""
        set_threads(self.study.train.threads)
        config, sites = self.provenance.lm_config(), self.study.activations.sites
        inputs = model_checks_digest(config, sites)
        if has_inputs(self.run.checks, inputs):
            return self._require_isolation(LM.load(config, truncate_after=sites), sites)
        lm = LM.load(config)
        notes: list[str] = []
        passed = checks.check_and_truncate(lm, sites, lambda: notes.extend(loss_notes(lm, self.open_text(), sites)))
        record = {"inputs": inputs, "class": type(lm.model).__name__, "checked": passed, "notes": notes}
        write_json(self.run.checks, record)
        for note in notes:
            self.progress.say(f"Note: {note}")
        self.progress.say(f"LM: {lm.name} ({type(lm.model).__name__}), {len(passed)} checks passed")
        return self._require_isolation(lm, sites)

    def load_whole_lm(self) -> LM:
        """Return the complete LM for delta LM loss, in the study's dtype, or in float32 if `lm.dtype = "fast"`."""

        def load() -> LM:
            set_threads(self.study.train.threads)
            return self._require_isolation(LM.load(self.study.lm), ())

        return self._load_once("whole LM", load)

    def _require_isolation(self, lm: LM, sites: Sequence[str]) -> LM:
        """Return the LM. Raises StudyError if packing is `isolated` and the LM's attention crosses documents."""
        if self.study.lm.packing == "isolated":
            isolation.check_isolation(lm, sites)
        return lm

    def reason_without_loss(self) -> str:
        """Return why delta LM loss cannot be measured: only activations are on disk, no LM; "" if it can be."""

        def load() -> str:
            if ORIGINS.get(self.study.activations.origin).on_disk and self.provenance.stored:
                try:
                    self.load_whole_lm()
                except JumpaheadError as exc:
                    return str(exc)
            return ""

        return self._load_once("why no loss", load)

    # ------------------------------------------------------------------------------------------ tokens and activations

    def load_contexts(self, split: Split) -> Contexts:
        """Return the contexts of a split.

        Raises ArtefactError if the files are damaged; the next run then tokenises again.
        """

        def load() -> Contexts:
            folder = self.run.tokens / split
            try:
                return Contexts.load(folder)
            except ArtefactError:
                remove_path(folder / "source.json")
                raise

        return self._load_once(f"contexts, {split}", load)

    def open_activations(self) -> Activations:
        """Return the training activations: read from disk or from external files, or computed live with the LM."""

        def load() -> Activations:
            kind, lm, contexts = ORIGINS.get(self.study.activations.origin), None, None
            if kind.needs_lm and not kind.on_disk:
                lm, contexts = self.load_lm(), self.load_contexts("train")
            return kind.open(self.study.activations, lm=lm, contexts=contexts, folder=self.run.activations)

        return self._load_once("activations", load)

    def load_moments(self) -> dict[str, Moments]:
        """Return the mean and the size of the activations of every site, with the norm limits of all SAEs."""

        def load() -> dict[str, Moments]:
            data = self.open_activations()
            limits = {self.provenance.recipe(spec, data.widths[spec.site]).norm_limit: None for spec in self.specs}
            return measure_moments(data, self.study.activations.scale_rows, limits)

        return self._load_once("moments", load)

    def load_unit(self, site: str, recipe: Recipe) -> Unit:
        """Return the unit of training of an SAE, on the training device; SAEs with equal units share the object."""
        key = f"unit, {site}, {recipe.unit}, {recipe.norm_limit}"
        return self._load_once(
            key,
            lambda: (
                self.load_moments()[site].unit(recipe.unit, recipe.norm_limit).to(training_device(self.study.train))
            ),
        )

    def load_sample(self) -> dict[str, Tensor]:
        """Return the first activations of every site, float32 [n, d] with n ≤ SAMPLE_ROWS, in the LM's unit."""

        def load() -> dict[str, Tensor]:
            import torch

            parts, count = defaultdict(list), 0
            for group, rows in enumerate(self.open_activations().rows_per_group):
                for site, x in self.open_activations().rows(group).items():
                    parts[site].append(x.float())
                count += int(rows)
                if count >= SAMPLE_ROWS:
                    break
            return {site: torch.cat(rows)[:SAMPLE_ROWS] for site, rows in parts.items()}

        return self._load_once("sample", load)

    # ------------------------------------------------------------------------------------------ held-out data

    def load_held_out_text(self) -> HeldOut:
        """Return the held-out text that SAEs are evaluated on."""
        return self._load_once(
            "held-out text", lambda: HeldOut.first_groups(self.load_contexts("held_out"), self.study.evaluate.tokens)
        )

    def load_held_out(self) -> HeldOut | HeldOutRows:
        """Return the held-out data that SAEs are evaluated on: text, or activations if there is no LM.

        Raises ArtefactError if the LM is missing and the disk has fewer held-out activations than `evaluate.tokens`.
        """
        if self.provenance.needs_lm and not self.reason_without_loss():
            return self.load_held_out_text()
        return self._load_once("held-out rows", self._load_held_out_rows)

    def _load_held_out_rows(self) -> HeldOutRows:
        """Return the held-out activations that SAEs are evaluated on if there is no LM."""
        held_out = self.open_activations().held_out
        assert held_out is not None, f"{type(self.open_activations()).__name__} holds nothing out"
        if not self.provenance.needs_lm:
            return HeldOutRows.first_groups(held_out, self.study.evaluate.tokens)
        if len(held_out.rows_per_group) < self.load_held_out_text().groups:
            raise ArtefactError(
                f"{self.run.activations} holds fewer held-out activations than evaluate.tokens = "
                f"{self.study.evaluate.tokens:,} asks for, and the LM is gone: give back the LM, or fewer tokens."
            )
        return HeldOutRows.with_documents_of(held_out, self.load_held_out_text())

    # ------------------------------------------------------------------------------------------ names for people

    @property
    def sample_unit(self) -> SampleUnit:
        """Return the name of an activation in sentences: a token, or a row if activations come without an LM."""
        return TOKENS if self.provenance.needs_lm else ROWS

    def label(self, spec: SAESpec) -> str:
        """Return an SAE's label; it includes the site or the width if the study has several sites or widths."""
        sites, widths = self.study.activations.sites, self.study.sae.width
        several = [(sites, spec.site), (widths, f"width {spec.width:,}")]
        return ", ".join([spec.label, *(part for values, part in several if len(values) > 1)])
