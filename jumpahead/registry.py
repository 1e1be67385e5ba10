"""Registries of plug-ins (architectures, text sources, activation origins), listed by name without importing them.

The members of a registry are the files of its folder, the entry points that other packages declare, and classes passed
to `register` in this process. The command line, the pipeline, tests and legends iterate over registries, so that
adding a member needs no other change. Imports no torch.

    [project.entry-points."jumpahead.architectures"]        # in the pyproject.toml of another package
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cached_property
from importlib import metadata
from typing import Any, final

from jumpahead.errors import StudyError, did_you_mean


@final
class Registry:
    """Classes by name: one per file of a package, plus entry points of other packages and classes added at run time.

    kind: what a member is called in error messages, such as `architecture`.
    package: the package to list; the name of a file is the name of its member.
    attribute: the variable that each file assigns its class to.
    group: the entry-point group in which other packages declare members.
    """

    def __init__(self, kind: str, package: str, attribute: str, group: str) -> None:
        self.kind, self.package, self.attribute, self.group = kind, package, attribute, group
        self._registered: dict[str, type[Any]] = {}

    def names(self) -> list[str]:
        """Return the names of all members in alphabetical order, without importing the members."""
        return sorted({*self._files, *self._entry_points, *self._registered})

    def get(self, name: str) -> type[Any]:
        """Return the class called `name`. Raises StudyError, suggesting a similar name, if no member has this name."""
        if name in self._registered:
            return self._registered[name]
        if name in self._files:
            return getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)
        entry_point = self._entry_points.get(name)
        if entry_point is None:
            raise StudyError(f"There is no {self.kind} '{name}'.{did_you_mean(name, self.names())}")
        try:
            return entry_point.load()
        except (ImportError, AttributeError) as exc:
            raise StudyError(
                f"{self.kind} '{name}' is declared by {entry_point.value}, which cannot be loaded: {exc}"
            ) from exc

    def register(self, member: type[Any], name: str) -> None:
        """Add a class under a name, in this process. Raises StudyError if another member has that name."""
        declared = self._entry_points.get(name)
        is_declared_as_other = declared is not None and declared.value != f"{member.__module__}:{member.__qualname__}"
        if self._registered.get(name, member) is not member or name in self._files or is_declared_as_other:
            raise StudyError(f"The name '{name}' is taken by another {self.kind}: choose a different one.")
        self._registered[name] = member

    @cached_property
    def _files(self) -> list[str]:
        """Return the names of the package's files, without suffix."""
        package = importlib.import_module(self.package)
        return [module.name for module in pkgutil.iter_modules(package.__path__)]

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        """Return the entry points of other packages, by name; `get` prefers a file of the folder with the same name."""
        return {entry_point.name: entry_point for entry_point in metadata.entry_points(group=self.group)}
