"""Input digests of all results: a finished result is reused if its recorded digest equals the study's.

    tokens       ← text, tokenizer files, context length, packing           (not the model's weights)
    source       ← model files, dtype, text                                 where activations come from
    activations  ← source, sites, dtype
    SAE          ← source, activations, series, setting, seeds, recipe, warm start, TRAINING_VERSION
    targets      ← the study's SAEs, `delta_loss` of the series, `evaluate.tokens`
    evaluation   ← SAE, the `[evaluate]` table, EVALUATION_VERSION
    features     ← evaluations, the SAEs that get pages, the `[features]` table, FEATURES_VERSION
    frontier     ← evaluations, the study, FRONTIER_VERSION

A run whose tokens are on disk can continue without the model or the text on this machine: the digests in
tokens/provenance.json are then used (`Provenance.stored`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, final

from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import DataError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import (
    TOKENIZATION_VERSION,
    chat_template_digests,
    dtype_choice_digest,
    model_digest,
    text_digest,
    to_json_values,
    tokens_digest,
)
from jumpahead.lm.model_files import local_model_dir
from jumpahead.pipeline.warm_start import WarmStarts
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Recipe, Shape
from jumpahead.storage.digests import digest_json, has_inputs
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.save import to_toml
from jumpahead.study.schema import SAESpec, Study
from jumpahead.text.source import Source
from jumpahead.versions import EVALUATION_VERSION, FEATURES_VERSION, FRONTIER_VERSION, TRAINING_VERSION

REFERENCE_D = 256
"""The d for which recipes in digests are computed: an SAE's d is determined by its site, which is in the digest."""


