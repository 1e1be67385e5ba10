"""Model dimensions read from config.json, for planning before the model is loaded.

No torch here, and no weights are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jumpahead.errors import ArtefactError, SiteError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_files import cached_config_dir, download_config, weights_bytes
from jumpahead.lm.sites import Site
from jumpahead.storage.json_files import parse_json
from jumpahead.storage.plain_files import read_plain

MAX_CONFIG_BYTES = 2**26
"""Largest config.json of a language model that is read."""


class ModelShape(NamedTuple):
    """Number of blocks, width, heads and vocabulary of a language model, read from its config.json without weights."""

    num_blocks: int
    """Number of decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    attention_width: int
    """Width of the input of an attention output projection: heads × head width."""
    max_context: int
    """Longest context, in tokens."""
    vocab_size: int
    """Number of token ids."""
    weights_bytes: int | None
    """Size of the weight files in bytes; None if the files are not on this machine."""

    def width_at(self, site: Site) -> int | None:
        """Return the width of activation vectors at `site`, or None for a site given by a module path.

        Raises SiteError if the model has no block with this index.
        """
        if site.layer is None:
            return None
        if site.layer >= self.num_blocks:
            last = Site(self.num_blocks - 1, site.kind).key
            raise SiteError(
                f"the model has {self.num_blocks} blocks, so {site.key} does not exist: the last is {last}."
            )
        return self.attention_width if site.kind == "attention" else self.d_model


MAX_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
    "max_seq_length",
    "seq_length",
    "context_length",
)
"""Keys of config.json that model families use for the longest context; MPT's is `max_seq_len`."""

# Each row lists the config.json keys that model families use for one number. The first key that is present counts.
_KEYS = (
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    ("hidden_size", "n_embd", "d_model", "dim"),
    ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    MAX_CONTEXT_KEYS,
    ("vocab_size",),
)


def max_context(config: Any) -> int | None:
    """Return the longest context that a loaded configuration of transformers names, or None if it names none."""
    values = (getattr(config, key, None) for key in MAX_CONTEXT_KEYS if key in config.to_dict() or key in dir(config))
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def read_model_shape(config: LMConfig, download: bool = False) -> ModelShape | None:
    """Return the model's dimensions, or None if its config.json is not on this machine.

    download: fetch a missing config.json from the hub. Raises StudyError if there is no usable config.json.
    """
    folder = cached_config_dir(config) or (download_config(config) if download else None)
    if folder is None:
        return None
    file = folder / "config.json"
    try:
        raw = parse_json(read_plain(file, MAX_CONFIG_BYTES))
    except FileNotFoundError as exc:
        raise StudyError(f"'lm.model' names {config.model}, which has no config.json: not a model.") from exc
    except ArtefactError as exc:
        raise StudyError(str(exc)) from exc
    except ValueError as exc:
        raise StudyError(f"{file} is torn or is not JSON: fetch the model again.") from exc
    if not isinstance(raw, dict):
        raise StudyError(f"{file} holds a {type(raw).__name__}: it is not a language model's config.")
    inner = raw.get("text_config")  # multimodal models keep the shape of the language model in this table
    raw = inner if isinstance(inner, dict) and inner else raw
    blocks, d_model, heads, context, vocab_size = (_first_integer(raw, keys) for keys in _KEYS)
    if min(number for number in (blocks, d_model, heads, context, vocab_size, 1) if number is not None) < 1:
        raise StudyError(f"{file} states a size below 1: it is not a language model's config.")
    if blocks is None or d_model is None:
        raise StudyError(f"{file} states neither number of blocks nor width: it is not a language model's config.")
    head_width = _first_integer(raw, ("head_dim",))
    attention = heads * (head_width or d_model // heads) if heads else d_model
    return ModelShape(blocks, d_model, attention, context or 1024, vocab_size or 0, weights_bytes(folder))


def _first_integer(raw: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    """Return the value of the first of these keys that holds an integer, or None if no key does."""
    return next((raw[key] for key in keys if type(raw.get(key)) is int), None)
