"""A Hugging Face causal language model: read activations at sites, splice others in, compute logits.

    b, t, d, V      contexts, positions, width of a site, vocabulary size

    read(ids, sites)              activations at sites; runs the model up to the last of them and no further
    splice(ids, site, f)          logits with f(x) instead of the site's x
    run_to_site(ids, site)        runs the modules before a site once and returns a ResumePoint
    run_from_site(point, x)       runs only the modules after the site, with x at the site

All take `position_ids` (int64 [b, t]) if several documents share a context and are isolated from each other, and
`attention_mask` (bool [b, t]) if rows are padded on the left. By default the model counts positions itself.

`LM.load(config, truncate_after=sites)` removes the blocks after the last of the sites; such a model can only `read`.
measured_sites.py finds the module of a site. Nothing draws random numbers. Returned tensors can be used with autograd.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jumpahead.errors import DataError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.forward_inputs import ForwardInputs, check_mask_is_honoured, refuse_unmarked_padding, with_mask
from jumpahead.lm.hook_points import HookPoint, decoder_blocks
from jumpahead.lm.hooks import StopForward, capture, detached_copy, remove_on_exit, splice_activation
from jumpahead.lm.loading import load_model, truncate_model
from jumpahead.lm.measured_sites import MeasuredSites
from jumpahead.lm.model_shape import max_context
from jumpahead.lm.resume import ResumePoint, ResumeRecorder, resume_with
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import Site, parse_site
from jumpahead.lm.tokens import encode_texts, ordinary_ids, special_token_mask
from jumpahead.text.chat import Conversation
from jumpahead.text.chat_template import ChatTemplate, EncodedConversation

DEFAULT_MAX_CONTEXT = 1024
"""Longest context in tokens unless a study asks for more: attention costs more, and an SAE gains nothing."""

Ids = Tensor | np.ndarray | Sequence[Sequence[int]]
Mask = Tensor | np.ndarray | Sequence[Sequence[bool]]
Splice = Tensor | Callable[[Tensor], Tensor]


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
        maximum = max_context(text)
        if config.context and maximum and config.context > maximum:
            raise StudyError(f"lm.context = {config.context} is more than the {maximum} tokens that '{name}' can take.")
        self.context: int = config.context or min(maximum or DEFAULT_MAX_CONTEXT, DEFAULT_MAX_CONTEXT)
        """Tokens per context, BOS included."""
        self.bos_id: int | None = tokenizer.bos_token_id if config.bos == "auto" else None
        """First token of every context; None if contexts begin with text."""
        self.blocks: list[nn.Module] = list(decoder_blocks(model, name))
        """Decoder blocks in order; a removed block has no weights (loading.py)."""
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.get_input_embeddings().weight.device
        """Device of the token ids; with lm.device_map, blocks may be elsewhere."""
        self.is_special = special_token_mask(model, tokenizer, self.vocab_size)
        """bool [V]: BOS, EOS, pad and every other special id; never trained on and never spliced."""
        self._widths: dict[Site, int] = {}
        self._sites = MeasuredSites(model, self.blocks, name, self._run_on_ordinary_tokens)
        self._resumes_from: dict[Site, bool] = {}
        """For each site, whether the blocks before it can be skipped."""
        self._masked: set[tuple[str, ...]] = set()
        """The sites, or the logits (), at which an attention mask was found to be honoured."""

    @classmethod
    def load(cls, config: LMConfig | str | os.PathLike[str], truncate_after: Sequence[str | Site] = ()) -> LM:
        """Load a language model (`tiny`, a folder or a name on the hub) onto the device in `config`; return the LM.

        truncate_after: remove all modules after the last of these sites to save memory; the model can then only `read`.
        `lm.dtype = "fast"` means float32 here; a run chooses a dtype first (precision.py). Raises StudyError, naming
        the model and the reason, if the model cannot be used.
        """
        config = config if isinstance(config, LMConfig) else LMConfig(model=os.fspath(config))
        loaded = load_model(config, [parse_site(site) for site in truncate_after])
        return cls(loaded.model, loaded.tokenizer, name=config.model, digest=loaded.digest, config=config)

    def truncate_after(self, sites: Sequence[str | Site]) -> None:
        """Remove all modules after the last of these sites. The model can then only `read` activations."""
        truncate_model(self.model, [parse_site(site) for site in sites], self.name)
        self._sites = MeasuredSites(self.model, self.blocks, self.name, self._run_on_ordinary_tokens, self._sites)

    # ------------------------------------------------------------------------------------------ tokens

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the token ids of each text, int64 [tokens], without BOS or EOS.

        Special tokens that occur literally in a text are encoded as their single ids.
        """
        return encode_texts(self.tokenizer, texts)

    def encode_conversations(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, rendered by the chat template, without a leading BOS.

        conversations: pairs of a conversation and the document name to use in error messages.
        """
        return self._chat_template.encode(conversations, self.bos_id)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        """Return the tokenizer's chat template. Raises StudyError if it has none."""
        return ChatTemplate(self.tokenizer, self.name)

    def spliceable(self, ids: Ids, attention_mask: Mask | None = None) -> Tensor:
        """Return the mask of positions that `splice` replaces by default, bool [b, t].

        Excludes the first position of a row, special tokens, and padding if `attention_mask` says which it is; padding
        is otherwise excluded only if its token is special.
        """
        token_ids = self._ids(ids)
        mask = ~torch.from_numpy(self.is_special).to(token_ids.device)[token_ids]
        if attention_mask is None:
            mask[:, 0] = False
            return mask
        is_token = torch.as_tensor(attention_mask, device=token_ids.device).bool()
        return mask & is_token & (is_token.long().cumsum(1) > 1)

    def hook_point(self, site: str | Site) -> HookPoint:
        """Return the module, and its side, that carries a site's activations. Raises SiteError if there is none."""
        return self._sites.point(parse_site(site))

    def width_at(self, site: str | Site) -> int:
        """Return the width d of a site. Raises SiteError if the model has no such site."""
        site = parse_site(site)
        if site not in self._widths:
            self._widths[site] = self._read(ForwardInputs(self._ids([[0, 0]] * 3)), [site])[site.key].shape[-1]
        return self._widths[site]

    def describe_site(self, site: str | Site) -> str:
        """Return the path of the site's module and side, and the scale if there is one."""
        return self._sites.describe(parse_site(site))

    # ------------------------------------------------------------------------------------------ reading

    def read(
        self,
        ids: Ids,
        sites: Sequence[str | Site],
        position_ids: Ids | None = None,
        attention_mask: Mask | None = None,
    ) -> dict[str, Tensor]:
        """Return a dict of activations [b, t, d] by site key; the forward pass ends at the last of the sites.

        Raises DataError if rows begin with padding and no attention mask says so, or if the model ignores the mask.
        """
        wanted = list(dict.fromkeys(parse_site(site) for site in sites))
        inputs = self._inputs(ids, position_ids, attention_mask)
        self._check_mask(inputs, lambda short: self._read(short, wanted), tuple(site.key for site in wanted))
        return self._read(inputs, wanted)

    def _read(self, inputs: ForwardInputs, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Return a dict of activations [b, t, d] by site key."""
        activations = dict[str, Tensor]()

        def store_as(site: Site) -> Callable[[Tensor], None]:
            def store(value: Tensor) -> None:
                activations[site.key] = detached_copy(value)
                if len(activations) == len(sites):
                    raise StopForward

            return store

        points = [self._sites.point(site) for site in sites]
        with contextlib.ExitStack() as stack:
            for site, point in zip(sites, points, strict=True):
                stack.enter_context(capture(point, inputs.ids.shape, store_as(site)))
            self._run_until_stopped(inputs)
        return {site.key: activations[site.key] for site in sites}

    def run_to_site(
        self, ids: Ids, site: str | Site, position_ids: Ids | None = None, attention_mask: Mask | None = None
    ) -> ResumePoint:
        """Run the model up to a site; return the state that `run_from_site` continues from, any number of times."""
        site = parse_site(site)
        inputs = self._inputs(ids, position_ids, attention_mask)
        self._check_mask(inputs, lambda short: self._read(short, [site]), (site.key,))
        return self._run_to(inputs, site, self.can_resume(site))

    def _run_to(self, inputs: ForwardInputs, site: Site, skips_blocks: bool) -> ResumePoint:
        """Return the state at a site. skips_blocks: whether resuming from it skips the blocks before the site."""
        point = self._sites.point(site)
        recorder = ResumeRecorder(self.blocks, point, self._sites.depth(site))
        with recorder.hooks(inputs.ids.shape):
            self._run_until_stopped(inputs)
        return recorder.result(inputs, skips_blocks)

    def can_resume(self, site: str | Site) -> bool:
        """Return True if running from a site, without the blocks before it, gives the logits of a whole pass.

        Blocks of some models leave more behind than their output (Gemma 4: keys and values that later blocks share):
        such a model runs whole. Tried once per site.
        """
        site = parse_site(site)
        if site not in self._resumes_from:
            inputs = self._ordinary_inputs(2, 6)
            clean = self._logits(inputs)
            try:
                resumed = self.run_from_site(self._run_to(inputs, site, skips_blocks=True))
                self._resumes_from[site] = torch.equal(resumed, clean)
            except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError):
                self._resumes_from[site] = False
        return self._resumes_from[site]

    # ------------------------------------------------------------------------------------------ splicing

    def run_from_site(
        self, point: ResumePoint, activation: Tensor | None = None, logit_mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits [b, t, V] with `activation` [b, t, d] at the site.

        activation: None keeps the captured activations; a copy of the captured activations gives the same bits as None.
        logit_mask: bool [b, t] with n positions set; return the logits at these n positions only, [n, V]. Modules
        before the site are skipped, and so is a module whose output is the site (a block, an MLP).
        """
        value = point.activation if activation is None else _cast_like(activation, point.activation, point.site)
        hook_point = self._sites.point(point.site)
        with resume_with(point, self.blocks, hook_point, self._sites.depth(point.site), value):
            if logit_mask is None:
                return self._logits(point.inputs)
            if hook_point.module is self.model.get_output_embeddings():
                return self._logits(point.inputs)[logit_mask.to(value.device)]
            return self._logits_at(point.inputs, logit_mask)

    def splice(
        self,
        ids: Ids,
        site: str | Site,
        replacement: Splice,
        mask: Tensor | None = None,
        position_ids: Ids | None = None,
        attention_mask: Mask | None = None,
    ) -> Tensor:
        """Run a whole forward pass with activations replaced at the site; return the logits [b, t, V].

        replacement: a tensor [b, t, d], or a function of the activations at the site that returns such a tensor.
        mask: the positions to replace, bool [b, t]; by default `spliceable(ids, attention_mask)`. Raises DataError as
        `read` does.
        """
        site = parse_site(site)
        inputs = self._checked_inputs(ids, position_ids, attention_mask)
        warn_if_elsewhere(replacement, self.name, self.digest, site)
        is_replaced = (self.spliceable(inputs.ids, inputs.attention_mask) if mask is None else mask).unsqueeze(-1)

        def replace(value: Tensor) -> Tensor:
            new = replacement(detached_copy(value)) if callable(replacement) else replacement
            return torch.where(is_replaced.to(value.device), _cast_like(new, value, site), value)

        with splice_activation(self._sites.point(site), inputs.ids.shape, replace):
            return self._logits(inputs)

    def logits(self, ids: Ids, position_ids: Ids | None = None, attention_mask: Mask | None = None) -> Tensor:
        """Return the logits [b, t, V] of the unmodified model. Raises DataError as `read` does."""
        return self._logits(self._checked_inputs(ids, position_ids, attention_mask))

    # ------------------------------------------------------------------------------------------ inside

    def _ids(self, ids: Ids) -> Tensor:
        """Return token ids as an int64 tensor on the model's device."""
        return torch.as_tensor(ids, dtype=torch.int64, device=self.device)

    def _inputs(self, ids: Ids, position_ids: Ids | None, attention_mask: Mask | None) -> ForwardInputs:
        """Return the inputs of a forward pass. Raises DataError if rows begin with padding that no mask marks."""
        token_ids = self._ids(ids)
        positions = None if position_ids is None else self._ids(position_ids)
        if attention_mask is None:
            starts = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
            # Where the caller has the ids: on a GPU the check would wait for the device.
            refuse_unmarked_padding(torch.as_tensor(ids), self.tokenizer.pad_token_id, starts)
            return ForwardInputs(token_ids, positions)
        return with_mask(self.model, token_ids, positions, torch.as_tensor(attention_mask))

    def _checked_inputs(self, ids: Ids, position_ids: Ids | None, attention_mask: Mask | None) -> ForwardInputs:
        """Return the inputs of a whole forward pass; the mask, if there is one, is checked at the logits."""
        inputs = self._inputs(ids, position_ids, attention_mask)
        self._check_mask(inputs, lambda short: {"logits": self._logits(short)}, ())
        return inputs

    def _check_mask(
        self, inputs: ForwardInputs, run: Callable[[ForwardInputs], Mapping[str, Tensor]], where: tuple[str, ...]
    ) -> None:
        """Check once per place `where` that the model honours an attention mask, if the inputs have one."""
        if inputs.attention_mask is not None and where not in self._masked:
            check_mask_is_honoured(run, self._ordinary_inputs(2, 6), self.model)
            self._masked.add(where)

    def _ordinary_inputs(self, rows: int, length: int) -> ForwardInputs:
        """Return contexts of ordinary tokens, for measurements: [rows, ≤ length]."""
        ids = ordinary_ids(self.is_special, self.bos_id, rows, min(length, self.context))
        return ForwardInputs(self._ids(ids))

    def _run_on_ordinary_tokens(self, rows: int, length: int) -> Tensor:
        """Run a forward pass on ordinary tokens; return their ids [rows, ≤ length]. A hook may end the pass."""
        inputs = self._ordinary_inputs(rows, length)
        self._forward(inputs)
        return inputs.ids

    def _forward(self, inputs: ForwardInputs) -> Any:
        """Run one forward pass; return the output of transformers."""
        return self.model(input_ids=inputs.ids, use_cache=False, **inputs.options())

    def _logits(self, inputs: ForwardInputs) -> Tensor:
        """Return the logits [b, t, V] of one forward pass."""
        with torch.no_grad():  # inference_mode would force a copy of the logits, the largest tensor of an evaluation
            return self._forward(inputs).logits

    def _logits_at(self, inputs: ForwardInputs, mask: Tensor) -> Tensor:
        """Return the logits [n, V] at the n positions in `mask`; the output embedding runs at these positions only.

        Operations after the output embedding are elementwise, so each logit equals the logit of a full forward pass.
        """

        def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][mask.to(args[0].device)][None], *args[1:])

        head = self.model.get_output_embeddings()
        if head is None:
            logits = self._logits(inputs)
            return logits[mask.to(logits.device)]
        with remove_on_exit(head.register_forward_pre_hook(select)):
            return self._logits(inputs)[0]

    def _run_until_stopped(self, inputs: ForwardInputs) -> None:
        """Run a forward pass until a hook raises `StopForward`."""
        with torch.inference_mode(), contextlib.suppress(StopForward):
            self._forward(inputs)
            raise AssertionError("the forward pass ended without passing every site")


def _cast_like(new: Tensor, old: Tensor, site: Site) -> Tensor:
    """Return `new` in the dtype and on the device of `old`. Raises DataError if the shapes differ."""
    if new.shape != old.shape:
        raise DataError(f"{site.key} takes activations of shape {list(old.shape)}, not {list(new.shape)}.")
    return new.to(device=old.device, dtype=old.dtype)
