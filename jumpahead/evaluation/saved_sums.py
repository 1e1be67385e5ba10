"""The sums of an unfinished evaluation on disk, from which the same evaluation continues after the last group.

Groups are added in a fixed order, so that an evaluation that was stopped ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jumpahead.errors import ArtefactError
from jumpahead.evaluation.sums import EvaluationSums
from jumpahead.storage.digests import digest_json
from jumpahead.storage.folders import remove_path
from jumpahead.storage.save_schedule import SaveSchedule
from jumpahead.storage.tensors import read_arrays, read_tensors_info, write_tensors


class SavedSums:
    """Writes sums to a folder from time to time, and once the evaluation is interrupted."""

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, str],
        is_interrupted: Callable[[], bool] = lambda: False,
        minutes: float = 2.0,
    ) -> None:
        """Write nothing yet. inputs: the digest of the inputs of every SAE's evaluation, by the SAE's name.

        minutes: the largest time between two saves.
        """
        self.folder, self.inputs, self.is_interrupted = folder, inputs, is_interrupted
        self._schedule = SaveSchedule(minutes)

    def resume(self, totals: Mapping[str, EvaluationSums]) -> int:
        """Read the sums of these SAEs into `totals`, if they are on disk; return the number of groups in them."""
        path = self._path(totals)
        try:
            groups, arrays = int(read_tensors_info(path)["groups"]), read_arrays(path)
        except ArtefactError:
            return 0
        for key, array in _arrays(totals):
            array[...] = arrays[key]
        return groups

    def save_if_due(self, totals: Mapping[str, EvaluationSums], groups: int) -> None:
        """Write the sums after `groups` groups if it is time; if interrupted, then raise KeyboardInterrupt."""
        if self.is_interrupted() or self._schedule.is_due:
            started = self._schedule.clock()
            write_tensors(self._path(totals), dict(_arrays(totals)), {"groups": groups})
            self._schedule.record(started)
        if self.is_interrupted():
            raise KeyboardInterrupt

    def remove(self) -> None:
        """Remove all sums: the evaluations are written."""
        remove_path(self.folder)

    def _path(self, totals: Mapping[str, EvaluationSums]) -> Path:
        """Return the file of the sums of these SAEs."""
        return self.folder / f"{digest_json([self.inputs[name] for name in totals])[:16]}.safetensors"


def _arrays(totals: Mapping[str, EvaluationSums]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every array of the sums with a name for it."""
    for number, measured in enumerate(totals.values()):
        yield from ((f"{number}.{name}", array) for name, array in measured.sums._asdict().items())
        yield from ((f"{number}.documents.{name}", array) for name, array in measured.documents.items())
        yield f"{number}.outlier_firing", measured.outlier_firing
