"""A growing buffer of the candidates that screening finds, block by block."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from jumpahead.engine.kernels.numba.entries import FeatureMajorEntries, offsets_from_counts
from jumpahead.engine.kernels.numba.workspace import Workspace


@final
class CandidateBuffer:
    """Candidates of blocks of features, collected in feature-major order."""

    def __init__(self, workspace: Workspace, dtype: Any, width: int):
        self._workspace, self._dtype = workspace, dtype
        self._counts = np.zeros(width, np.int64)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """(token, pre) by first feature."""

    def fill(self, loop: Any, block: np.ndarray, start: int, *arguments: Any) -> None:
        """Run a screening loop over the block of features from `start`; repeat it with more capacity on overflow."""
        size = len(block)
        while True:
            capacity = self._workspace.candidates_per_feature
            tokens = self._workspace.array("tokens", (size * capacity,), np.int32)
            values = self._workspace.array("values", (size * capacity,), self._dtype)
            loop(block, start, *arguments, tokens, values, self._counts)
            used = int(self._counts[start : start + size].sum())
            if used <= size * capacity:
                break
            self._workspace.candidates_per_feature = 1 + -(-used // size) * 5 // 4
        self._blocks[start] = tokens[:used].copy(), values[:used].copy()

    def entries(self) -> FeatureMajorEntries:
        """Return the candidates of all blocks."""
        colptr = offsets_from_counts(self._counts)
        if not self._blocks:
            return FeatureMajorEntries(colptr, np.empty(0, np.int32), np.empty(0, self._dtype))
        blocks = [self._blocks[start] for start in sorted(self._blocks)]
        tokens, values = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return FeatureMajorEntries(colptr, tokens, values)
