"""Warm starts: the SAEs that series name in `start_from`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, final

from jumpahead.errors import ArtefactError, StudyError
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import digest_file
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import SAEFolder
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import Series, Study

NORM_TOLERANCE = 1e-3
"""How far the norms of rows of W_dec may be from 1 in an SAE to start from: training keeps them at 1."""


@final
class WarmStarts:
    """The SAEs that the series of one study start from, each loaded once."""

    def __init__(self, study: Study, run: Run) -> None:
        self.study, self.run = study, run
        self._loaded: dict[str, tuple[SAE, list[Any]]] = {}

    def load(self, series: Series) -> SAE:
        """Return the SAE that those of a series start from.

        Raises StudyError if it cannot be read, or its architecture, width or decoder norms do not fit the series.
        """
        assert series.start_from is not None
        refused = f"series '{series.name}' cannot start from {series.start_from}"
        if series.start_from not in self._loaded:
            self._loaded[series.start_from] = self._read(series.start_from, refused)
        found, _ = self._loaded[series.start_from]
        for fits, what in (
            (found.architecture == series.architecture, f"the series is {series.architecture}"),
            (self.study.sae.width == (found.width,), f"sae.width must be {found.width} alone"),
        ):
            if not fits:
                raise StudyError(f"{refused}, an {found!r}: {what}.")
        return found

    def _read(self, name: str, refused: str) -> tuple[SAE, list[Any]]:
        path = Path(name).expanduser()
        try:
            found = SAE.load(path)
        except ArtefactError as exc:
            raise StudyError(f"{refused}: {exc}") from exc
        norms = found.params["W_dec"].norm(dim=1)
        if not bool((norms - 1).abs().max() < NORM_TOLERANCE):
            raise StudyError(
                f"{refused}, an {found!r}: rows of W_dec have norms from {norms.min():.3g} to {norms.max():.3g}, "
                "and training keeps them at 1: scale rows, W_enc, biases and thresholds accordingly."
            )
        inputs = [digest_file(SAEFolder(path).weights), found.about.get("sparsity_coefficient")]
        self._store(name, inputs)
        return found, inputs

    def digest_inputs(self, series: Series) -> list[Any]:
        """Return what is digested of a series' warm start; the recorded values if its folder is gone."""
        name = str(series.start_from)
        is_gone = not Path(name).expanduser().exists()
        if is_gone and name in self._stored:
            return self._stored[name]
        self.load(series)
        return self._loaded[name][1]

    @cached_property
    def _stored(self) -> dict[str, list[Any]]:
        return read_json(self.run.warm_starts) if self.run.warm_starts.exists() else {}

    def _store(self, name: str, inputs: list[Any]) -> None:
        """Record the digest inputs in a run that exists: its finished SAEs are keyed by them."""
        if self._stored.get(name) != inputs and self.run.manifest.exists():
            self._stored[name] = inputs
            write_json(self.run.warm_starts, self._stored)
