"""What a model's config.json says about its shape, so that a study can be planned before anything heavy is loaded.

No torch here, and no weights are read: `LM` is what knows; this is what one can know at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from jumpahead.errors import SiteError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.sites import Site


class Outline(NamedTuple):
    """The shape of a language model."""

    blocks: int
    """Number of decoder blocks."""
    d: int
    """Width of the residual stream."""
    attention: int
    """Width of what enters an attention output projection: heads × head width."""
    context: int
    """The longest context, in tokens."""
    vocabulary: int
    """Number of token ids."""
    weights_bytes: int | None
    """Size of the weight files; None where they are not on this machine."""

    def width_at(self, site: Site) -> int | None:
        """Size of an activation vector at `site`, None for a module's path; SiteError where there is no such block."""
        if site.layer is None:
            return None
        if site.layer >= self.blocks:
            last = Site(self.blocks - 1, site.kind).key
            raise SiteError(f"the model has {self.blocks} blocks, so {site.key} does not exist: the last is {last}.")
        return self.attention if site.kind == "attention" else self.d


# Names that model families give to the same thing; the first that is present counts.
_KEYS = (
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    ("hidden_size", "n_embd", "d_model", "dim"),
    ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
    ("vocab_size",),
)


def outline(config: LMConfig, fetch: bool = False) -> Outline | None:
    """The model's shape; None for a name on the hub of which this machine has no copy.

    With `fetch`, its config.json alone is brought here; StudyError where that cannot be.
    """
    folder = model_folder(config) or (_fetched(config) if fetch else None)
    if folder is None:
        return None
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError as exc:
        raise StudyError(f"'lm.model' names {config.model}, which has no config.json: not a model.") from exc
    except ValueError as exc:
        raise StudyError(f"{file} is torn or is not JSON: fetch the model again.") from exc
    raw = raw.get("text_config") or raw  # models that also see pictures keep the language model's shape inside
    blocks, d, heads, context, vocabulary = (_first(raw, keys) for keys in _KEYS)
    if blocks is None or d is None:
        raise StudyError(f"{file} says neither how many blocks there are nor how wide: not a language model's config.")
    attention = heads * (raw.get("head_dim") or d // heads) if heads else d
    return Outline(blocks, d, attention, context or 1024, vocabulary or 0, _weights_bytes(folder))


def model_folder(config: LMConfig) -> Path | None:
    """The folder of the bundled model, of a local one, or of the hub's cache; None if there is none."""
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


def _fetched(config: LMConfig) -> Path:
    """The folder of the hub's cache with the model's config.json in it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.model, "config.json", revision=config.revision, etag_timeout=5)).parent
    except (OSError, ValueError) as exc:  # of the network, of the hub, of a name that cannot be one
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise StudyError(
            f"the config.json of lm.model = '{config.model}' cannot be fetched: {reason.rstrip('.')}. "
            "Give a folder, the right name, or what it would have told: --layer and --width."
        ) from exc


def _first(raw: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((raw[key] for key in keys if isinstance(raw.get(key), int)), None)


def _weights_bytes(folder: Path) -> int | None:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
