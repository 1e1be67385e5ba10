"""What a stage of the pipeline is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jumpahead.pipeline.resources import Resources


class Stage(ABC):
    """One stage of a run. Only `run` writes files; `inputs` and `is_done` read them."""

    name: ClassVar[str]
    """One of `pipeline.STAGES`."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.study, self.folder, self.progress = resources.study, resources.run, resources.progress
        self.provenance = resources.provenance

    @abstractmethod
    def inputs(self) -> str:
        """Return the digest of everything that the stage's results depend on."""

    @abstractmethod
    def is_done(self) -> bool:
        """Return whether the results of these inputs are on disk, or the study needs none."""

    @abstractmethod
    def run(self) -> None:
        """Make the results that are missing, and write them to the run's folder."""
