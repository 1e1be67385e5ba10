"""What a model and a text are, as digests, without loading either: how a run knows that nothing changed.

No torch here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from jumpahead.errors import StudyError
from jumpahead.lm.config import LMConfig, TextConfig
from jumpahead.lm.text import stdlib_root, stdlib_sources, text_files
from jumpahead.store import digest_file, digest_json


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


def of_precision(config: LMConfig) -> str:
    """What `lm.dtype = "fast"` was decided for: a model, and how a study uses it."""
    return digest_json([of_model(config), config.model_dump(exclude_defaults=True)])


def of_use(config: LMConfig, sites: Sequence[str]) -> str:
    """What a model was checked for: itself, and the sites that a study takes."""
    return digest_json([of_precision(config), list(sites)])


def of_text(config: TextConfig) -> str:
    """Names, sizes and times of the files; sizes alone for the standard library, which is installed, not edited."""
    if config.source == "stdlib":
        root = stdlib_root()
        return digest_json([(path.relative_to(root).as_posix(), path.stat().st_size) for path in stdlib_sources(root)])
    files = {name: path.stat() for name, path in text_files(config).items()}
    return digest_json([(name, files[name].st_size, files[name].st_mtime_ns) for name in sorted(files)])
