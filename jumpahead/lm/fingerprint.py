"""Digests of a study's model and text, computed without loading either: a run compares them to see what changed.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumpahead.errors import DataError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_files import local_model_dir, model_dir_digest
from jumpahead.storage.digests import digest_file, digest_json
from jumpahead.text.config import TextConfig
from jumpahead.text.source import Source

TOKENIZATION_VERSION = 2
"""Raise it when the same text would give other tokens, contexts or files of them."""
_TOKENIZER_FILES = ("config.json", "generation_config.json", "*token*.json", "vocab*", "merges.txt", "*.model", "*.py")


def model_digest(config: LMConfig) -> str:
    """Return a digest of the model's files, or for a name on the hub `name@revision`."""
    folder = local_model_dir(config.model)
    return model_dir_digest(folder, config.trust_remote_code) if folder else f"{config.model}@{config.revision}"


def config_values(config: LMConfig | TextConfig) -> dict[str, Any]:
    """Return a table of the study as plain JSON values, which equal themselves after being written and read."""
    return config.model_dump(mode="json")


def dtype_choice_digest(config: LMConfig) -> str:
    """Return the digest of what a choice for `lm.dtype = "fast"` depends on: the model and the table `lm`."""
    return digest_json([model_digest(config), config_values(config)])


def model_checks_digest(config: LMConfig, sites: Sequence[str]) -> str:
    """Return the digest of what the checks of a model depend on: the model, the table `lm` and the sites."""
    return digest_json([dtype_choice_digest(config), list(sites)])


def chat_template_digests(config: LMConfig) -> dict[str, str]:
    """Return the digests of the chat templates that are files, by relative path.

    A template inside tokenizer_config.json is part of `model_digest`.
    """
    folder = local_model_dir(config.model)
    files = sorted(folder.rglob("*.jinja")) if folder else []
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in files if folder}


def text_digest(source: Source) -> str:
    """Return the digest of a source's fingerprint: mostly of names, sizes and times of files.

    Raises DataError if the source cannot be used.
    """
    if problem := source.problem():
        raise DataError(f"text.source = '{source.config.source}', {problem}.")
    return digest_json(source.fingerprint())


def tokens_digest(lm: LMConfig, source: Source) -> str:
    """Return the digest of everything that a study's tokens and contexts depend on.

    The model's weights, its dtype and the sites are not among it.
    """
    folder = local_model_dir(lm.model)
    model: Any = [lm.model, lm.revision]
    if folder is not None:
        files = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
        model = {file.name: digest_file(file) for file in sorted(files)}
    cut = lm.model_dump(include={"context", "batch", "bos", "packing", "trust_remote_code"})
    templates = chat_template_digests(lm) if source.config.chat else None
    return digest_json([TOKENIZATION_VERSION, model, cut, text_digest(source), config_values(source.config), templates])
