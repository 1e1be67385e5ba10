"""A Hugging Face causal language model as we use it: read a site, splice a site, score.

    b, t, d, V      contexts, positions, width of a site, vocabulary

    read(ids, sites)           runs the model up to the last of the sites and no further
    splice(ids, site, f)       the logits with f(x) where the site's x was
    resume_point(ids, site)    runs the part before the site once …
    finish(resume, x)          … so that each splice costs only the part after it

Each takes `positions` (int64 [b, t]) where several documents share a context and none is to see another; by default the
model counts them itself.

`LM.load(config, only=sites)` leaves the blocks after the last of the sites out: such a model can `read`, nothing else.
Which module a site is, `places.py` knows. Nothing draws random numbers. Tensors that leave are ordinary ones, with
which gradients can be taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jumpahead.errors import DataError, SiteError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import folder_digest, model_folder
from jumpahead.lm.hooks import Place, blocks_of, entered, locate, main_input, removed, replaced, seen, spliced
from jumpahead.lm.sites import Site, parse_site
from jumpahead.text.chat import Conversation, Encoded, Template

LONGEST_CONTEXT = 1024  # tokens, unless a study asks for more: attention's cost grows with it, an SAE learns nothing

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
    """[b, t, width]: what enters the site's block, or for a site after all blocks what leaves the last; None for a
    residual site and for one before all blocks, which need nothing of the kind."""
    tails: tuple[tuple[Any, ...] | None, ...]
    """What each block before the site's returns beside its activations; None for one that returns a bare tensor."""
    own: tuple[Any, ...] | None
    """The same of the site's own module, where that is not run again (block or MLP)."""
    is_flat: bool
    """Whether that module returns [b·t, d]."""
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
        self.blocks: list[nn.Module] = list(blocks_of(model, name))
        """In order; with `only`, those after the last site are stand-ins."""
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.get_input_embeddings().weight.device
        """Where token ids go; with lm.device_map, blocks may be elsewhere."""
        self.special = self._special()
        """bool [V]: BOS, EOS, pad and every other special id; never trained on and never spliced."""
        self._widths: dict[Site, int] = {}
        self._places: dict[Site, Place] = {}
        self._outside: dict[Site, int] = {}

    @classmethod
    def load(cls, config: LMConfig | str, only: Sequence[str | Site] = ()) -> LM:
        """Loads `tiny`, a folder or a name from the hub, onto the device that the study names.

        With `only`, what comes after the last of these sites takes no memory, and the model can only `read` them.
        `lm.dtype = "fast"` is decided by a run (`precision.py`); here it is float32.
        Raises StudyError naming the model and what is wrong with it.
        """
        config = LMConfig(model=config) if isinstance(config, str) else config
        path = model_folder(config.model)
        where = path or config.model
        device = _device(config)
        with _translated(config.model), _quiet():
            import transformers

            options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                where, output_loading_info=True, **options, **_loading(config)
            )
            model, info = loaded
            if info["missing_keys"]:  # transformers would go on with random numbers there
                raise ValueError(f"its weights lack {min(info['missing_keys'])}")
            if model.config.is_encoder_decoder:
                raise ValueError("it has an encoder; only causal, decoder-only models will do")
            if only:
                _leave_out(model, [parse_site(site) for site in only], config.model)
            if device is not None:
                model.to(device)
        if path is None:
            commit = getattr(model.config, "_commit_hash", None) or config.revision
            digest = f"{config.model}@{commit}"
        else:
            digest = folder_digest(path, with_code=config.trust_remote_code)
        return cls(model, tokenizer, name=config.model, digest=digest, config=config)

    def keep_only(self, sites: Sequence[str | Site]) -> None:
        """Leaves out what comes after the last of these sites, as `load` does with `only`."""
        _leave_out(self.model, [parse_site(site) for site in sites], self.name)
        self.blocks = list(blocks_of(self.model, self.name))

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

    def encode_conversations(self, conversations: Sequence[tuple[Conversation, str]]) -> list[Encoded]:
        """The tokens of each, rendered by the tokenizer's chat template, without the BOS that contexts begin with.

        Beside each stands what it is called in messages.
        """
        return self._template.encode(conversations, self.bos_id)

    @cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.name)

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
            self._widths[site] = self.read([[0, 0]] * 3, [site])[site.key].shape[-1]
        return self._widths[site]

    # ------------------------------------------------------------------------------------------ reading

    def read(self, ids: Ids, sites: Sequence[str | Site], positions: Ids | None = None) -> dict[str, Tensor]:
        """The activations [b, t, d] at each site, under its key; what comes after the last site is not run."""
        ids, found = self._ids(ids), dict[str, Tensor]()
        wanted = dict.fromkeys(parse_site(site) for site in sites)

        def keep(site: Site) -> Callable[[Tensor], None]:
            def see(value: Tensor) -> None:
                found[site.key] = _ordinary(value)
                if len(found) == len(wanted):
                    raise _StopForward

            return see

        with contextlib.ExitStack() as stack:
            for site in wanted:
                stack.enter_context(seen(self._place(site), ids.shape, keep(site)))
            self._run_until_stopped(ids, self._positions(positions))
        return {site.key: found[site.key] for site in wanted}

    def resume_point(self, ids: Ids, site: str | Site, positions: Ids | None = None) -> Resume:
        """Runs the model up to the site, once; `finish` continues from there as often as wanted."""
        site, ids = parse_site(site), self._ids(ids)
        place, depth, blocks = self._place(site), self._depth(site), self.blocks
        passed, told = blocks[: max(depth, 0)], self._positions(positions)
        hidden: list[Tensor] = []
        tails: dict[int, tuple[Any, ...] | None] = {}
        activation: list[Tensor] = []
        flat: list[bool] = [False]

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(_ordinary(main_input(args, kwargs)))

        def note(index: int) -> Callable[..., None]:
            def leave(_module: nn.Module, _args: Any, output: Any) -> None:
                tails[index] = output[1:] if isinstance(output, tuple) else None
                value = output[0] if isinstance(output, tuple) else output
                if index == len(blocks) - 1 == depth - 1:  # a site after all blocks
                    hidden.append(_ordinary(value))
                flat[0] = isinstance(value, Tensor) and value.ndim == 2

            return leave

        def see(value: Tensor) -> None:
            activation.append(_ordinary(value))
            raise _StopForward

        with contextlib.ExitStack() as stack:
            if 0 <= depth < len(blocks) and site.kind != "residual":
                stack.enter_context(removed(blocks[depth].register_forward_pre_hook(enter, with_kwargs=True)))
            for index, module in enumerate([*passed, place.module] if place.stands_alone else passed):
                stack.enter_context(removed(module.register_forward_hook(note(index))))
            stack.enter_context(seen(place, ids.shape, see))
            self._run_until_stopped(ids, told)
        before = tuple(tails.get(i) for i in range(len(passed)))
        own = tails.get(len(passed))
        return Resume(site, ids, activation[0], hidden[0] if hidden else None, before, own, flat[0], told)

    # ------------------------------------------------------------------------------------------ splicing

    def finish(self, resume: Resume, activation: Tensor | None = None, where: Tensor | None = None) -> Tensor:
        """Logits [b, t, V] with `activation` [b, t, d] at the site, or with the site's own where it is None.

        Blocks before the site's pass their input through; the module whose output the site is (a block, an MLP) is
        not run either. The same activation gives the same bits as no activation. With `where` (bool [b, t]) logits are
        computed at its n positions alone: [n, V].
        """
        site, ids = resume.site, resume.ids
        place, depth = self._place(site), self._depth(site)
        value = resume.activation if activation is None else _fitting(activation, resume.activation, site)
        with contextlib.ExitStack() as stack:
            for block, tail in zip(self.blocks[: max(depth, 0)], resume.tails, strict=True):
                stack.enter_context(replaced(block, tail, None))
            if resume.hidden is not None and depth < len(self.blocks):
                stack.enter_context(entered(self.blocks[depth], resume.hidden))
            elif resume.hidden is not None:
                stack.enter_context(replaced(self.blocks[-1], resume.tails[-1], resume.hidden))
            if place.stands_alone:
                stack.enter_context(
                    replaced(place.module, resume.own, value.flatten(0, 1) if resume.is_flat else value)
                )
            else:
                stack.enter_context(spliced(place, ids.shape, lambda _: value))
            if where is None:
                return self._logits(ids, resume.positions)
            if place.module is self.model.get_output_embeddings():
                return self._logits(ids, resume.positions)[where.to(value.device)]
            return self._logits_at(ids, where, resume.positions)

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
        mask = (self.spliceable(ids) if where is None else where).unsqueeze(-1)

        def replace(value: Tensor) -> Tensor:
            new = replacement(_ordinary(value)) if callable(replacement) else replacement
            return torch.where(mask.to(value.device), _fitting(new, value, site), value)

        with spliced(self._place(site), ids.shape, replace):
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
            return (args[0][where.to(args[0].device)][None], *args[1:])

        head = self.model.get_output_embeddings()
        if head is None:
            logits = self._logits(ids, positions)
            return logits[where.to(logits.device)]
        with removed(head.register_forward_pre_hook(pick)):
            return self._logits(ids, positions)[0]

    def _run_until_stopped(self, ids: Tensor, positions: Tensor | None) -> None:
        with torch.inference_mode(), contextlib.suppress(_StopForward):
            self._forward(ids, positions)
            raise AssertionError("the forward pass ended without passing every site")

    def _place(self, site: Site) -> Place:
        if site not in self._places:
            self._places[site] = locate(self.model, self.blocks, site, self.name)
        return self._places[site]

    def _depth(self, site: Site) -> int:
        """How many blocks have been run when the site is reached; −1 for a module before all blocks."""
        place = self._place(site)
        if place.block is not None:
            return place.block
        if site not in self._outside:
            self._outside[site] = self._order(place)
        return self._outside[site]

    def _order(self, place: Place) -> int:
        """The depth of a module outside the blocks, from one short forward pass."""
        ran: list[nn.Module] = []
        with contextlib.ExitStack() as stack:
            for module in (self.blocks[0], place.module):
                stack.enter_context(removed(module.register_forward_pre_hook(lambda module, _: ran.append(module))))
            self.logits([[0, 0]])
        if ran.count(place.module) != 1:
            times = "not run" if place.module not in ran else f"run {ran.count(place.module)} times"
            raise SiteError(f"{place.site.key} cannot be a site of '{self.name}': it is {times} in a forward pass.")
        return -1 if ran[0] is place.module else len(self.blocks)


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


