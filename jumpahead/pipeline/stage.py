"""The base class of pipeline stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jumpahead.pipeline.resources import Resources


class Stage(ABC):
    """A stage of the pipeline. `run` writes files; `inputs` and `is_done` only read files."""

    name: ClassVar[str]
    """The stage's name, one of `pipeline.STAGES`."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.study, self.folder, self.progress = resources.study, resources.run, resources.progress
        self.provenance = resources.provenance

    @abstractmethod
    def inputs(self) -> str:
        """Return the digest of all inputs of the stage's results."""

    @abstractmethod
    def is_done(self) -> bool:
        """Return True if the stage's results for these inputs are on disk, or the study does not need them."""

    @abstractmethod
    def run(self) -> None:
        """Compute the missing results and write them to the run's folder."""
