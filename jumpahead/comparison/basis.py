"""The basis of a comparison, on which every SAE is evaluated: one language model, one held-out text, one mean per site.

They are those of the first run that is compared, as far as nothing else is asked for; its held-out tokens on disk are
used as they are. Without a run, the text is split as a study would split it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.on_text import measure_site, read_held_out
from jumpahead.evaluation.outliers import OutlierRule
from jumpahead.lm import isolation
from jumpahead.lm.fingerprint import model_digest, to_json_values
from jumpahead.lm.model import LM
from jumpahead.progress import Progress
from jumpahead.resampling import replicate_weights
from jumpahead.storage.digests import digest_json
from jumpahead.storage.layout import RunPaths
from jumpahead.study.evaluation import EvaluationStudy, parse_evaluation
from jumpahead.study.schema import Study
from jumpahead.text.contexts import Contexts
from jumpahead.versions import EVALUATION_VERSION


class AskedFor(NamedTuple):
    """The options of a comparison; None for those that were not given."""

    lm: str | None = None
    text: str | None = None
    site: str | None = None
    tokens: int | None = None
    overrides: Sequence[str] = ()

    @property
    def names_text(self) -> bool:
        """Return True if a text was asked for, so that SAEs trained on others may be evaluated on it."""
        return self.text is not None or any(text.startswith("text.") for text in self.overrides)


class SiteConstants(NamedTuple):
    """Mean and outlier rule of a site, which the evaluations of all SAEs there share."""

    mean: Tensor
    """float32 [d]: the activation for mean ablation, in the LM's unit."""
    outliers: OutlierRule | None
    """Which rows are outliers; None for none."""


def resolve_options(asked: AskedFor, study: Study | None, known_lm: str | None) -> EvaluationStudy:
    """Return the language model, the text and the size of the evaluation.

    study: of the first run that is compared. known_lm: the model that the SAEs say, if there is no run.

    Raises StudyError if the model is not known, or for a wrong override.
    """
    tables: dict[str, dict[str, Any]] = {"lm": {}, "text": {}, "evaluate": {}}
    if study is not None:
        tables = {name: getattr(study, name).model_dump(exclude_none=True) for name in tables}
    if asked.lm is not None or study is None:
        model = asked.lm or known_lm
        if model is None:
            raise StudyError("Name the language model with --lm: the SAEs do not say one, or say different ones.")
        tables["lm"]["model"] = model
    if asked.text is not None and asked.text != tables["text"].get("source"):
        tables["text"] = {"source": asked.text}
    if asked.tokens is not None:
        tables["evaluate"]["tokens"] = asked.tokens
    return parse_evaluation(tables, asked.overrides)


@final
class Basis:
    """The language model and the held-out text of a comparison, each loaded on first use."""

    def __init__(
        self,
        config: EvaluationStudy,
        tokens_of: RunPaths | None,
        site_facts: Mapping[str, Mapping[str, Any]],
        progress: Progress,
    ) -> None:
        """Create the basis; nothing is loaded.

        tokens_of: a run whose held-out tokens are those of this text and model; None to tokenise. site_facts: per
        site, the metadata of an SAE of a run (`SAE.about`), which has the mean and the outliers of its training text.
        """
        self.config, self.tokens_of, self.progress = config, tokens_of, progress
        self._site_facts, self._constants = site_facts, dict[str, SiteConstants]()

    @cached_property
    def lm(self) -> LM:
        """Return the complete language model."""
        lm = LM.load(self.config.lm)
        if self.config.lm.packing == "isolated":
            isolation.check_isolation(lm)
        return lm

    @cached_property
    def lm_digest(self) -> str:
        """Return the digest of the language model's files. Raises StudyError if they are not there."""
        return model_digest(self.config.lm)

    @cached_property
    def held_out(self) -> HeldOut:
        """Return the held-out text that is scored."""
        if self.tokens_of is None:
            return read_held_out(
                self.lm, self.config.text, self.config.evaluate.tokens, self.config.lm.packing, self.progress
            )
        return HeldOut.first_groups(Contexts.load(self.tokens_of.tokens / "held_out"), self.config.evaluate.tokens)

    @cached_property
    def weights(self) -> Any:
        """Return the bootstrap weights of all replicates, [R, clusters]."""
        return replicate_weights(self.held_out.clusters, self.config.evaluate.replicates)

    def width_at(self, site: str) -> int:
        """Return the width d of a site. Raises SiteError if the model has no such site."""
        about = self._site_facts.get(site)
        return self.lm.width_at(site) if about is None else about["d"]

    def constants(self, site: str) -> SiteConstants:
        """Return the mean and the outliers of a site: of the run's training text, or else of the held-out text."""
        if site not in self._constants:
            about = self._site_facts.get(site)
            if about is None:
                moments = measure_site(self.lm, self.held_out, site)
                self._constants[site] = SiteConstants(moments.mean, OutlierRule.of({"outliers": moments.outliers()}))
            else:
                self._constants[site] = SiteConstants(torch.tensor(about["mean"]), OutlierRule.of(about))
        return self._constants[site]

    def inputs(self, site: str, sae_digest: str) -> str:
        """Return the digest of all inputs of the evaluation of an SAE at a site."""
        about = self._site_facts.get(site, {})
        return digest_json([
            EVALUATION_VERSION, self.lm_digest, to_json_values(self.config.lm), self.held_out.digest,
            self.held_out.groups, self.config.evaluate.replicates, site, about.get("mean"), about.get("outliers"),
            sae_digest,
        ])  # fmt: skip

    def agrees(self, site: str, evaluation: Mapping[str, Any], about: Mapping[str, Any], study: Study) -> bool:
        """Return True if the evaluation of an SAE in its run has the numbers that this comparison would measure.

        about: of that SAE. study: of its run.
        """
        text, facts = evaluation["text"], self._site_facts.get(site, {})
        return (
            (text["digest"], text["tokens"], text["clusters"])
            == (self.held_out.digest, self.held_out.tokens, self.held_out.clusters)
            and study.evaluate.replicates == self.config.evaluate.replicates
            and study.lm == self.config.lm
            and all(about.get(key) == facts.get(key) for key in ("mean", "outliers"))
        )
