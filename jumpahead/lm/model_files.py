"""Model folders: locate a model on this machine, download its config.json, hash its files. No torch here."""

from __future__ import annotations

import importlib
from pathlib import Path

from jumpahead.errors import StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.storage.digests import digest_file, digest_json


def local_model_dir(model: str) -> Path | None:
    """Return the folder that `lm.model` names, or None if `lm.model` is a name on the Hugging Face hub.

    Raises StudyError if `model` is written like a path but no such folder exists.
    """
    if model == "tiny":
        return Path(importlib.import_module("jumpahead.lm.tiny").PATH)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise StudyError(f"lm.model = '{model}' is not a folder: give a folder, a name on the hub, or 'tiny'.")
    return None


def cached_config_dir(config: LMConfig) -> Path | None:
    """Return the folder on this machine that holds the model's config.json, or None if the file is not here.

    The folder is the one that `lm.model` names or a folder in the Hugging Face cache. A cache folder may lack weights.
    """
    if config.model == "tiny":
        return Path(__file__).parent / "tiny"
    local = Path(config.model).expanduser()
    if local.exists():
        return local
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def download_config(config: LMConfig) -> Path:
    """Download the model's config.json from the hub; return the cache folder that holds the file.

    Raises StudyError if the download fails.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.model, "config.json", revision=config.revision, etag_timeout=5)).parent
    except (OSError, ValueError) as exc:  # of the network, of the hub, or of an invalid name
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise StudyError(
            f"the config.json of lm.model = '{config.model}' cannot be fetched: {reason.rstrip('.')}. "
            "Give a folder, the right name, or --layer and --width, which it is needed for."
        ) from exc


def model_dir_digest(folder: Path, with_code: bool = False) -> str:
    """Return the SHA-256 of a model's configuration, tokenizer and weight files.

    with_code: include Python files, for a model loaded with `trust_remote_code`.
    """
    names = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    files = [folder / name for name in names if (folder / name).is_file()]
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    files += sorted(weights + (list(folder.glob("*.py")) if with_code else []))
    return digest_json({path.name: digest_file(path) for path in files})


def weights_bytes(folder: Path) -> int | None:
    """Return the total size in bytes of the safetensors files in a folder, or None if there are no such files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
