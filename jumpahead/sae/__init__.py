"""Sparse autoencoders as mathematics: one paper, one file.

Every file in this folder that is not named in `SUPPORT` is an architecture; nothing else lists them. The registry reads
file names, so that listing architectures imports no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from jumpahead.errors import StudyError, nearest

if TYPE_CHECKING:
    from jumpahead.sae.base import Architecture

SUPPORT = frozenset({"__init__", "base", "ste", "control", "recipe", "auxk", "threshold", "checked"})


def names() -> list[str]:
    """The architectures there are, in alphabetical order."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SUPPORT)


def architecture(name: str) -> type[Architecture]:
    """The class of the architecture `name`; StudyError with the nearest name where there is none."""
    if name not in names():
        raise StudyError(f"There is no architecture '{name}'.{nearest(name, names())}")
    return importlib.import_module(f"jumpahead.sae.{name}").ARCHITECTURE
