"""Warm starts: SAEs of any make, named in `start_from`, whose parameters training starts from.

Their digest is recorded in the run, so that SAEs that are done stay done if the folder is gone, or without network."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, final

from jumpahead import formats
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import digest_file
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import SAEFolder
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import Series, Study

NORM_TOLERANCE = 1e-3
"""Accepted deviation from 1 of the row norms of W_dec in a warm-start SAE: training assumes unit rows."""


@final
class WarmStarts:
    """The warm-start SAEs of a study's series, each loaded once."""

    def __init__(self, study: Study, run: Run) -> None:
        self.study, self.run = study, run
        self._loaded: dict[str, tuple[SAE, list[Any]]] = {}

    def load(self, series: Series) -> SAE:
        """Return the warm-start SAE of a series.

        Raises StudyError if the SAE is unreadable or does not match the series in architecture, width or decoder norms.
        """
        assert series.start_from is not None
        refused = f"series '{series.name}' cannot start from {series.start_from}"
        if series.start_from not in self._loaded:
            self._loaded[series.start_from] = self._read(series.start_from, refused)
        sae, _ = self._loaded[series.start_from]
        for fits, reason in (
            (sae.architecture == series.architecture, f"the series is {series.architecture}"),
            (self.study.sae.width == (sae.width,), f"sae.width must be {sae.width} alone"),
        ):
            if not fits:
                raise StudyError(f"{refused}, an {sae!r}: {reason}.")
        return sae

    def _read(self, name: str, refused: str) -> tuple[SAE, list[Any]]:
        """Load the SAE at the address `name`; return it with its digest inputs, which are recorded in the run.

        Its decoder rows have norm one, as in training: f_j becomes ‖d_j‖·f_j, which leaves x̂ as it is. Raises
        StudyError, starting with `refused`, if it cannot be read, or if its rows cannot be scaled.
        """
        try:
            sae = formats.load(name)
        except (ArtefactError, StudyError) as exc:
            raise StudyError(f"{refused}: {exc}") from exc
        inputs = [_weights_digest(name, sae), sae.about.get("sparsity_coefficient")]
        norms = sae.params["W_dec"].norm(dim=1)
        if not bool((norms - 1).abs().max() < NORM_TOLERANCE):
            try:
                sae = sae.with_unit_decoder_rows()
            except DataError as exc:
                raise StudyError(
                    f"{refused}, an {sae!r}: rows of W_dec have norms from {norms.min():.3g} to {norms.max():.3g}, and "
                    "training keeps them at 1, which would change the features that it keeps."
                ) from exc
            if not bool(norms.min() > 0):
                raise StudyError(f"{refused}, an {sae!r}: {int((norms == 0).sum()):,} rows of W_dec are zero.")
        self._store(name, inputs)
        return sae, inputs

    def digest_inputs(self, series: Series) -> list[Any]:
        """Return the digest inputs of a series' warm-start SAE: the digest of its weights, and its λ.

        If the SAE's folder is missing, or it is on the hub, return the values recorded in the run.
        """
        name = str(series.start_from)
        is_gone = not Path(name).expanduser().exists()
        if is_gone and name in self._stored:
            return self._stored[name]
        self.load(series)
        return self._loaded[name][1]

    @cached_property
    def _stored(self) -> dict[str, list[Any]]:
        """Return the recorded digest inputs by address of the warm-start SAE."""
        return read_json(self.run.warm_starts) if self.run.warm_starts.exists() else {}

    def _store(self, name: str, inputs: list[Any]) -> None:
        """Record the digest inputs of the SAE at the address `name`, if the run exists: SAE digests depend on them."""
        if self._stored.get(name) != inputs and self.run.manifest.exists():
            self._stored[name] = inputs
            write_json(self.run.warm_starts, self._stored)


def _weights_digest(name: str, sae: SAE) -> str:
    """Return the digest of the weights of an SAE: of jumpahead's own file of weights, or of the parameters."""
    weights = SAEFolder(Path(name).expanduser()).weights
    return digest_file(weights) if weights.is_file() else sae.digest
