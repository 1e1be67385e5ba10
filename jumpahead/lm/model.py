"""A Hugging Face causal language model as we use it: read a site, splice a site, score.

    b, t, d, V      contexts, positions, width of a site, vocabulary

    read(ids, sites)           runs the model up to the last of the sites and no further
    splice(ids, site, f)       the logits with f(x) where the site's x was
    resume_point(ids, site)    runs the part before the site once …
    finish(resume, x)          … so that each splice costs only the part after it

Each takes `positions` (int64 [b, t]) where several documents share a context and none is to see another; by default the
model counts them itself.

`LM.load(config, only=sites)` leaves the blocks after the last of the sites out: such a model can `read`, nothing else.

A site is the output of a module (a block; an MLP) or the input of one (the attention's output projection): a hook there
sees it. Nothing here depends on how a model family calls its parts beyond the names listed below. Nothing draws random
numbers. Tensors that leave are ordinary ones, with which gradients can be taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jumpahead.errors import DataError, SiteError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import folder_digest, model_folder
from jumpahead.lm.sites import KINDS, Site, parse_site

LONGEST_CONTEXT = 1024  # tokens, unless a study asks for more: attention's cost grows with it, an SAE learns nothing

# What families call their parts, in the order of preference.
# Gemma 2, Gemma 3, OLMo 2 and GLM 4 add the MLP's output to the stream through one more norm: the site is after it.
_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "feed_forward", "block_sparse_moe", "ffn", "fc2")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "wo")

Ids = Tensor | np.ndarray | Sequence[Sequence[int]]
Splice = Tensor | Callable[[Tensor], Tensor]


class _StopForward(Exception):
    """Raised by a hook that has all it came for."""


class _LeftOut(nn.Module):
    """Stands where a part of the model is that was not wanted."""

    def forward(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("this model was loaded to read some sites only: load it without `only`")


class Resume(NamedTuple):
    """Where the part of a forward pass after one site can begin."""

    site: Site
    ids: Tensor
    """int64 [b, t]"""
    activation: Tensor
    """[b, t, d]: the site's own activations."""
    hidden: Tensor | None
    """[b, t, width]: what enters the site's block; None for a residual site, which needs nothing before it."""
    tails: tuple[tuple[Any, ...] | None, ...]
    """What each block before the site's returns beside its activations, and last the site's own module (block or MLP);
    None for one that returns a bare tensor."""
    positions: Tensor | None = None
    """int64 [b, t], where the pass was told them."""


