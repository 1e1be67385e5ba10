"""The folder of a model: where it is on this machine, and a digest of its files. No torch here."""

from __future__ import annotations

import importlib
from pathlib import Path

from jumpahead.errors import StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.storage.digests import digest_file, digest_json


def local_model_dir(model: str) -> Path | None:
    """Return the folder that `lm.model` names; None for a name on the hub.

    Raises StudyError if `model` is written like a path and is not a folder.
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
    """Return a folder on this machine with the model's config.json; None if there is none.

    It is the folder that `lm.model` names, or one in the cache of the hub, which may hold no weights.
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
    """Download the model's config.json from the hub; return its folder in the cache.

    Raises StudyError if it cannot be downloaded.
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
    """Return the SHA-256 of the files that decide what a model and its tokenizer compute.

    with_code: include Python files, for a model whose code is run.
    """
    names = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    files = [folder / name for name in names if (folder / name).is_file()]
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    files += sorted(weights + (list(folder.glob("*.py")) if with_code else []))
    return digest_json({path.name: digest_file(path) for path in files})


def weights_bytes(folder: Path) -> int | None:
    """Return the size of a folder's weight files in bytes; None if it has none."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
