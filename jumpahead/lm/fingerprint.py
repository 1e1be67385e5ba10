"""What a model and a text are, as digests, without loading either: how a run knows that nothing changed.

No torch here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jumpahead.errors import DataError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.store import digest_file, digest_json
from jumpahead.text.config import TextConfig
from jumpahead.text.source import Source

LATER: dict[str, dict[str, Any]] = {
    "LMConfig": {
        "device": "auto",
        "device_map": None,
        "attn_implementation": None,
        "quantization": {},
        "packing": "none",
    },
    "TextConfig": {"column": "text", "split": "train", "chat": None},
}
"""Keys that came after runs had been made without them: at these values they leave a run's digests as they were."""
TOKENS = 1
"""Of what tokenising does: raised when the same text would give other tokens."""
_TOKENIZER = ("config.json", "generation_config.json", "*token*.json", "vocab*", "merges.txt", "*.model", "*.py")


def model_folder(model: str) -> Path | None:
    """The folder a study's `lm.model` means; None for a name on the hub."""
    if model == "tiny":
        return Path(importlib.import_module("jumpahead.lm.tiny").PATH)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise StudyError(f"lm.model = '{model}' is not a folder: give a folder, a name on the hub, or 'tiny'.")
    return None


def folder_digest(folder: Path, with_code: bool = False) -> str:
    """SHA-256 over the files that decide what a model and its tokenizer compute; with its Python where that is run."""
    names = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    files = [folder / name for name in names if (folder / name).is_file()]
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    files += sorted(weights + (list(folder.glob("*.py")) if with_code else []))
    return digest_json({path.name: digest_file(path) for path in files})


def of_model(config: LMConfig) -> str:
    """Of a folder: its files. Of a name on the hub: the name and the revision."""
    folder = model_folder(config.model)
    return folder_digest(folder, config.trust_remote_code) if folder else f"{config.model}@{config.revision}"


def settings(config: LMConfig | TextConfig) -> dict[str, Any]:
    """A table of the study as it enters a digest."""
    later = LATER[type(config).__name__]
    plain = config.model_dump(mode="json")  # as it is read back: a tuple would not equal its list
    return {key: value for key, value in plain.items() if key not in later or value != later[key]}


def of_precision(config: LMConfig) -> str:
    """What `lm.dtype = "fast"` was decided for: a model, and how a study uses it."""
    return digest_json([of_model(config), settings(config)])


def of_use(config: LMConfig, sites: Sequence[str]) -> str:
    """What a model was checked for: itself, and the sites that a study takes."""
    return digest_json([of_precision(config), list(sites)])


def of_template(config: LMConfig) -> dict[str, str]:
    """Chat templates that are files of their own; one in tokenizer_config.json is in `of_model`."""
    path = model_folder(config.model)
    files = sorted(path.rglob("*.jinja")) if path else []
    return {file.relative_to(path).as_posix(): digest_file(file) for file in files if path}


def of_text(source: Source) -> str:
    """What it says of itself without being read: mostly names, sizes and times. DataError where it is not there."""
    if objection := source.objection():
        raise DataError(f"text.source = '{source.config.source}', {objection}.")
    return digest_json(source.fingerprint())


def of_tokens(lm: LMConfig, source: Source) -> str:
    """Of all that a study's tokens and contexts depend on. The model's weights, dtype and sites are not among it."""
    path = model_folder(lm.model)
    model: Any = [lm.model, lm.revision]
    if path is not None:
        files = {file for pattern in _TOKENIZER for file in path.glob(pattern)}
        model = {file.name: digest_file(file) for file in sorted(files)}
    cut = lm.model_dump(include={"context", "batch", "bos", "packing", "trust_remote_code"})
    text = source.config.model_dump(exclude=None if source.config.chat else {"chat"})
    rendered = [of_template(lm)] if source.config.chat else []
    return digest_json([TOKENS, model, cut, of_text(source), text, *rendered])
