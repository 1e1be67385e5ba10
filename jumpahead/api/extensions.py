"""Function that adds architectures, origins, sources and formats from outside the package."""

from __future__ import annotations

from typing import Any

from jumpahead.errors import StudyError


def register(member: type[Any], name: str | None = None) -> type[Any]:
    """Add a subclass of Architecture, Activations, Source, Format or Sink to its registry in this process; return it.

    name: its name in studies; by default the class's `name`, or the class name in lower case. Usable as a decorator. To
    add it in every process, declare an entry point instead (registry.py). Raises StudyError if the name is taken, or if
    the class extends none of the five.
    """
    from jumpahead.activations.base import Activations
    from jumpahead.activations.origins import ORIGINS
    from jumpahead.formats import FORMATS
    from jumpahead.interchange.format import Format
    from jumpahead.sae.architecture import Architecture
    from jumpahead.sae.architectures import ARCHITECTURES
    from jumpahead.text.source import Source
    from jumpahead.text.sources import SOURCES
    from jumpahead.training.sink import Sink
    from jumpahead.training.sinks import SINKS

    registries = (
        (Architecture, ARCHITECTURES), (Activations, ORIGINS), (Source, SOURCES), (Format, FORMATS), (Sink, SINKS),
    )  # fmt: skip
    for base, registry in registries:
        if isinstance(member, type) and issubclass(member, base):
            registry.register(member, name or getattr(member, "name", "") or member.__name__.lower())
            return member
    raise StudyError(f"register: {member!r} extends neither Architecture, Activations, Source, Format nor Sink.")