def _leave_out(model: Any, sites: Sequence[Site], name: str) -> None:
    """Frees the weights of what comes after the last of the sites: blocks, and the output embedding where it is not
    the input's. A site outside of all blocks needs everything."""
    blocks = blocks_of(model, name)
    needed = [locate(model, list(blocks), site, name).block for site in sites]
    if None in needed:
        return
    for index in range(max(block for block in needed if block is not None) + 1, len(blocks)):
        blocks[index] = _LeftOut()
    if model.get_output_embeddings() is not None:
        model.set_output_embeddings(_LeftOut())


def _device(config: LMConfig) -> torch.device | None:
    """Where the whole model goes; None where lm.device_map or a quantised loader has placed it."""
    if config.device_map or config.quantization:
        return None
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        raise StudyError(
            f"lm.device = '{config.device}' is not to be had on this machine: give auto, cpu, or a device that torch "
            "has here."
        ) from exc
    return device


def _loading(config: LMConfig) -> dict[str, Any]:
    """What transformers is told beside the name."""
    options: dict[str, Any] = {"dtype": "float32" if config.dtype == "fast" else config.dtype}
    if config.device_map:
        options["device_map"] = config.device_map
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if config.quantization:
        options["quantization_config"] = dict(config.quantization)
    return options


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
