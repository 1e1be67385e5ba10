"""Activations, wherever they come from: one origin, one file.

A new origin is a new file here with one class that extends `base.Activations`; nothing else is edited. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jumpahead.errors import SiteError
from jumpahead.lm.sites import parse_site
from jumpahead.store import safe_name

WITHOUT_LM = frozenset({"synthetic", "tensors"})
"""Origins that need no language model: their sites may have any name, and SAEs are measured by FVU alone."""
LABEL_BYTES = 12
"""Beside every row on disk: its token, document and position, int32 each."""


class ActivationsConfig(BaseModel):
    """Which activations SAEs are trained on, and how they are shuffled."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sites: tuple[str, ...] = Field(default=("layers.1.residual",), min_length=1)
    """Places in the model; each gets its own SAEs, all from the same forward passes."""
    origin: str = "live"
    """`live` runs the model while training, `shards` writes activations to disk first; `tensors` (files, or what
    `train_on` was given) and `synthetic` need no model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What activations are rounded to, on disk or not: `live` and `shards` give the same bytes."""
    block: int = Field(default=256, ge=1)
    """Contexts whose activations are shuffled together; memory is block × context × width."""
    scale_rows: int = Field(default=50_000, ge=1)
    """Activations that the scale and the mean are measured on."""
    options: dict[str, Any] = {}
    """Settings of the origin's own, for instance of `synthetic`: its dictionary's size."""

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, raw: Any) -> Any:
        sites = raw.get("sites") if isinstance(raw, dict) else None
        if not isinstance(sites, list | tuple) or not all(isinstance(site, str) for site in sites):
            return raw
        is_free = raw.get("origin") in WITHOUT_LM
        return {**raw, "sites": tuple(dict.fromkeys(site_key(site, is_free) for site in sites))}


def site_key(name: str, is_free: bool) -> str:
    """What a site is called everywhere: in our own grammar; any name that can be a folder's where there is no LM.

    SiteError for a name that is neither, ArtefactError for one that cannot be a folder's.
    """
    try:
        return parse_site(name).key
    except SiteError:
        if not is_free:
            raise
    return safe_name(name)


def row_bytes(widths: Iterable[int], itemsize: int) -> int:
    """Of one position on disk: its activation at every site, and its labels."""
    return sum(widths) * itemsize + LABEL_BYTES


def ways_to_fit(sites: int, dtype: str) -> str:
    """What to change in a study whose activations do not fit on the disk."""
    ways = ["fewer tokens (text.max_tokens)"]
    ways += ["activations.dtype = 'bfloat16'"] if dtype == "float32" else []
    ways += ["one site at a time"] if sites > 1 else []
    return f"give it {', '.join(ways)}, another --out, or activations.origin = 'live', which keeps nothing"
