"""A Hugging Face causal language model: read activations at sites, splice others in, compute logits.

    b, t, d, V      contexts, positions, width of a site, vocabulary size

    read(ids, sites)              activations at sites; runs the model up to the last of them and no further
    splice(ids, site, f)          logits with f(x) instead of the site's x
    run_to_site(ids, site)        runs the modules before a site once and returns a ResumePoint
    run_from_site(point, x)       runs only the modules after the site, with x at the site

read, splice and run_to_site take `position_ids` (int64 [b, t]) if several documents share a context and are isolated
from each other. By default the model counts positions itself.

`LM.load(config, truncate_after=sites)` removes the blocks after the last of the sites; such a model can only `read`.
hook_points.py maps a site to its module. Nothing draws random numbers. Returned tensors can be used with autograd.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jumpahead.errors import DataError, SiteError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.hook_points import HookPoint, decoder_blocks, find_hook_point
from jumpahead.lm.hooks import (
    capture,
    main_input,
    override_block_input,
    override_output,
    remove_on_exit,
    splice_activation,
)
from jumpahead.lm.loading import load_model, truncate_model
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import Site, parse_site
from jumpahead.text.chat import Conversation
from jumpahead.text.chat_template import ChatTemplate, EncodedConversation

DEFAULT_MAX_CONTEXT = 1024
"""Longest context in tokens unless a study asks for more: attention costs more, and an SAE gains nothing."""

Ids = Tensor | np.ndarray | Sequence[Sequence[int]]
Splice = Tensor | Callable[[Tensor], Tensor]


class _StopForward(Exception):
    """Raised by a hook to end a forward pass when everything is captured."""


class ResumePoint(NamedTuple):
    """The state of a forward pass at a site, from which `LM.run_from_site` continues."""

    site: Site
    ids: Tensor
    """int64 [b, t]"""
    activation: Tensor
    """[b, t, d]: activations of the unmodified model at the site."""
    block_input: Tensor | None
    """[b, t, width]: input of the site's block, or output of the last block for a site after all blocks.

    None for a residual site and for a site before all blocks: resuming there needs no block input."""
    extra_outputs: tuple[tuple[Any, ...] | None, ...]
    """For each block before the site's block, its outputs after the first; None if the block returns a bare tensor."""
    site_extra_outputs: tuple[Any, ...] | None
    """Outputs after the first of the site's module if resuming skips this module (a block or an MLP); else None."""
    is_flattened: bool
    """True if the site's module returns a tensor of shape [b·t, d]."""
    position_ids: Tensor | None = None
    """int64 [b, t]; None if the caller gave no positions."""


