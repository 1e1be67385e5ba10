"""Sites: the places in a language model whose activations an SAE takes. No torch here.

layers.3.residual    what block 3 passes on to block 4                       width = the model's
layers.3.mlp         what the MLP of block 3 adds to the residual stream     width = the model's
layers.3.attention   what enters block 3's output projection, heads concatenated
PATH.input           what enters the module of that path in the model: model.layers.3.mlp.down_proj.input
PATH.output          what leaves it: model.embed_tokens.output
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from jumpahead.errors import SiteError, nearest

Kind = Literal["residual", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("residual", "mlp", "attention")
Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")

_STACKS = r"(?:[\w.]+\.)?(?:layers|h|blocks)"
# Our own, Gemma Scope 2's and TransformerLens's names; in all three the block's index is the first group.
_GRAMMAR: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(rf"{_STACKS}\.(\d+)\.(?:residual|output|hook_resid_post)"), "residual"),
    (re.compile(rf"{_STACKS}\.(\d+)\.(?:mlp|(?:mlp|post_feedforward_layernorm)\.output|hook_mlp_out)"), "mlp"),
    (
        re.compile(
            rf"{_STACKS}\.(\d+)\.(?:attention|attn\.hook_z"
            r"|(?:self_attn|attn|attention)\.(?:o_proj|out_proj|c_proj|dense)\.input)"
        ),
        "attention",
    ),
)
_BEFORE = re.compile(rf"{_STACKS}\.(\d+)\.(?:hook_resid_pre|input)")
_MODULE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\.(input|output)")


class Site(NamedTuple):
    """One place in the model: a block's residual, MLP or attention, or one side of any module."""

    layer: int | None
    """Index of the block, from 0; None for a site that is named by its module's path."""
    kind: Kind | Side
    path: str = ""
    """The module's path, where `layer` is None."""

    @property
    def key(self) -> str:
        """Our name, as in studies, files and legends."""
        return f"{self.path}.{self.kind}" if self.layer is None else f"layers.{self.layer}.{self.kind}"

    @property
    def transformer_lens(self) -> str | None:
        """The same place as a TransformerLens hook; None for a module's path, which has no such name."""
        hooks = {"residual": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "attn.hook_z"}
        return None if self.layer is None else f"blocks.{self.layer}.{hooks[self.kind]}"

    @property
    def gemma_scope(self) -> str:
        """The same place in Gemma Scope 2's grammar, with Gemma's module names; a module's path is itself."""
        parts = {
            "residual": "output",
            "mlp": "post_feedforward_layernorm.output",
            "attention": "self_attn.o_proj.input",
        }
        return self.key if self.layer is None else f"model.layers.{self.layer}.{parts[self.kind]}"

    @property
    def names(self) -> dict[str, str]:
        """What other tools call it, by tool."""
        known = {"gemma_scope": self.gemma_scope, "transformer_lens": self.transformer_lens}
        return {tool: name for tool, name in known.items() if name is not None}


def parse_site(name: str | Site) -> Site:
    """The site of that name: ours, `model.layers.1.output`, `blocks.1.hook_resid_post`, a module's `….input`, …

    Raises SiteError with the closest name. Whether a model has the module, only the model knows.
    """
    if isinstance(name, Site):
        return name
    text = name.strip()
    for pattern, kind in _GRAMMAR:
        if match := pattern.fullmatch(text):
            return Site(int(match[1]), kind)
    if (match := _BEFORE.fullmatch(text)) and int(match[1]) > 0:
        return Site(int(match[1]) - 1, "residual")  # what enters a block is what the one before passed on
    if match := _MODULE.fullmatch(text):
        return Site(None, "input" if match[2] == "input" else "output", match[1])
    number = re.search(r"\d+", text)
    layer = int(number[0]) if number else 0
    ways = [*(Site(layer, kind).key for kind in KINDS), "PATH.input", "PATH.output"]
    raise SiteError(f"there is no site {name!r}.{nearest(text, ways)}")
