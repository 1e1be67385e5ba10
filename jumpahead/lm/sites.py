"""Sites: the points in a language model at which an SAE reads activations. No torch here.

layers.3.residual    output of block 3, which block 4 takes                  width of the model
layers.3.mlp         what the MLP of block 3 adds to the residual stream     width of the model
layers.3.attention   input of block 3's output projection, heads concatenated
PATH.input           input of the module with that path in the model: model.layers.3.mlp.down_proj.input
PATH.output          output of the module with that path: model.embed_tokens.output, model.layers.3.mlp.output
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

from jumpahead.errors import SiteError, did_you_mean
from jumpahead.interchange.hook_names import gemma_scope_name, is_module_path, parse_block_site, transformer_lens_name

Kind = Literal["residual", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("residual", "mlp", "attention")
Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")

_MODULE_SIDE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\.(input|output)")


class Site(NamedTuple):
    """A site: residual stream, MLP or attention of a block, or the input or output of any module."""

    layer: int | None
    """Index of the decoder block, from 0; None for a site given by a module path."""
    kind: Kind | Side
    path: str = ""
    """Path of the module in the model if `layer` is None, else empty."""

    @property
    def key(self) -> str:
        """Return the site's name in studies, files and legends."""
        return f"{self.path}.{self.kind}" if self.layer is None else f"layers.{self.layer}.{self.kind}"

    @property
    def transformer_lens(self) -> str | None:
        """Return the site's name in TransformerLens, or None for a site given by a module path."""
        return None if self.layer is None else transformer_lens_name(self.key)

    @property
    def gemma_scope(self) -> str:
        """Return the site's name in Gemma Scope 2; a site given by a module path keeps its key."""
        return gemma_scope_name(self.key)

    @property
    def names_elsewhere(self) -> dict[str, str]:
        """Return a dict from tool (`gemma_scope`, `transformer_lens`) to the site's name in the tool."""
        known = {"gemma_scope": self.gemma_scope, "transformer_lens": self.transformer_lens}
        return {tool: name for tool, name in known.items() if name is not None}


def parse_site(name: str | Site) -> Site:
    """Parse a site name: `layers.1.mlp`, `model.layers.1.output`, `blocks.1.hook_resid_post`, `PATH.input`, …

    Raises SiteError, suggesting the closest valid name, if the name is invalid. The existence of the module is checked
    later, on the loaded model.
    """
    if isinstance(name, Site):
        return name
    text = name.strip()
    block = parse_block_site(text)
    if block and not is_module_path(text):
        return Site(block[0], cast(Kind, block[1]))
    if match := _MODULE_SIDE.fullmatch(text):
        return Site(None, "input" if match[2] == "input" else "output", match[1])
    number = re.search(r"\d+", text)
    layer = int(number[0]) if number else 0
    valid = [*(Site(layer, kind).key for kind in KINDS), "PATH.input", "PATH.output"]
    raise SiteError(f"there is no site {name!r}.{did_you_mean(text, valid)}")
