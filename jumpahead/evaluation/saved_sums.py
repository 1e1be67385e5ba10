"""The sums of an unfinished evaluation on disk, from which the same evaluation continues after the last group.

Groups are added in a fixed order, so that an evaluation that was stopped ends in the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jumpahead.errors import ArtefactError
from jumpahead.evaluation.sums import EvaluationSums
from jumpahead.storage.digests import digest_json
from jumpahead.storage.folders import remove_path
from jumpahead.storage.tensors import read_arrays, read_tensors_info, write_tensors


class SavedSums:
    """Writes sums to a folder every `every_s` seconds, and once the evaluation is interrupted."""

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, str],
        is_interrupted: Callable[[], bool] = lambda: False,
        every_s: float = 120.0,
    ) -> None:
        """Write nothing yet. inputs: the digest of the inputs of every SAE's evaluation, by the SAE's name."""
        self.folder, self.inputs, self.is_interrupted, self.every_s = folder, inputs, is_interrupted, every_s
        self._saved = time.monotonic()

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
        if self.is_interrupted() or time.monotonic() - self._saved > self.every_s:
            write_tensors(self._path(totals), dict(_arrays(totals)), {"groups": groups})
            self._saved = time.monotonic()
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