class LM:
    """A causal language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, digest: str, config: LMConfig | None = None) -> None:
        config = config or LMConfig()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        """As the study wrote it."""
        self.digest = digest
        """SHA-256 of configuration and weights for a folder, `name@commit` for a model from the hub."""
        self.batch = config.batch
        """Contexts per forward pass of a stream (`Contexts.batch`); `read` and `splice` take any number."""
        text = model.config.get_text_config()
        self.vocabulary: int = text.vocab_size
        maximum = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
        if config.context and maximum and config.context > maximum:
            raise StudyError(f"lm.context = {config.context} is more than the {maximum} tokens that '{name}' can take.")
        self.context: int = config.context or min(maximum or LONGEST_CONTEXT, LONGEST_CONTEXT)
        """Tokens per context, BOS included."""
        self.bos_id: int | None = tokenizer.bos_token_id if config.bos == "auto" else None
        """What every context begins with, if anything."""
        self.blocks: list[nn.Module] = list(_blocks(model, name))
        """In order; with `only`, those after the last site are stand-ins."""
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.device: torch.device = next(model.parameters()).device
        self.special = self._special()
        """bool [V]: BOS, EOS, pad and every other special id; never trained on and never spliced."""
        self._widths: dict[Site, int] = {}

    @classmethod
    def load(cls, config: LMConfig | str, only: Sequence[str | Site] = ()) -> LM:
        """Loads `tiny`, a folder or a name from the hub, onto the GPU where there is one.

        With `only`, what comes after the last of these sites takes no memory, and the model can only `read` them.
        `lm.dtype = "fast"` is decided by a run (`precision.py`); here it is float32.
        Raises StudyError naming the model and what is wrong with it.
        """
        config = LMConfig(model=config) if isinstance(config, str) else config
        dtype = "float32" if config.dtype == "fast" else config.dtype
        path = model_folder(config.model)
        where = path or config.model
        with _translated(config.model), _quiet():
            import transformers

            options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, output_loading_info=True, **options
            )
            model, info = loaded
            if info["missing_keys"]:  # transformers would go on with random numbers there
                raise ValueError(f"its weights lack {min(info['missing_keys'])}")
            if model.config.is_encoder_decoder:
                raise ValueError("it has an encoder; only causal, decoder-only models will do")
            if only:
                _leave_out(model, max(parse_site(site).layer for site in only) + 1, config.model)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
        if path is None:
            commit = getattr(model.config, "_commit_hash", None) or config.revision
            digest = f"{config.model}@{commit}"
        else:
            digest = folder_digest(path)
        return cls(model, tokenizer, name=config.model, digest=digest, config=config)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The token ids of each text, without BOS or EOS; a special token written in a text becomes its id."""
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
        backend = self.tokenizer.backend_tokenizer  # past the wrapper, which also computes offsets: 1.6 times as fast
        backend.no_truncation()
        backend.no_padding()
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in found]

    def _special(self) -> np.ndarray:
        """bool [V]: BOS, EOS, pad and every other special id."""
        ids = set(self.tokenizer.all_special_ids)
        ids |= {id for id, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if token.special}
        for source in (self.model.config.get_text_config(), getattr(self.model, "generation_config", None)):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                value = getattr(source, name, None)
                ids |= set(value) if isinstance(value, list | tuple) else {value} - {None}
        special = np.zeros(self.vocabulary, dtype=bool)
        special[[id for id in ids if 0 <= id < self.vocabulary]] = True
        return special

    def spliceable(self, ids: Ids) -> Tensor:
        """bool [b, t]: every position but the first and those of special tokens. Knows nothing of padding."""
        ids = self._ids(ids)
        mask = ~torch.from_numpy(self.special).to(ids.device)[ids]
        mask[:, 0] = False
        return mask

    def width_at(self, site: str | Site) -> int:
        """How wide the site is (d); SiteError where the model has no such site."""
        site = parse_site(site)
        if site not in self._widths:
            self._widths[site] = self.read([[0, 0]], [site])[site.key].shape[-1]
        return self._widths[site]

    # ------------------------------------------------------------------------------------------ reading

    def read(self, ids: Ids, sites: Sequence[str | Site], positions: Ids | None = None) -> dict[str, Tensor]:
        """The activations [b, t, d] at each site, under its key; what comes after the last site is not run."""
        found: dict[str, Tensor] = {}
        wanted = dict.fromkeys(parse_site(site) for site in sites)

        def keep(site: Site) -> Callable[[Tensor], None]:
            def see(value: Tensor) -> None:
                found[site.key] = _ordinary(value)
                if len(found) == len(wanted):
                    raise _StopForward

            return see

        with contextlib.ExitStack() as stack:
            for site in wanted:
                stack.enter_context(self._seen(site, keep(site)))
            self._run_until_stopped(self._ids(ids), self._positions(positions))
        return {site.key: found[site.key] for site in wanted}

    def resume_point(self, ids: Ids, site: str | Site, positions: Ids | None = None) -> Resume:
        """Runs the model up to the site, once; `finish` continues from there as often as wanted."""
        site, ids, where = parse_site(site), self._ids(ids), self._positions(positions)
        self._check(site)
        block = self.blocks[site.layer]
        hidden: list[Tensor] = []
        tails: dict[int, tuple[Any, ...] | None] = {}
        activation: list[Tensor] = []

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(_ordinary(args[0] if args else kwargs["hidden_states"]))

        def note(index: int) -> Callable[..., None]:
            def leave(_module: nn.Module, _args: Any, output: Any) -> None:
                tails[index] = output[1:] if isinstance(output, tuple) else None

            return leave

        def see(value: Tensor) -> None:
            activation.append(_ordinary(value))
            raise _StopForward

        with contextlib.ExitStack() as stack:
            stack.enter_context(_removed(block.register_forward_pre_hook(enter, with_kwargs=True)))
            for index, module in enumerate([*self.blocks[: site.layer], self._module(site)]):
                stack.enter_context(_removed(module.register_forward_hook(note(index))))
            stack.enter_context(self._seen(site, see))
            self._run_until_stopped(ids, where)
        kept = None if site.kind == "residual" else hidden[0]
        return Resume(site, ids, activation[0], kept, tuple(tails.get(i) for i in range(site.layer + 1)), where)

    # ------------------------------------------------------------------------------------------ splicing

    def finish(self, resume: Resume, activation: Tensor | None = None, where: Tensor | None = None) -> Tensor:
        """Logits [b, t, V] with `activation` [b, t, d] at the site, or with the site's own where it is None.

        Blocks before the site's pass their input through; the module whose output the site is (a block, an MLP) is
        not run either. The same activation gives the same bits as no activation. With `where` (bool [b, t]) logits are
        computed at its n positions alone: [n, V].
        """
        site, ids, clean, hidden, tails, positions = resume
        value = clean if activation is None else _fitting(activation, clean, site)
        passed = self.blocks[: site.layer]
        with contextlib.ExitStack() as stack:
            for block, tail in zip(passed, tails, strict=False):
                stack.enter_context(_replaced(block, tail, None))
            if hidden is not None:
                stack.enter_context(_entered(self.blocks[site.layer], hidden))
            if site.kind == "attention":
                stack.enter_context(self._spliced(site, lambda _: value))
            else:
                stack.enter_context(_replaced(self._module(site), tails[site.layer], value))
            if where is None:
                return self._logits(ids, positions)
            return self._logits_at(ids, where.to(ids.device), positions)

    def splice(
        self,
        ids: Ids,
        site: str | Site,
        replacement: Splice,
        where: Tensor | None = None,
        positions: Ids | None = None,
    ) -> Tensor:
        """Logits [b, t, V] of one whole forward pass with other activations at the site.

        `replacement` is a tensor [b, t, d] or a function of the site's activations. Only the positions in `where`
        (bool [b, t]; by default `spliceable(ids)`) take it, the others keep their own.
        """
        site, ids = parse_site(site), self._ids(ids)
        mask = (self.spliceable(ids) if where is None else where.to(ids.device)).unsqueeze(-1)

        def replace(value: Tensor) -> Tensor:
            new = replacement(_ordinary(value)) if callable(replacement) else replacement
            return torch.where(mask, _fitting(new, value, site), value)

        with self._spliced(site, replace):
            return self._logits(ids, self._positions(positions))

    def logits(self, ids: Ids, positions: Ids | None = None) -> Tensor:
        """Logits [b, t, V] of the model as it is."""
        return self._logits(self._ids(ids), self._positions(positions))

    # ------------------------------------------------------------------------------------------ inside

    def _ids(self, ids: Ids) -> Tensor:
        return torch.as_tensor(ids, dtype=torch.int64, device=self.device)

    def _positions(self, positions: Ids | None) -> Tensor | None:
        return None if positions is None else self._ids(positions)

    def _forward(self, ids: Tensor, positions: Tensor | None) -> Any:
        """One pass. Without cache and mask, positions that begin again keep documents apart (isolation.py)."""
        told = {} if positions is None else {"position_ids": positions}
        return self.model(input_ids=ids, use_cache=False, **told)

    def _logits(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        with torch.no_grad():  # not inference_mode, from which the largest tensor of all would have to be copied
            return self._forward(ids, positions).logits

    def _logits_at(self, ids: Tensor, where: Tensor, positions: Tensor | None) -> Tensor:
        """[n, V]: the output embedding is shown the positions in `where` only; what follows it is elementwise."""

        def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][where][None], *args[1:])

        head = self.model.get_output_embeddings()
        if head is None:
            return self._logits(ids, positions)[where]
        with _removed(head.register_forward_pre_hook(pick)):
            return self._logits(ids, positions)[0]

    def _run_until_stopped(self, ids: Tensor, positions: Tensor | None) -> None:
        with torch.inference_mode(), contextlib.suppress(_StopForward):
            self._forward(ids, positions)
            raise AssertionError("the forward pass ended without passing every site")

    def _check(self, site: Site) -> None:
        if site.layer >= len(self.blocks):
            last = len(self.blocks) - 1
            near = Site(last, site.kind).key
            raise SiteError(f"'{self.name}' has blocks 0 to {last}, there is no {site.key}: the closest is {near}.")

    def _module(self, site: Site) -> nn.Module:
        """The module whose output (residual, mlp) or input (attention) the site is."""
        self._check(site)
        block = self.blocks[site.layer]
        if site.kind == "residual":
            return block
        if site.kind == "mlp":
            found = [getattr(block, name) for name in _MLP if hasattr(block, name)]
        else:
            attention = [getattr(block, name) for name in _ATTENTION if hasattr(block, name)]
            inner = {path.rpartition(".")[2]: module for part in attention for path, module in part.named_modules()}
            found = [inner[name] for name in _PROJECTION if name in inner]
        if not found:
            others = ", ".join(Site(site.layer, kind).key for kind in KINDS if kind != site.kind)
            raise SiteError(
                f"'{self.name}' has no {site.key}: nothing in its {type(block).__name__} is called like that; "
                f"try {others}."
            )
        return found[0]

    @contextlib.contextmanager
    def _seen(self, site: Site, see: Callable[[Tensor], None]) -> Iterator[None]:
        """Calls `see` with the site's activations."""

        def look(value: Tensor) -> Tensor:
            see(value)
            return value

        with self._spliced(site, look):
            yield

    @contextlib.contextmanager
    def _spliced(self, site: Site, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Puts `replace(x)` where the site's x is."""
        module = self._module(site)

        def at_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (replace(args[0]), *args[1:])

        def at_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            return (replace(output[0]), *output[1:]) if isinstance(output, tuple) else replace(output)

        if site.kind == "attention":
            handle = module.register_forward_pre_hook(at_input)
        else:
            handle = module.register_forward_hook(at_output)
        with _removed(handle):
            yield


def nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of each next token in nats: logits [b, t, V], ids [b, t] → float32 [b, t − 1]."""
    rows = [
        nn.functional.cross_entropy(row[:-1].float(), targets[1:], reduction="none")
        for row, targets in zip(logits, ids.to(logits.device), strict=True)
    ]  # one context at a time: the float32 copy of all logits would be the largest tensor of an evaluation
    return torch.stack(rows)


def _ordinary(value: Tensor) -> Tensor:
    """A copy that later operations of the model cannot write into, and that autograd accepts."""
    with torch.inference_mode(False):
        return value.clone()


def _fitting(new: Tensor, old: Tensor, site: Site) -> Tensor:
    """`new` in the type and on the device of `old`; DataError where it has another shape."""
    if new.shape != old.shape:
        raise DataError(f"{site.key} takes activations of shape {list(old.shape)}, not {list(new.shape)}.")
    return new.to(device=old.device, dtype=old.dtype)


@contextlib.contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Removes a hook at the end."""
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _replaced(module: nn.Module, tail: tuple[Any, ...] | None, value: Tensor | None) -> Iterator[None]:
    """Lets a block or an MLP return `value`, or its input where that is None, without being run.

    Only its `forward` is covered: the module stays where it is, with its index, its attributes and its hooks.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = (args[0] if args else kwargs["hidden_states"]) if value is None else value
        return output if tail is None else (output, *tail)

    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextlib.contextmanager
def _entered(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Lets `hidden` enter a block, whatever it is called with."""

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    with _removed(block.register_forward_pre_hook(enter, with_kwargs=True)):
        yield


def _blocks(model: Any, name: str) -> nn.ModuleList:
    """The model's decoder blocks in order, whatever their list is called."""
    decoder, count = model.get_decoder(), model.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise SiteError(f"'{name}' is a {type(model).__name__}, in which no list of {count} decoder blocks was found.")


def _leave_out(model: Any, first: int, name: str) -> None:
    """Frees the weights of the blocks from `first` on, and of the output embedding where it is not the input's."""
    blocks = _blocks(model, name)
    for index in range(first, len(blocks)):
        blocks[index] = _LeftOut()
    if model.get_output_embeddings() is not None:
        model.set_output_embeddings(_LeftOut())


@contextlib.contextmanager
def _translated(model: str) -> Iterator[None]:
    """Turns what transformers raises into one sentence."""
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
def _quiet() -> Iterator[None]:
    """transformers without its progress bars and warnings."""
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
