"""Load a Hugging Face model onto its device, complete or truncated after the last site to read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from jumpahead.errors import StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.hook_points import decoder_blocks, find_block
from jumpahead.lm.model_files import local_model_dir, model_dir_digest
from jumpahead.lm.sites import Site


class LoadedModel(NamedTuple):
    """A transformers model with its tokenizer."""

    model: Any
    tokenizer: Any
    digest: str
    """SHA-256 of configuration and weights for a folder; `name@commit` for a model from the hub."""


class RemovedWeights(AssertionError):
    """Raised if a truncated model runs past the last site that it kept."""


def remove_weights(module: nn.Module, kept: Iterable[nn.Module] = ()) -> None:
    """Free a module's weights, and let its `forward` raise RemovedWeights; its class and its attributes stay.

    Models read attributes of their blocks before they run them. kept: modules whose parts keep their weights.
    """
    shared = {id(part) for one in kept for part in one.modules()}
    for part in module.modules():
        if id(part) not in shared:
            for tensors in (part._parameters, part._buffers):
                tensors.update(dict.fromkeys(tensors))
    module.forward = _raise_removed_weights


def is_removed(module: nn.Module) -> bool:
    """Return True if `remove_weights` freed the module's weights."""
    return vars(module).get("forward") is _raise_removed_weights


def _raise_removed_weights(*_: Any, **__: Any) -> Any:
    """Raise RemovedWeights, because a truncated model cannot run past the last site that it kept."""
    raise RemovedWeights("this model was truncated to read some sites: load it without `truncate_after`")


def load_model(config: LMConfig, truncate_after: Sequence[Site] = ()) -> LoadedModel:
    """Load `lm.model` onto the device that the study names; return the model with its tokenizer and digest.

    truncate_after: remove the modules after the last of these sites; if empty, load the complete model. Raises
    StudyError, naming the model and the reason, if the model cannot be used.
    """
    folder = local_model_dir(config.model)
    where = folder or config.model
    device = _choose_device(config)
    with _translate_errors(config.model), _silence_transformers():
        import transformers

        options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            where, output_loading_info=True, **options, **_loading_options(config)
        )
        model, info = loaded
        if info["missing_keys"]:  # transformers would fill these with random numbers
            raise ValueError(f"its weights lack {min(info['missing_keys'])}")
        if model.config.is_encoder_decoder:
            raise ValueError("it has an encoder; use a causal, decoder-only model")
        if truncate_after:
            truncate_model(model, truncate_after, config.model)
        if device is not None:
            model.to(device)
    if folder is None:
        commit = getattr(model.config, "_commit_hash", None) or config.revision
        digest = f"{config.model}@{commit}"
    else:
        digest = model_dir_digest(folder, with_code=config.trust_remote_code)
    return LoadedModel(model, tokenizer, digest)


def truncate_model(model: Any, sites: Sequence[Site], name: str) -> None:
    """Free the weights of blocks after the last of the sites, and of an output embedding that is not tied.

    Does nothing if a site is outside all blocks, because such a site may need the whole model.
    """
    blocks = list(decoder_blocks(model, name))
    needed = [find_block(model, blocks, site, name) for site in sites]
    if None in needed:
        return
    first_removed = max(block for block in needed if block is not None) + 1
    for block in blocks[first_removed:]:
        remove_weights(block, kept=blocks[:first_removed])
    head = model.get_output_embeddings()
    if head is not None:
        remove_weights(head, kept=[model.get_input_embeddings()])


def _choose_device(config: LMConfig) -> torch.device | None:
    """Return the device for the whole model, or None if `lm.device_map` or a quantised loader places the model.

    Raises StudyError if the device is not available on this machine.
    """
    if config.device_map or config.quantization:
        return None
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        raise StudyError(
            f"lm.device = '{config.device}' is not available on this machine: give auto, cpu, or a device that torch "
            "has here."
        ) from exc
    return device


def _loading_options(config: LMConfig) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` for dtype, placement, attention and quantisation."""
    options: dict[str, Any] = {"dtype": "float32" if config.dtype == "fast" else config.dtype}
    if config.device_map:
        options["device_map"] = config.device_map
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if config.quantization:
        options["quantization_config"] = dict(config.quantization)
    return options


@contextlib.contextmanager
def _translate_errors(model: str) -> Iterator[None]:
    """Convert exceptions that transformers raises while it loads a model into a StudyError of one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        SafetensorError,
        OSError,
        ValueError,
        ImportError,
        RuntimeError,
        KeyError,
        AttributeError,
        TypeError,
    ) as exc:
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise StudyError(f"lm.model = '{model}' cannot be loaded: {reason.rstrip('.')}.") from exc


@contextlib.contextmanager
def _silence_transformers() -> Iterator[None]:
    """Suppress the progress bars and warnings of transformers within the context."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
