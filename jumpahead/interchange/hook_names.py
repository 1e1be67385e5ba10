"""Names of a block's sites in jumpahead, Hugging Face models (Gemma Scope 2) and TransformerLens. No torch here."""

from __future__ import annotations

import re

TRANSFORMER_LENS = {"residual": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "attn.hook_z"}
"""Name of each kind of site within a block of TransformerLens."""
GEMMA_SCOPE = {
    "residual": "output",
    "mlp": "post_feedforward_layernorm.output",
    "attention": "self_attn.o_proj.input",
}
"""Name of each kind of site within a block in Gemma Scope 2."""

_BLOCK_LIST = r"(?:[\w.]+\.)?(?:layers|h|blocks)"
# In each pattern the first group is the block's index.
_BLOCK_SITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_BLOCK_LIST}\.(\d+)\.(?:residual|output|hook_resid_post)"), "residual"),
    (re.compile(rf"{_BLOCK_LIST}\.(\d+)\.(?:mlp|(?:mlp|post_feedforward_layernorm)\.output|hook_mlp_out)"), "mlp"),
    (
        re.compile(
            rf"{_BLOCK_LIST}\.(\d+)\.(?:attention|attn\.hook_z"
            r"|(?:self_attn|attn|attention)\.(?:o_proj|out_proj|c_proj|dense)\.input)"
        ),
        "attention",
    ),
)
_INNER_MODULE = re.compile(rf"{_BLOCK_LIST}\.\d+(?:\.\w+)+\.(?:input|output)")
_BLOCK_INPUT = re.compile(rf"{_BLOCK_LIST}\.(\d+)\.(?:hook_resid_pre|input)")


def parse_block_site(name: str) -> tuple[int, str] | None:
    """Return the block's index and the kind (residual, mlp or attention) of a site name; None for any other name."""
    for pattern, kind in _BLOCK_SITES:
        if match := pattern.fullmatch(name):
            return int(match[1]), kind
    if (match := _BLOCK_INPUT.fullmatch(name)) and int(match[1]) > 0:
        return int(match[1]) - 1, "residual"  # a block's input is the output of the one before it
    return None


def is_module_path(name: str) -> bool:
    """Return True if a name is the path of a module inside a block with its side, such as `h.3.mlp.output`.

    Such a name means that module, also where it is not what the family adds to the stream.
    """
    return _INNER_MODULE.fullmatch(name) is not None


def site_name(name: str) -> str:
    """Return jumpahead's name for a site of any library, such as `layers.3.residual`; other names are kept."""
    found = parse_block_site(name)
    return name if found is None else f"layers.{found[0]}.{found[1]}"


def transformer_lens_name(site: str) -> str:
    """Return the name of a site in TransformerLens; names of sites that are not a block's are kept."""
    found = parse_block_site(site)
    return site if found is None else f"blocks.{found[0]}.{TRANSFORMER_LENS[found[1]]}"


def gemma_scope_name(site: str) -> str:
    """Return the name of a site in Gemma Scope 2; names of sites that are not a block's are kept."""
    found = parse_block_site(site)
    return site if found is None else f"model.layers.{found[0]}.{GEMMA_SCOPE[found[1]]}"
