"""The study's `[activations]` table: sites, origin and shuffling of activations. No torch at import."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import SiteError
from jumpahead.lm.sites import parse_site
from jumpahead.storage.layout import require_safe_name


class ActivationsConfig(BaseModel):
    """The sites, the origin and the shuffling of the activations that SAEs are trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    sites: tuple[str, ...] = Field(default=("layers.1.residual",), min_length=1)
    """Sites in the model; each gets its own SAEs, all trained on the same forward passes."""
    origin: str = "live"
    """`live` runs the model while training, `shards` writes activations to disk first; `tensors` (files, or what
    `train_on` was given) and `synthetic` need no model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype that activations are rounded to, on disk or not: `live` and `shards` give the same bytes."""
    block: int = Field(default=256, ge=1, le=10**9)
    """Contexts whose activations are shuffled together; memory is block × context × width."""
    scale_rows: int = Field(default=50_000, ge=1, le=10**12)
    """Activations from which the scale and the mean are measured."""
    options: dict[str, Any] = {}
    """Options of the origin, for instance the dictionary size of `synthetic`."""

    @model_validator(mode="before")
    @classmethod
    def _canonicalize_sites(cls, raw: Any) -> Any:
        """Return the raw table with canonical site names (see `canonical_site`), without duplicates."""
        sites = raw.get("sites") if isinstance(raw, dict) else None
        if not isinstance(sites, list | tuple) or not all(isinstance(site, str) for site in sites):
            return raw
        origin = str(raw.get("origin", "live"))
        return {**raw, "sites": tuple(dict.fromkeys(canonical_site(site, origin) for site in sites))}


def canonical_site(name: str, origin: str) -> str:
    """Return the canonical name of a site, such as `layers.1.residual`, for any accepted spelling.

    If the origin needs no LM, other names are returned unchanged. Raises SiteError if the name is not a site of a LM,
    ArtefactError if the name is not a safe folder name, StudyError if the origin does not exist.
    """
    try:
        return parse_site(name).key
    except SiteError:
        if ORIGINS.get(origin).needs_lm:
            raise
    return require_safe_name(name)