class LM:
    """A causal language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, digest: str, config: LMConfig | None = None) -> None:
        config = config or LMConfig()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        """The study's `lm.model`."""
        self.digest = digest
        """SHA-256 of configuration and weights for a folder, `name@commit` for a model from the hub."""
        self.batch = config.batch
        """Contexts per forward pass of a stream (`Contexts.batch`); `read` and `splice` take any number."""
        text = model.config.get_text_config()
        self.vocab_size: int = text.vocab_size
        maximum = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
        if config.context and maximum and config.context > maximum:
            raise StudyError(f"lm.context = {config.context} is more than the {maximum} tokens that '{name}' can take.")
        self.context: int = config.context or min(maximum or DEFAULT_MAX_CONTEXT, DEFAULT_MAX_CONTEXT)
        """Tokens per context, BOS included."""
        self.bos_id: int | None = tokenizer.bos_token_id if config.bos == "auto" else None
        """First token of every context; None if contexts begin with text."""
        self.blocks: list[nn.Module] = list(decoder_blocks(model, name))
        """Decoder blocks in order; a removed block is a `RemovedModule`."""
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.get_input_embeddings().weight.device
        """Device of the token ids; with lm.device_map, blocks may be elsewhere."""
        self.is_special = self._find_special_ids()
        """bool [V]: BOS, EOS, pad and every other special id; never trained on and never spliced."""
        self._widths: dict[Site, int] = {}
        self._hook_points: dict[Site, HookPoint] = {}
        self._outside_depths: dict[Site, int] = {}

    @classmethod
    def load(cls, config: LMConfig | str, truncate_after: Sequence[str | Site] = ()) -> LM:
        """Load a language model (`tiny`, a folder or a name on the hub) onto the device in `config`; return the LM.

        truncate_after: remove all modules after the last of these sites to save memory; the model can then only `read`.
        `lm.dtype = "fast"` means float32 here; a run chooses a dtype first (precision.py). Raises StudyError, naming
        the model and the reason, if the model cannot be used.
        """
        config = LMConfig(model=config) if isinstance(config, str) else config
        loaded = load_model(config, [parse_site(site) for site in truncate_after])
        return cls(loaded.model, loaded.tokenizer, name=config.model, digest=loaded.digest, config=config)

    def truncate_after(self, sites: Sequence[str | Site]) -> None:
        """Remove all modules after the last of these sites. The model can then only `read` activations."""
        truncate_model(self.model, [parse_site(site) for site in sites], self.name)
        self.blocks = list(decoder_blocks(self.model, self.name))

    # ------------------------------------------------------------------------------------------ tokens

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the token ids of each text, int64 [tokens], without BOS or EOS.

        Special tokens that occur literally in a text are encoded as their single ids.
        """
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
        backend = self.tokenizer.backend_tokenizer  # 1.6 times as fast as the wrapper, which also computes offsets
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    def encode_conversations(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, rendered by the chat template, without a leading BOS.

        conversations: pairs of a conversation and the document name to use in error messages.
        """
        return self._chat_template.encode(conversations, self.bos_id)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        """Return the tokenizer's chat template. Raises StudyError if it has none."""
        return ChatTemplate(self.tokenizer, self.name)

    def _find_special_ids(self) -> np.ndarray:
        """Return the mask of special token ids (BOS, EOS, pad and all others), bool [V]."""
        ids = set(self.tokenizer.all_special_ids)
        ids |= {id for id, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if token.special}
        for source in (self.model.config.get_text_config(), getattr(self.model, "generation_config", None)):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                value = getattr(source, name, None)
                ids |= set(value) if isinstance(value, list | tuple) else {value} - {None}
        is_special = np.zeros(self.vocab_size, dtype=bool)
        is_special[[id for id in ids if 0 <= id < self.vocab_size]] = True
        return is_special

    def spliceable(self, ids: Ids) -> Tensor:
        """Return the mask of positions that `splice` replaces by default, bool [b, t].

        Excludes position 0 and special tokens. Padding is excluded only if its token is special.
        """
        ids = self._ids(ids)
        mask = ~torch.from_numpy(self.is_special).to(ids.device)[ids]
        mask[:, 0] = False
        return mask

    def width_at(self, site: str | Site) -> int:
        """Return the width d of a site. Raises SiteError if the model has no such site."""
        site = parse_site(site)
        if site not in self._widths:
            self._widths[site] = self.read([[0, 0]] * 3, [site])[site.key].shape[-1]
        return self._widths[site]

    # ------------------------------------------------------------------------------------------ reading

    def read(self, ids: Ids, sites: Sequence[str | Site], position_ids: Ids | None = None) -> dict[str, Tensor]:
        """Return a dict of activations [b, t, d] by site key; the forward pass ends at the last of the sites."""
        ids, activations = self._ids(ids), dict[str, Tensor]()
        wanted = dict.fromkeys(parse_site(site) for site in sites)

        def store_as(site: Site) -> Callable[[Tensor], None]:
            def store(value: Tensor) -> None:
                activations[site.key] = _detached_copy(value)
                if len(activations) == len(wanted):
                    raise _StopForward

            return store

        with contextlib.ExitStack() as stack:
            for site in wanted:
                stack.enter_context(capture(self._hook_point(site), ids.shape, store_as(site)))
            self._run_until_stopped(ids, self._position_ids(position_ids))
        return {site.key: activations[site.key] for site in wanted}

    def run_to_site(self, ids: Ids, site: str | Site, position_ids: Ids | None = None) -> ResumePoint:
        """Run the model up to a site; return the state that `run_from_site` continues from, any number of times."""
        site, ids = parse_site(site), self._ids(ids)
        point, depth, blocks = self._hook_point(site), self._depth(site), self.blocks
        before, positions = blocks[: max(depth, 0)], self._position_ids(position_ids)
        block_input: list[Tensor] = []
        extra_outputs: dict[int, tuple[Any, ...] | None] = {}
        activation: list[Tensor] = []
        is_flattened: list[bool] = [False]

        def store_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            block_input.append(_detached_copy(main_input(args, kwargs)))

        def store_outputs_of(index: int) -> Callable[..., None]:
            def store_outputs(_module: nn.Module, _args: Any, output: Any) -> None:
                extra_outputs[index] = output[1:] if isinstance(output, tuple) else None
                value = output[0] if isinstance(output, tuple) else output
                if index == len(blocks) - 1 == depth - 1:  # a site after all blocks
                    block_input.append(_detached_copy(value))
                is_flattened[0] = isinstance(value, Tensor) and value.ndim == 2

            return store_outputs

        def store_activation(value: Tensor) -> None:
            activation.append(_detached_copy(value))
            raise _StopForward

        with contextlib.ExitStack() as stack:
            if 0 <= depth < len(blocks) and site.kind != "residual":
                handle = blocks[depth].register_forward_pre_hook(store_input, with_kwargs=True)
                stack.enter_context(remove_on_exit(handle))
            for index, module in enumerate([*before, point.module] if point.can_skip_module else before):
                stack.enter_context(remove_on_exit(module.register_forward_hook(store_outputs_of(index))))
            stack.enter_context(capture(point, ids.shape, store_activation))
            self._run_until_stopped(ids, positions)
        return ResumePoint(
            site,
            ids,
            activation[0],
            block_input[0] if block_input else None,
            tuple(extra_outputs.get(i) for i in range(len(before))),
            extra_outputs.get(len(before)),
            is_flattened[0],
            positions,
        )

    # ------------------------------------------------------------------------------------------ splicing

    def run_from_site(
        self, point: ResumePoint, activation: Tensor | None = None, logit_mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits [b, t, V] with `activation` [b, t, d] at the site.

        activation: None keeps the captured activations; a copy of the captured activations gives the same bits as None.
        logit_mask: bool [b, t] with n positions set; return the logits at these n positions only, [n, V]. Modules
        before the site are skipped, and so is a module whose output is the site (a block, an MLP).
        """
        site, ids = point.site, point.ids
        hook_point, depth = self._hook_point(site), self._depth(site)
        value = point.activation if activation is None else _cast_like(activation, point.activation, site)
        with contextlib.ExitStack() as stack:
            for block, extra in zip(self.blocks[: max(depth, 0)], point.extra_outputs, strict=True):
                stack.enter_context(override_output(block, extra, None))
            if point.block_input is not None and depth < len(self.blocks):
                stack.enter_context(override_block_input(self.blocks[depth], point.block_input))
            elif point.block_input is not None:
                stack.enter_context(override_output(self.blocks[-1], point.extra_outputs[-1], point.block_input))
            if hook_point.can_skip_module:
                output = value.flatten(0, 1) if point.is_flattened else value
                stack.enter_context(override_output(hook_point.module, point.site_extra_outputs, output))
            else:
                stack.enter_context(splice_activation(hook_point, ids.shape, lambda _: value))
            if logit_mask is None:
                return self._logits(ids, point.position_ids)
            if hook_point.module is self.model.get_output_embeddings():
                return self._logits(ids, point.position_ids)[logit_mask.to(value.device)]
            return self._logits_at(ids, logit_mask, point.position_ids)

    def splice(
        self,
        ids: Ids,
        site: str | Site,
        replacement: Splice,
        mask: Tensor | None = None,
        position_ids: Ids | None = None,
    ) -> Tensor:
        """Run a whole forward pass with activations replaced at the site; return the logits [b, t, V].

        replacement: a tensor [b, t, d], or a function of the activations at the site that returns such a tensor.
        mask: the positions to replace, bool [b, t]; by default `spliceable(ids)`.
        """
        site, ids = parse_site(site), self._ids(ids)
        warn_if_elsewhere(replacement, self.name, self.digest, site)
        is_replaced = (self.spliceable(ids) if mask is None else mask).unsqueeze(-1)

        def replace(value: Tensor) -> Tensor:
            new = replacement(_detached_copy(value)) if callable(replacement) else replacement
            return torch.where(is_replaced.to(value.device), _cast_like(new, value, site), value)

        with splice_activation(self._hook_point(site), ids.shape, replace):
            return self._logits(ids, self._position_ids(position_ids))

    def logits(self, ids: Ids, position_ids: Ids | None = None) -> Tensor:
        """Return the logits [b, t, V] of the unmodified model."""
        return self._logits(self._ids(ids), self._position_ids(position_ids))

    # ------------------------------------------------------------------------------------------ inside

    def _ids(self, ids: Ids) -> Tensor:
        """Return token ids as an int64 tensor on the model's device."""
        return torch.as_tensor(ids, dtype=torch.int64, device=self.device)

    def _position_ids(self, position_ids: Ids | None) -> Tensor | None:
        """Return position ids as an int64 tensor on the model's device, or None if `position_ids` is None."""
        return None if position_ids is None else self._ids(position_ids)

    def _forward(self, ids: Tensor, position_ids: Tensor | None) -> Any:
        """Run one forward pass; return the output of transformers.

        With no KV cache and no attention mask, transformers masks across resets in `position_ids` (isolation.py).
        """
        options = {} if position_ids is None else {"position_ids": position_ids}
        return self.model(input_ids=ids, use_cache=False, **options)

    def _logits(self, ids: Tensor, position_ids: Tensor | None) -> Tensor:
        """Return the logits [b, t, V] of one forward pass."""
        with torch.no_grad():  # inference_mode would force a copy of the logits, the largest tensor of an evaluation
            return self._forward(ids, position_ids).logits

    def _logits_at(self, ids: Tensor, mask: Tensor, position_ids: Tensor | None) -> Tensor:
        """Return the logits [n, V] at the n positions in `mask`; the output embedding runs at these positions only.

        Operations after the output embedding are elementwise, so each logit equals the logit of a full forward pass.
        """

        def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][mask.to(args[0].device)][None], *args[1:])

        head = self.model.get_output_embeddings()
        if head is None:
            logits = self._logits(ids, position_ids)
            return logits[mask.to(logits.device)]
        with remove_on_exit(head.register_forward_pre_hook(select)):
            return self._logits(ids, position_ids)[0]

    def _run_until_stopped(self, ids: Tensor, position_ids: Tensor | None) -> None:
        """Run a forward pass until a hook raises `_StopForward`."""
        with torch.inference_mode(), contextlib.suppress(_StopForward):
            self._forward(ids, position_ids)
            raise AssertionError("the forward pass ended without passing every site")

    def _hook_point(self, site: Site) -> HookPoint:
        """Return the hook point of a site, cached. Raises SiteError if the model has no such site."""
        if site not in self._hook_points:
            self._hook_points[site] = find_hook_point(self.model, self.blocks, site, self.name)
        return self._hook_points[site]

    def _depth(self, site: Site) -> int:
        """Return the number of blocks that have run when a forward pass reaches the site; −1 before all blocks."""
        point = self._hook_point(site)
        if point.block is not None:
            return point.block
        if site not in self._outside_depths:
            self._outside_depths[site] = self._find_outside_depth(point)
        return self._outside_depths[site]

    def _find_outside_depth(self, point: HookPoint) -> int:
        """Return −1 if a module outside all blocks runs before them, else the number of blocks; runs the model once."""
        ran: list[nn.Module] = []
        with contextlib.ExitStack() as stack:
            for module in (self.blocks[0], point.module):
                stack.enter_context(
                    remove_on_exit(module.register_forward_pre_hook(lambda module, _: ran.append(module)))
                )
            self.logits([[0, 0]])
        if ran.count(point.module) != 1:
            times = "not run" if point.module not in ran else f"run {ran.count(point.module)} times"
            raise SiteError(f"{point.site.key} cannot be a site of '{self.name}': it is {times} in a forward pass.")
        return -1 if ran[0] is point.module else len(self.blocks)


def _detached_copy(value: Tensor) -> Tensor:
    """Return a copy of the tensor that autograd accepts and that in-place operations of the model do not change."""
    with torch.inference_mode(False):
        return value.clone()


def _cast_like(new: Tensor, old: Tensor, site: Site) -> Tensor:
    """Return `new` in the dtype and on the device of `old`. Raises DataError if the shapes differ."""
    if new.shape != old.shape:
        raise DataError(f"{site.key} takes activations of shape {list(old.shape)}, not {list(new.shape)}.")
    return new.to(device=old.device, dtype=old.dtype)
