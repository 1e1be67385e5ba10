"""Activations, wherever they come from: one origin, one file.

A new origin is a new file here with one class that extends `base.Activations`; nothing else is edited. No torch here.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jumpahead.errors import StudyError, nearest
from jumpahead.lm.sites import parse_site

if TYPE_CHECKING:
    from jumpahead.activations.base import Activations

_NOT_ORIGINS = {"ahead", "base", "blocks"}


class ActivationsConfig(BaseModel):
    """Which activations SAEs are trained on, and how they are shuffled."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sites: tuple[str, ...] = Field(default=("layers.1.residual",), min_length=1)
    """Places in the model; each gets its own SAEs, all from the same forward passes."""
    origin: str = "live"
    """`live` runs the model while training, `shards` writes activations to disk first, `synthetic` needs no model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What activations are rounded to, on disk or not: `live` and `shards` give the same bytes."""
    block: int = Field(default=256, ge=1)
    """Contexts whose activations are shuffled together; memory is block × context × width."""
    scale_rows: int = Field(default=50_000, ge=1)
    """Activations that the scale and the mean are measured on."""
    options: dict[str, Any] = {}
    """Settings of the origin's own, for instance of `synthetic`: its dictionary's size."""

    @field_validator("sites", mode="after")
    @classmethod
    def _canonical(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse_site(site).key for site in sites))


def names() -> list[str]:
    """Every origin: the files of this folder."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in found if name not in _NOT_ORIGINS and not name.startswith("_"))


def origin(name: str) -> type[Activations]:
    """The origin of that name; StudyError with the nearest name. Imports torch."""
    if name not in names():
        raise StudyError(f"there is no origin of activations called '{name}'.{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}").Origin
