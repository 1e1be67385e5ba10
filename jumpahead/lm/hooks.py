"""Where a site is in a loaded model: a module, one side of it, and the block it belongs to.

    b, t, d      contexts, positions, width of a site

A site is the output of a module (a block; an MLP) or the input of one (the attention's output projection): a hook there
sees it. Nothing depends on how a model family calls its parts beyond the names listed below. What passes a module is
[b, t, d], or [b·t, d] in families that flatten (OPT); it is [b, t, d] everywhere outside this file.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jumpahead.errors import SiteError
from jumpahead.lm.sites import KINDS, SIDES, Side, Site

# What families call their parts, in the order of preference.
# Gemma 2, Gemma 3, OLMo 2 and GLM 4 add the MLP's output to the stream through one more norm: the site is after it.
_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "feed_forward", "block_sparse_moe", "ffn", "fc2")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "wo")


class Place(NamedTuple):
    """Where a site is."""

    site: Site
    module: nn.Module
    side: Side
    block: int | None
    """The block that is or holds the module; None for a module outside of all blocks."""

    @property
    def stands_alone(self) -> bool:
        """Whether the module need not run where its output is given."""
        return self.site.kind in ("residual", "mlp")


def blocks_of(model: Any, name: str) -> nn.ModuleList:
    """The model's decoder blocks in order, whatever their list is called."""
    decoder, count = model.get_decoder(), model.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise SiteError(f"'{name}' is a {type(model).__name__}, in which no list of {count} decoder blocks was found.")


def locate(model: Any, blocks: list[nn.Module], site: Site, name: str) -> Place:
    """The place of a site in a model that is called `name`; SiteError with the closest one where it has none."""
    if site.layer is None:
        return _by_path(model, blocks, site, name)
    if site.layer >= len(blocks):
        last = len(blocks) - 1
        near = Site(last, site.kind).key
        raise SiteError(f"'{name}' has blocks 0 to {last}, there is no {site.key}: the closest is {near}.")
    block = blocks[site.layer]
    if site.kind == "residual":
        return Place(site, block, "output", site.layer)
    if site.kind == "mlp":
        found = [getattr(block, part) for part in _MLP if hasattr(block, part)]
    else:
        attention = [getattr(block, part) for part in _ATTENTION if hasattr(block, part)]
        inner = {path.rpartition(".")[2]: module for part in attention for path, module in part.named_modules()}
        found = [inner[part] for part in _PROJECTION if part in inner]
    if not found:
        others = ", ".join(Site(site.layer, kind).key for kind in KINDS if kind != site.kind)
        raise SiteError(
            f"'{name}' has no {site.key}: nothing in its {type(block).__name__} is called like that; "
            f"try {others}, or a module's path, such as {_example(model, block)}."
        )
    return Place(site, found[0], "output" if site.kind == "mlp" else "input", site.layer)


def _example(model: Any, block: nn.Module) -> str:
    """Some module inside a block."""
    inside = {id(module) for module in block.modules()} - {id(block)}
    return next((f"{path}.output" for path, module in model.named_modules() if id(module) in inside), "PATH.output")


def _by_path(model: Any, blocks: list[nn.Module], site: Site, name: str) -> Place:
    """A module by its path, or by the end of its path where one module alone has that end."""
    modules = dict(model.named_modules())
    ends = [path for path in modules if path.endswith(f".{site.path}")]
    path = site.path if site.path in modules else ends[0] if len(ends) == 1 else None
    if path is None:
        raise SiteError(f"'{name}' has no module '{site.path}'.{_hint(site, list(modules)[1:], ends)}")
    module = modules[path]
    block = next((i for i, one in enumerate(blocks) if any(part is module for part in one.modules())), None)
    assert site.kind in SIDES
    return Place(site, module, "input" if site.kind == "input" else "output", block)


def _hint(site: Site, paths: list[str], ends: list[str]) -> str:
    """The end of a sentence about a module that is not there; a model has hundreds."""
    if ends:
        return f" {len(ends)} modules end like that, for instance {ends[0]}."
    if close := difflib.get_close_matches(site.path, paths, n=1):
        return f" Did you mean '{close[0]}.{site.kind}'?"
    return f" Modules of the model are, for instance, {', '.join(paths[1:60:12])}."


# ---------------------------------------------------------------------------------------------- hooks


@contextlib.contextmanager
def spliced(place: Place, shape: torch.Size, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Puts `replace(x)` where the site's x [b, t, d] is, in a forward pass over ids of `shape` (b, t)."""

    def put(value: Any) -> Tensor:
        x = _opened(value, shape, place.site)
        return replace(x).reshape(value.shape)

    def at_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (put(args[0]), *args[1:]), kwargs
        name = _main_input(kwargs)
        return args, {**kwargs, name: put(kwargs[name])}

    def at_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)

    if place.side == "input":
        handle = place.module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = place.module.register_forward_hook(at_output)
    with removed(handle):
        yield


@contextlib.contextmanager
def seen(place: Place, shape: torch.Size, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Calls `see` with the site's activations [b, t, d]."""

    def look(value: Tensor) -> Tensor:
        see(value)
        return value

    with spliced(place, shape, look):
        yield


@contextlib.contextmanager
def replaced(module: nn.Module, tail: tuple[Any, ...] | None, value: Tensor | None) -> Iterator[None]:
    """Lets a block or an MLP return `value`, or its input where that is None, without being run.

    Only its `forward` is covered: the module stays where it is, with its index, its attributes and its hooks.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = (args[0] if args else kwargs[_main_input(kwargs)]) if value is None else value
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
def entered(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Lets `hidden` enter a block, whatever it is called with."""

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, _main_input(kwargs): hidden})

    with removed(block.register_forward_pre_hook(enter, with_kwargs=True)):
        yield


@contextlib.contextmanager
def removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Removes a hook at the end."""
    try:
        yield
    finally:
        handle.remove()


def main_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module was called with, first of all."""
    return args[0] if args else kwargs[_main_input(kwargs)]


def _main_input(kwargs: dict[str, Any]) -> str:
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


def _opened(value: Any, shape: torch.Size, site: Site) -> Tensor:
    """What passes there as [b, t, d]; SiteError where it is nothing of the kind."""
    if isinstance(value, Tensor) and value.is_floating_point():
        if value.ndim == 3 and value.shape[:2] == shape:
            return value
        if value.ndim == 2 and len(value) == shape.numel():
            return value.unflatten(0, shape)
    what = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise SiteError(
        f"{site.key} cannot be a site: what passes there is {what}, not one vector for each of {shape[0]} × {shape[1]} "
        "positions."
    )
