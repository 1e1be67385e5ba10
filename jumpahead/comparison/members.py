"""The SAEs of a comparison: those of runs, finished or not, and SAEs of any make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jumpahead import formats
from jumpahead.comparison.basis import AskedFor, Basis
from jumpahead.errors import ArtefactError, JumpaheadError, StudyError
from jumpahead.evaluation.on_text import site_of
from jumpahead.interchange.fetch import PREFIX
from jumpahead.lm.sites import parse_site
from jumpahead.pipeline.evaluation import EvaluationStage
from jumpahead.pipeline.resources import Resources
from jumpahead.progress import Progress
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import digest_file, digest_json
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import load
from jumpahead.study.schema import SAESpec, Study, sae_specs

UNKNOWN_TEXT = "It was not trained by a run that is compared: its training text is not known and may include this text."
"""Note on an SAE whose training text is not known."""


class Named(NamedTuple):
    """A run or an SAE as it was named: `PATH`, or `NAME=PATH` for the name of its series."""

    path: str
    name: str = ""

    @classmethod
    def parse(cls, argument: str | os.PathLike[str]) -> Named:
        """Parse an argument. A name has no `/`, and a path that exists is no name."""
        text = str(argument)
        name, equals, path = text.partition("=")
        if equals and name and path and "/" not in name and not Path(text).expanduser().exists():
            return cls(path, name)
        return cls(text)

    @property
    def is_run(self) -> bool:
        """Return True if it is the folder of a run or of a comparison."""
        return not self.path.startswith(PREFIX) and Run(Path(self.path).expanduser()).manifest.is_file()


class SeriesGroup(NamedTuple):
    """Name, architecture and width, which the SAEs of one series have in common."""

    name: str
    """Name of the series, which other groups may have too (naming.py)."""
    title: str
    """Name of the series for readers."""
    architecture: str
    width: int
    identity: str
    """Digest or name that SAEs of one series share; SAEs of others with the same name are another series."""


class Member(NamedTuple):
    """One SAE of a comparison."""

    address: str
    """Its folder, file or `hf://` address."""
    source: str
    """Name of its run, or of the folder that it lies in."""
    group: SeriesGroup
    site: str
    d: int
    digest: str
    """Digest of its weights and options."""
    setting: dict[str, Any] | None
    """Sparsity setting {"kind", "value"}; None if it is not known."""
    seeds: tuple[int, int] | None
    """Seeds of the initialisation and of the order of the data; None if they are not known."""
    load: Callable[[], SAE]
    """Reads its weights."""
    evaluation: dict[str, Any] | None
    """Content of its run's evaluation.json if it has one that is up to date, else None."""
    about: Mapping[str, Any]
    """Its metadata (`SAE.about`)."""
    study: Study | None
    """Study of its run; None for an SAE that was named itself."""
    notes: tuple[str, ...]
    """Sentences to show with it."""


# ---------------------------------------------------------------------------------------------- runs