@final
class Provenance:
    """The input digests of one study in one run's folder. Loads neither the LM nor activations.

    open_text: returns the study's text source; called only if activations come from an LM.
    """

    def __init__(self, study: Study, run: Run, open_text: Callable[[], Source]) -> None:
        self.study, self.run = study, run
        self.warm_starts = WarmStarts(study, run)
        self._open_text = open_text

    @property
    def needs_lm(self) -> bool:
        """Return True if activations are computed with an LM."""
        return ORIGINS.get(self.study.activations.origin).needs_lm

    # ------------------------------------------------------------------------------------------ the LM and its text

    @cached_property
    def model_digest(self) -> str:
        """Return the digest of the LM's files. Raises StudyError if the model's folder does not exist."""
        return model_digest(self.study.lm)

    @cached_property
    def text_digest(self) -> str:
        """Return the digest of the text source. Raises DataError if the text is missing."""
        return text_digest(self._open_text())

    @cached_property
    def template_digests(self) -> dict[str, str] | None:
        """Return the digests of the chat template's files by name; None if the text has no conversations."""
        return chat_template_digests(self.study.lm) if self.study.text.chat else None

    @cached_property
    def stored(self) -> dict[str, Any] | None:
        """Return the contents of tokens/provenance.json if the model or the text is missing on this machine, else None.

        Raises StudyError or DataError if one of them is missing and the tokens on disk belong to a different study.
        """
        path = self.run.tokens_provenance
        known = read_json(path) if path.exists() else {}
        is_same = [known.get("lm"), known.get("text")] == self._settings()
        try:
            is_folder = local_model_dir(self.study.lm.model) is not None
            files = [self.model_digest, self.template_digests] if is_folder else []
            is_same = is_same and (not is_folder or files == [known["model"], known.get("template")])
            _ = self.text_digest
        except (StudyError, DataError):
            if is_same:
                return known
            raise
        return known if is_same and known["is_folder"] and not is_folder else None

    def _settings(self) -> list[dict[str, Any]]:
        """Return the options of the LM and of the text that digests depend on."""
        return [to_json_values(self.study.lm), to_json_values(self.study.text)]

    def _tokens_provenance(self) -> dict[str, Any]:
        """Return the contents of tokens/provenance.json for this study."""
        lm, text = self._settings()
        is_folder = local_model_dir(self.study.lm.model) is not None
        known: dict[str, Any] = {"lm": lm, "text": text, "model": self.model_digest, "dtype": self.lm_config().dtype,
                 "is_folder": is_folder, "source": self.source_digest, "tokens": self.tokens_digest,
                 **({"template": self.template_digests} if self.template_digests is not None else {})}  # fmt: skip
        return known

    def is_stored(self) -> bool:
        """Return True if tokens/provenance.json exists and belongs to this study."""
        path = self.run.tokens_provenance
        return bool(self.stored) or (path.exists() and read_json(path) == self._tokens_provenance())

    def store(self) -> None:
        """Write tokens/provenance.json: the inputs of the tokens on disk, for use when model or text are missing."""
        if not self.is_stored():
            write_json(self.run.tokens_provenance, self._tokens_provenance())

    @property
    def precision_digest(self) -> str:
        """Return the digest of the inputs of the dtype choice for `lm.dtype = "fast"`."""
        return dtype_choice_digest(self.study.lm)

    def is_precision_known(self) -> bool:
        """Return True if the LM's dtype is known: given in the study, stored, or already chosen in this run."""
        if self.study.lm.dtype != "fast" or not self.needs_lm or self.stored:
            return True
        return has_inputs(self.run.precision, self.precision_digest)

    def lm_config(self) -> LMConfig:
        """Return the LM options for reading activations: the study's, with `fast` replaced by the chosen dtype."""
        config = self.study.lm
        if config.dtype != "fast" or not self.needs_lm:
            return config
        assert self.is_precision_known(), "the precision stage comes first"
        dtype = self.stored["dtype"] if self.stored else read_json(self.run.precision)["dtype"]
        return config.model_copy(update={"dtype": dtype})

    # ------------------------------------------------------------------------------------------ digests of results

    @cached_property
    def tokens_digest(self) -> str:
        """Return the digest of all inputs of the tokens."""
        if self.stored:
            return self.stored["tokens"]
        return tokens_digest(self.study.lm, self._open_text())

    @cached_property
    def source_digest(self) -> str:
        """Return the digest of the source of activations: the LM and the text, or files of activations."""
        if not self.needs_lm:
            return ORIGINS.get(self.study.activations.origin).source_digest(
                self.study.activations, self.run.activations
            )
        if self.stored:
            return self.stored["source"]
        settings = to_json_values
        known: list[Any] = [self.model_digest, settings(self.lm_config())]
        known += [self.text_digest, settings(self.study.text)]
        known += [self.template_digests] if self.template_digests is not None else []
        return digest_json(known)

    def activations_digest(self, sites: Sequence[str]) -> str:
        """Return the digest of the inputs of the training activations on disk at these sites."""
        return digest_json([self.source_digest, sorted(sites), self.study.activations.dtype])

    def held_out_activations_digest(self, sites: Sequence[str]) -> str:
        """Return the digest of the inputs of the held-out activations on disk at these sites.

        It includes `evaluate.tokens`, the number of held-out activations that are written.
        """
        return digest_json([self.activations_digest(sites), self.study.evaluate.tokens, TOKENIZATION_VERSION])

    def sae_digest(self, spec: SAESpec) -> str:
        """Return the digest of all inputs of a trained SAE."""
        return digest_json(self.sae_inputs(spec))

    def sae_inputs(self, spec: SAESpec) -> dict[str, Any]:
        """Return all inputs of a trained SAE, as JSON values and digests."""
        study, series = self.study, spec.series
        activations = study.activations.model_dump(exclude={"sites", "origin"})
        options = activations["options"]  # origin and storage options do not change the values of activations
        activations["options"] = {} if self.needs_lm else {key: options[key] for key in options if key != "source"}
        kind = ARCHITECTURES.get(series.architecture)
        start = {"start": digest_json(self.warm_starts.digest_inputs(series))} if series.start_from else {}
        return {
            "version": TRAINING_VERSION, "source": self.source_digest, "activations": activations,
            "origin": "lm" if self.needs_lm else study.activations.origin,
            "site": spec.site, "width": spec.width, "architecture": series.architecture,
            "options": asdict(kind.Options(**series.options)), "setting": spec.setting,
            "seeds": [spec.sae_seed, spec.stream_seed],
            "tokens": study.train.tokens, "batch": study.train.batch,
            "recipe": self.recipe(spec, REFERENCE_D)._asdict(), **start,
            **({"revision": kind.revision} if kind.revision and spec.setting.kind == "l0" else {}),
        }  # fmt: skip

    def recipe(self, spec: SAESpec, d: int) -> Recipe:
        """Return all hyper-parameters for training an SAE on activations of d dimensions."""
        kind, shape = ARCHITECTURES.get(spec.series.architecture), Shape(d, spec.width, spec.setting)
        return kind.recipe_for(self.study.train, shape, spec.series.recipe)

    def targets_digest(self, specs: Sequence[SAESpec]) -> str:
        """Return the digest of the inputs of the search for requested losses. specs: the SAEs that the study lists."""
        losses = [[series.name, series.delta_loss] for series in self.study.series]
        return digest_json([[self.sae_digest(spec) for spec in specs], losses, self.study.evaluate.tokens])

    def evaluation_digest(self, spec: SAESpec, *, with_lm: bool) -> str:
        """Return the digest of all inputs of an SAE's evaluation.

        with_lm: whether the LM is available, so that delta LM loss can be measured.
        """
        known = [EVALUATION_VERSION, self.sae_digest(spec), self.study.evaluate.model_dump()]
        if not with_lm:
            known.append("measured without the LM")
        elif self.lm_config().dtype not in (self.study.lm.dtype, "float32"):
            known.append("measured in float32")
        return digest_json(known)

    def features_digest(self, chosen: Sequence[str], evaluations: Sequence[str | None]) -> str:
        """Return the digest of the inputs of the feature pages.

        chosen: the keys of the SAEs that get pages. evaluations: the input digest of every evaluation; None for an SAE
        that is not evaluated.
        """
        table = self.study.features.model_dump(exclude={"saes"})
        return digest_json([FEATURES_VERSION, list(chosen), list(evaluations), table])

    def frontier_digest(self, evaluations: Sequence[str]) -> str:
        """Return the digest of the inputs of frontier.json.

        evaluations: the input digest of every evaluation.
        """
        return digest_json([FRONTIER_VERSION, list(evaluations), to_toml(self.study)])
