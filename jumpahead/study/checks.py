"""Rules that involve several keys of a study, the registries, or files on this machine. Each raises one sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpahead.activations.config import canonical_site
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError, SiteError, StudyError, did_you_mean
from jumpahead.lm.model_shape import read_model_shape
from jumpahead.lm.sites import parse_site
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.layout import require_safe_name
from jumpahead.study.messages import toml_like
from jumpahead.study.schema import Series, Study, sae_specs
from jumpahead.text.config import TextConfig
from jumpahead.text.sources import source_of
from jumpahead.training.sink import check_sinks

_DEVICES = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"


def check_study(study: Study) -> None:
    """Raise StudyError for the first rule that the study breaks; no file is looked at."""
    _check_names(study)
    _check_numbers(study)
    _check_text(study.text)
    if not re.fullmatch(_DEVICES, study.lm.device):
        raise StudyError(f"'lm.device' must be auto, cpu, cuda, cuda:N or mps, not {toml_like(study.lm.device)}.")
    _check_features(study)
    for series in study.series:
        _check_series(series, min(study.sae.width))
        if series.delta_loss and not ORIGINS.get(study.activations.origin).needs_lm:
            raise StudyError(
                f"'series.{series.name}.delta_loss' needs a language model: '{study.activations.origin}' activations "
                "have none."
            )


def check_unique(values: Sequence[Any], key: str) -> None:
    """Raise StudyError if a value of the list at `key` stands there twice."""
    for value, count in Counter(values).items():
        if count > 1:
            raise StudyError(f"'{key}' names {toml_like(value)} twice.")


def _check_names(study: Study) -> None:
    """Raise StudyError for a name that cannot be a folder's, two series of one name, or an unknown origin."""
    for key, name in [("name", study.name), *((f"series.{series.name}.name", series.name) for series in study.series)]:
        try:
            require_safe_name(name)
        except ArtefactError as exc:
            raise StudyError(f"'{key}': {exc}") from exc
    names = [series.name for series in study.series]
    for name, count in Counter(names).items():
        if count > 1:
            raise StudyError(f"two series are called '{name}': give each a name = \"…\" of its own.")
    if study.activations.origin not in ORIGINS.names():
        raise StudyError(
            f"'activations.origin' is '{study.activations.origin}', and there is no such origin."
            f"{did_you_mean(study.activations.origin, ORIGINS.names())}"
        )


def check_sites(raw: Mapping[str, Any]) -> None:
    """Raise StudyError for a site that cannot exist, or one that is given under two names. raw: the study's tables."""
    activations = raw.get("activations")
    if not isinstance(activations, Mapping):
        return
    try:
        sites = [site for site in activations.get("sites", ()) if isinstance(site, str)]
        keys = [canonical_site(site, str(activations.get("origin", "live"))) for site in sites]
    except (SiteError, ArtefactError) as exc:
        raise StudyError(f"'activations.sites': {exc}") from exc
    check_unique(keys, "activations.sites")


def _check_numbers(study: Study) -> None:
    """Raise StudyError for a width or seed that is given twice, or for less than one batch of tokens."""
    check_unique(study.sae.width, "sae.width")
    check_unique(study.sae.seed, "sae.seed")
    check_unique(study.stream.seed, "stream.seed")
    check_unique(study.train.log_to, "train.log_to")
    check_sinks(study.train.log_to)
    if study.train.tokens < study.train.batch:
        raise StudyError(
            f"'train.tokens' is {study.train.tokens:,} and must be at least one batch,"
            f" {study.train.batch:,} (train.batch)."
        )


def _check_text(text: TextConfig) -> None:
    """Raise StudyError for keys of `[text]` that exclude each other."""
    check_unique(text.chat or (), "text.chat")
    if text.chat and text.separator is not None:
        raise StudyError("'text.separator' cuts text, and with 'text.chat' documents are conversations: leave one out.")


