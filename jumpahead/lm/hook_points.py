"""Hook points: for each site, the module of a loaded model and its side (input or output) that carries activations.

A site is the output of a module (a block, an MLP) or the input of a module (the attention's output projection). Only
the lists of names below depend on how model families name their modules; which module is the MLP's is measured
(mlp_site.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from jumpahead.errors import SiteError
from jumpahead.lm.sites import SIDES, Side, Site

# Names of modules in model families, in order of preference.
# Gemma 2, Gemma 3, OLMo 2 and GLM 4 normalise the MLP's output before they add it to the stream: the site is the norm's
# output.
_MLP_NAMES = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "mlp",
    "feed_forward",
    "block_sparse_moe",
    "ffn",
    "fc2",
)
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
_PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo")


class HookPoint(NamedTuple):
    """The module, and its input or output side, that carries a site's activations."""

    site: Site
    module: nn.Module
    side: Side
    block: int | None
    """Index of the decoder block that is or contains the module; None for a module outside all blocks."""
    scale: float = 1.0
    """Number that the model multiplies the module's output by before it adds it; the site is the product."""

    @property
    def can_skip_module(self) -> bool:
        """Return True if the site is the output of the module, so that a known output makes running it unnecessary."""
        return self.site.kind in ("residual", "mlp") and self.scale == 1


def decoder_blocks(model: Any, name: str) -> nn.ModuleList:
    """Return the model's decoder blocks in order, found by their number. Raises SiteError if no list has this length.

    The decoder that transformers names is searched first, then the whole model: some families name another module so.
    name: of the model, for error messages.
    """
    config = model.config.get_text_config(decoder=True)
    counts = [getattr(config, key, None) for key in ("num_hidden_layers", "num_layers", "num_decoder_layers")]
    for count in counts:
        for root in (model.get_decoder(), model):
            for module in root.modules() if isinstance(root, nn.Module) else ():
                if isinstance(module, nn.ModuleList) and len(module) == count:
                    return module
    raise SiteError(f"'{name}' is a {type(model).__name__}, in which no list of {counts[0]} decoder blocks was found.")


def find_block(model: Any, blocks: list[nn.Module], site: Site, name: str) -> int | None:
    """Return the index of the block that a site is in, or None for a site outside all blocks.

    Raises SiteError, with the closest site, if the model has no such block or module. name: of the model.
    """
    if site.layer is None:
        return find_by_path(model, blocks, site, name).block
    if site.layer >= len(blocks):
        last = len(blocks) - 1
        closest = Site(last, site.kind).key
        raise SiteError(f"'{name}' has blocks 0 to {last}, there is no {site.key}: the closest is {closest}.")
    return site.layer


def named_mlps(block: nn.Module) -> list[str]:
    """Return the paths, within a block, of the modules named like an MLP, in order of preference."""
    return [part for part in _MLP_NAMES if isinstance(getattr(block, part, None), nn.Module)]


def named_projections(block: nn.Module, attention: Sequence[str] = _ATTENTION_NAMES) -> list[str]:
    """Return the paths, within a block, of the modules with the best name of an attention's output projection.

    attention: names of the block's children that are searched. Several paths mean several attentions.
    """
    inner = [
        f"{name}.{path}"
        for name in attention
        if isinstance(child := getattr(block, name, None), nn.Module)
        for path, _ in child.named_modules()
    ]
    for part in _PROJECTION_NAMES:
        if found := [path for path in inner if path.rpartition(".")[2] == part]:
            return found
    return []


def example_path(model: Any, block: nn.Module, named: list[str]) -> str:
    """Return the site name of a module inside a block, as an example for an error message.

    named: paths, within the block, of modules to prefer.
    """
    if named:
        preferred = block.get_submodule(named[0])
        return next(f"{path}.output" for path, module in model.named_modules() if module is preferred)
    inside = {id(module) for module in block.modules()} - {id(block)}
    return next((f"{path}.output" for path, module in model.named_modules() if id(module) in inside), "PATH.output")


def find_by_path(model: Any, blocks: list[nn.Module], site: Site, name: str) -> HookPoint:
    """Return the hook point of a module given by its path or by an unambiguous end of its path.

    Raises SiteError if there is no such module.
    """
    modules = dict(model.named_modules())
    ends = [path for path in modules if path.endswith(f".{site.path}")]
    path = site.path if site.path in modules else ends[0] if len(ends) == 1 else None
    if path is None:
        raise SiteError(f"'{name}' has no module '{site.path}'.{_module_hint(site, list(modules)[1:], ends)}")
    module = modules[path]
    block = next((i for i, block in enumerate(blocks) if any(part is module for part in block.modules())), None)
    assert site.kind in SIDES
    return HookPoint(site, module, "input" if site.kind == "input" else "output", block)


def _module_hint(site: Site, paths: list[str], ends: list[str]) -> str:
    """Return the last sentence of the error about a missing module: a similar path, or some of the model's paths."""
    if ends:
        return f" {len(ends)} modules end like that, for instance {ends[0]}."
    if close := difflib.get_close_matches(site.path, paths, n=1):
        return f" Did you mean '{close[0]}.{site.kind}'?"
    return f" Modules of the model are, for instance, {', '.join(paths[1:60:12])}."
