"""Sites: the places in a language model whose activations an SAE takes. No torch here.

layers.3.residual    what block 3 passes on to block 4                       width = the model's
layers.3.mlp         what the MLP of block 3 adds to the residual stream     width = the model's
layers.3.attention   what enters block 3's output projection, heads concatenated
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from jumpahead.errors import SiteError, nearest

Kind = Literal["residual", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("residual", "mlp", "attention")

_STACKS = r"(?:[\w.]+\.)?(?:layers|h|blocks)"
# Our own, Gemma Scope 2's and TransformerLens's names; in all three the block's index is the first group.
_GRAMMAR: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(rf"{_STACKS}\.(\d+)\.(?:residual|output|hook_resid_post)"), "residual"),
    (re.compile(rf"{_STACKS}\.(\d+)\.(?:mlp|mlp\.output|hook_mlp_out)"), "mlp"),
    (
        re.compile(
            rf"{_STACKS}\.(\d+)\.(?:attention|attn\.hook_z"
            r"|(?:self_attn|attn|attention)\.(?:o_proj|out_proj|c_proj|dense)\.input)"
        ),
        "attention",
    ),
)
_BEFORE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")


class Site(NamedTuple):
    """One place in the model."""

    layer: int
    """Index of the block, from 0."""
    kind: Kind

    @property
    def key(self) -> str:
        """Our name, as in studies, files and legends."""
        return f"layers.{self.layer}.{self.kind}"

    @property
    def transformer_lens(self) -> str:
        """The same place as a TransformerLens hook."""
        hook = {"residual": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "attn.hook_z"}[self.kind]
        return f"blocks.{self.layer}.{hook}"


def parse_site(name: str | Site) -> Site:
    """The site of that name: ours, `model.layers.1.output`, `blocks.1.hook_resid_post`, `hook_mlp_out`, …

    Raises SiteError with the closest name.
    """
    if isinstance(name, Site):
        return name
    text = name.strip()
    for pattern, kind in _GRAMMAR:
        if match := pattern.fullmatch(text):
            return Site(int(match[1]), kind)
    if (match := _BEFORE.fullmatch(text)) and int(match[1]) > 0:
        return Site(int(match[1]) - 1, "residual")  # what enters a block is what the one before passed on
    number = re.search(r"\d+", text)
    layer = int(number[0]) if number else 0
    raise SiteError(f"there is no site {name!r}.{nearest(text, [Site(layer, kind).key for kind in KINDS])}")