def _check_features(study: Study) -> None:
    """Raise StudyError if `features.saes` names an SAE that the study does not train, or `none` beside others."""
    names = study.features.saes
    if "none" in names and len(names) > 1:
        raise StudyError("'features.saes' has none and other names: leave one out.")
    for name in names:
        if name not in ("middle", "all", "none") and not any(spec.is_called(name) for spec in sae_specs(study)):
            example = sae_specs(study)[0].key.split("/", 3)[-1]
            raise StudyError(
                f"'features.saes' names {name!r}, which the study does not train: write {example!r}, or middle."
            )


def _check_series(series: Series, width: int) -> None:
    """Raise StudyError for an unknown architecture, a setting that it does not accept, or values above `width`."""
    if series.architecture not in ARCHITECTURES.names():
        raise StudyError(
            f"series '{series.name}' asks for the architecture '{series.architecture}', which does not exist."
            f"{did_you_mean(series.architecture, ARCHITECTURES.names())}"
        )
    architecture, given = ARCHITECTURES.get(series.architecture), series.settings_by_kind
    accepted = architecture.settings
    if not given:
        keys = " = […] or ".join(accepted)
        raise StudyError(f"series '{series.name}' has no sparsity setting: give it {keys} = […].")
    for kind in given:
        if kind not in accepted:
            raise StudyError(
                f"series '{series.name}' has no setting '{kind}': {series.architecture} takes {' or '.join(accepted)}."
            )
    check_unique(series.delta_loss, f"series.{series.name}.delta_loss")
    if not all(0 < loss < float("inf") for loss in series.delta_loss):
        raise StudyError(
            f"'series.{series.name}.delta_loss' must be positive, not {toml_like(min(series.delta_loss))}."
        )
    if len(given) > 1:
        raise StudyError(f"series '{series.name}' has {' and '.join(given)}: give it exactly one of them.")
    for kind, values in given.items():
        key = f"series.{series.name}.{kind}"
        check_unique(values, key)
        if not all(0 < value < float("inf") for value in values):
            raise StudyError(f"'{key}' must be positive, not {toml_like(min(values))}.")
        fractions = [value for value in values if value != int(value)]
        if kind == "l0" and architecture.requires_integer_l0 and fractions:
            raise StudyError(
                f"'{key}' must be whole numbers, not {fractions[0]:g}: {series.architecture} keeps whole features."
            )
        if kind != "lambda" and max(values) > width:
            raise StudyError(f"'{key}' is {max(values):g} and cannot exceed the width, {width:,} (sae.width).")


def check_files(study: Study, where: str) -> None:
    """Raise StudyError if the text or the model does not exist here, SiteError if the model has no such block.

    A model that is not a path is a name on the hub and is not looked for. Nothing is looked for without a language
    model, or if activations may be on disk already: the run checks those. where: begins the sentence.
    """
    origin = ORIGINS.get(study.activations.origin)
    if not origin.needs_lm or origin.on_disk:
        return
    if problem := source_of(study.text).problem():
        raise StudyError(f"{where}: 'text.source' names {study.text.source}, {problem}.")
    model = Path(study.lm.model).expanduser()
    looks_like_a_path = study.lm.model.startswith((".", "/", "~")) or study.lm.model.count("/") > 1
    if model.is_dir() and not (model / "config.json").is_file():
        raise StudyError(f"{where}: 'lm.model' names {study.lm.model}, a folder without a config.json: not a model.")
    if looks_like_a_path and not model.exists():
        raise StudyError(
            f"{where}: 'lm.model' names {study.lm.model}, which does not exist (seen from the current folder)."
        )
    _check_blocks(study, where)


def _check_blocks(study: Study, where: str) -> None:
    """Raise SiteError if the model lacks a site's block, provided that its config.json is on this machine."""
    try:
        shape = read_model_shape(study.lm)
    except StudyError:  # a config that only the model's own code understands: loading the model will tell
        shape = None
    if shape is None:
        return
    for site in study.activations.sites:
        try:
            shape.width_at(parse_site(site))
        except SiteError as exc:
            raise SiteError(f"{where}: 'activations.sites': {exc}") from exc