class ComparedRun(NamedTuple):
    """A run whose SAEs are compared."""

    named: Named
    run: Run
    study: Study
    resources: Resources

    @classmethod
    def open(cls, named: Named, progress: Progress) -> ComparedRun:
        """Open a run. Raises ArtefactError or StudyError if it is no run of a study, or has no language model."""
        run = Run.open(Path(named.path).expanduser())
        if not run.study.is_file():
            raise ArtefactError(f"{named.path} is a comparison, not a run: name the runs and SAEs that it compares.")
        study = load(run.study)
        resources = Resources(study, run, progress)
        if not resources.provenance.needs_lm:
            raise StudyError(f"{named.path} has no language model: compare takes runs on activations of a model.")
        return cls(named, run, study, resources)

    @property
    def lm_digest(self) -> str:
        """Return the digest of its language model, as recorded if the model is not on this machine."""
        provenance = self.resources.provenance
        return provenance.stored["model"] if provenance.stored else provenance.model_digest

    @property
    def specs(self) -> list[SAESpec]:
        """Return the specs of its trained SAEs."""
        return [spec for spec in sae_specs(self.study) if self.run.sae_folder(spec.key).config.is_file()]

    def check_same(self, basis: Basis, first: str, asked: AskedFor) -> None:
        """Raise StudyError if it has another language model, or another text and none was asked for.

        first: what the basis is from, for the sentence.
        """
        if self.lm_digest != basis.lm_digest:
            raise StudyError(
                f"{self.named.path} is of another language model ({self.study.lm.model}) than {first} "
                f"({basis.config.lm.model}): compare SAEs of one model."
            )
        if self.study.text != basis.config.text and not asked.names_text:
            raise StudyError(
                f"{self.named.path} was trained on other text than {first}: name one text for all with --text."
            )

    def members(self, basis: Basis, site: str | None) -> Iterator[Member]:
        """Yield its trained SAEs, at one site if `site` is given."""
        for spec in self.specs:
            if site is None or spec.site == site:
                yield self._member(spec, basis)

    def _member(self, spec: SAESpec, basis: Basis) -> Member:
        """Return one of its SAEs."""
        folder, series = self.run.sae_folder(spec.key), spec.series
        about, kind = read_json(folder.config), ARCHITECTURES.get(series.architecture)
        title = kind.title if series.name == kind.name else series.name
        name = self.named.name
        identity = digest_json([name, series.model_dump(exclude={"l0", "lambda_", "k", "name"}), self._training()])
        group = SeriesGroup(
            f"{name}-{series.name}" if name else series.name,
            qualified(title, name) if name else title,
            kind.name, spec.width, identity,
        )  # fmt: skip
        is_other = self.study.text != basis.config.text
        note = f"Trained on {self.study.text.source}, which may include this text." if is_other else ""
        return Member(
            str(folder.path), self.run.name, group, spec.site, about["d"],
            digest_json([digest_file(folder.weights), about["architecture"], about["options"], about["setting"]]),
            spec.setting._asdict(), (spec.sae_seed, spec.stream_seed), lambda: SAE.load(folder.path),
            self._evaluation(spec), about, self.study, (note,) if note else (),
        )  # fmt: skip

    def _training(self) -> list[Any]:
        """Return the tables that SAEs of one series share, as JSON values."""
        study = self.study
        return [study.model_dump(mode="json", include={"train"}), study.text.model_dump(mode="json")]

    def _evaluation(self, spec: SAESpec) -> dict[str, Any] | None:
        """Return the content of an SAE's evaluation.json; None if there is none, or one of other inputs."""
        path = self.run.sae_folder(spec.key).evaluation
        try:
            evaluation = read_json(path)
            is_current = evaluation.get("inputs") == EvaluationStage(self.resources).sae_inputs(spec)
        except JumpaheadError:  # no evaluation, or the model or the text are gone
            return None
        return evaluation if is_current else None


# ---------------------------------------------------------------------------------------------- SAEs of any make


def sae_member(named: Named, asked: AskedFor, runs_site: str | None) -> Member:
    """Return an SAE that was named by its address.

    runs_site: the only site of the runs that are compared, for an SAE that does not say its own; None if there is none.

    Raises ArtefactError if it cannot be read, StudyError if its site is not known.
    """
    sae = formats.load(named.path)
    site = asked.site or sae.location.site or runs_site
    make = str(sae.about.get("made_by") or "jumpahead")
    library = make.partition(" ")[0] if make.startswith("SAELens") else make
    title = ARCHITECTURES.get(sae.architecture).title
    parent = _parent(named.path)
    group = SeriesGroup(
        named.name or f"{library}-{sae.architecture}".lower().replace(" ", "-"),
        named.name or qualified(title, library),
        sae.architecture, sae.width, named.name or parent,
    )  # fmt: skip
    return Member(
        named.path, parent.rpartition("/")[2], group, site_of(named.path, sae, site), sae.d, sae.digest,
        sae.setting._asdict() if sae.setting else None, None, lambda: formats.load(named.path), None, sae.about, None,
        (UNKNOWN_TEXT,),
    )  # fmt: skip


def qualified(title: str, word: str) -> str:
    """Return a series' title with a further word in parentheses: `TopK (SAELens, 2,048 features)`."""
    return f"{title[:-1]}, {word})" if title.endswith(")") else f"{title} ({word})"


def _parent(address: str) -> str:
    """Return the folder that an SAE's folder or file lies in: SAEs of one training mostly lie side by side."""
    if address.startswith(PREFIX):
        return address.rstrip("/").partition("@")[0].rpartition("/")[0]
    return Path(address).expanduser().resolve().parent.as_posix()


def known_site(site: str | None) -> str | None:
    """Return the key of a site that was asked for. Raises SiteError if there is no such site."""
    return None if site is None else parse_site(site).key
