"""Open folders: one file per architecture, text source, activation origin; listed by name without importing them.

A registry lists the files of its folder, what other packages declare as entry points, and what `register` was given in
this process. Nothing else in the package repeats such a list: the command line, the sweep, the conformance tests and
the legends iterate a registry. No torch here.

    [project.entry-points."jumpahead.architectures"]        # in the pyproject.toml of another package
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from importlib import metadata
from typing import Any, final

from jumpahead.errors import StudyError, nearest


@final
class Registry:
    """The members of one open folder, by name.

    kind: what one is called in sentences, such as `architecture`. package: the folder, whose files are the names.
    attribute: the class that each file defines. group: the entry-point group of other packages.
    """

    def __init__(self, kind: str, package: str, attribute: str, group: str) -> None:
        self.kind, self.package, self.attribute, self.group = kind, package, attribute, group
        self._registered: dict[str, type[Any]] = {}

    def names(self) -> list[str]:
        """Return all names in alphabetical order, without importing what they name."""
        return sorted({*self._files(), *self._entry_points(), *self._registered})

    def get(self, name: str) -> type[Any]:
        """Return the class called `name`. Raises StudyError with the nearest name if there is none."""
        if name in self._registered:
            return self._registered[name]
        if name in self._files():
            return getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)
        found = self._entry_points().get(name)
        if found is None:
            raise StudyError(f"There is no {self.kind} '{name}'.{nearest(name, self.names())}")
        try:
            return found.load()
        except (ImportError, AttributeError) as exc:
            raise StudyError(
                f"{self.kind} '{name}' is declared by {found.value}, which cannot be loaded: {exc}"
            ) from exc

    def register(self, member: type[Any], name: str) -> None:
        """Add a class under a name in this process. Raises StudyError if another one has that name."""
        if self._registered.get(name, member) is not member or name in self._files():
            raise StudyError(f"The name '{name}' is taken by another {self.kind}: choose a different one.")
        self._registered[name] = member

    def _files(self) -> Iterable[str]:
        package = importlib.import_module(self.package)
        return [module.name for module in pkgutil.iter_modules(package.__path__)]

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        """Return the entry points of other packages; a file of the folder takes precedence over one of its name."""
        return {found.name: found for found in metadata.entry_points(group=self.group)}
