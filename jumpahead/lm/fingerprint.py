"""Digests of a study's model and text. A run compares stored and new digests to detect changes, without loading either.

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

TOKENIZATION_VERSION = 4
"""Version number: increase it when a code change alters the tokens, contexts or token files of an unchanged text."""
CHECKS_VERSION = 2
"""Version number: increase it when the checks of a model (checks.py) change, so that a run makes them again."""
_TOKENIZER_FILES = ("config.json", "generation_config.json", "*token*.json", "vocab*", "merges.txt", "*.model", "*.py")


def model_digest(config: LMConfig) -> str:
    """Return the digest of the model's files, or `name@revision` if `lm.model` is a name on the hub."""
    folder = local_model_dir(config.model)
    return model_dir_digest(folder, config.trust_remote_code) if folder else f"{config.model}@{config.revision}"


def to_json_values(config: LMConfig | TextConfig) -> dict[str, Any]:
    """Return a configuration table of the study as JSON values; writing and reading JSON returns equal values."""
    return config.model_dump(mode="json")


def dtype_choice_digest(config: LMConfig) -> str:
    """Return the digest of the inputs of the dtype choice for `lm.dtype = "fast"`: the model and the table `lm`."""
    return digest_json([model_digest(config), to_json_values(config)])


def model_checks_digest(config: LMConfig, sites: Sequence[str]) -> str:
    """Return the digest of the inputs of the model checks (checks.py): the model, the table `lm` and the sites."""
    return digest_json([CHECKS_VERSION, dtype_choice_digest(config), list(sites)])


def chat_template_digests(config: LMConfig) -> dict[str, str]:
    """Return the digests of the `.jinja` chat template files in the model's folder, by relative path.

    `model_digest` covers a template inside tokenizer_config.json.
    """
    folder = local_model_dir(config.model)
    files = sorted(folder.rglob("*.jinja")) if folder else []
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in files if folder}


def text_digest(source: Source) -> str:
    """Return the digest of `source.fingerprint()`, which mostly lists names, sizes and modification times of files.

    Raises DataError if the source cannot be used.
    """
    if problem := source.problem():
        raise DataError(f"text.source = '{source.config.source}', {problem}.")
    return digest_json(source.fingerprint())


def tokens_digest(lm: LMConfig, source: Source) -> str:
    """Return the digest of the inputs of a study's tokens and contexts: tokenizer, text, and the tables of the study.

    Excludes the model's weights, dtype and sites.
    """
    folder = local_model_dir(lm.model)
    model: Any = [lm.model, lm.revision]
    if folder is not None:
        files = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
        model = {file.name: digest_file(file) for file in sorted(files)}
    cut = lm.model_dump(include={"context", "batch", "bos", "packing", "trust_remote_code"})
    templates = chat_template_digests(lm) if source.config.chat else None
    return digest_json(
        [TOKENIZATION_VERSION, model, cut, text_digest(source), to_json_values(source.config), templates]
    )
