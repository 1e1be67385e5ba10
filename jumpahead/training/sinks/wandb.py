"""Weights & Biases: one run per SAE, in a group of the study's name, written to disk.

Nothing is sent unless the environment says WANDB_MODE=online; `wandb sync runs/NAME/logs/wandb/wandb/offline-run-*`
sends what is on disk. WANDB_PROJECT names the project, by default jumpahead.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumpahead.training.sink import Sink


class WeightsAndBiases(Sink):
    """Writes runs of Weights & Biases, offline by default."""

    needs = "wandb"

    def __init__(self, folder: Path, run: str) -> None:
        super().__init__(folder, run)
        self._runs: dict[str, Any] = {}

    def log(self, sae: str, step: int, values: Mapping[str, float]) -> None:
        if sae not in self._runs:
            self._runs[sae] = self._open(sae)
        self._runs[sae].log(dict(values), step=step, commit=True)

    def _open(self, sae: str) -> Any:
        """Return a new run for an SAE: no code, no console output and no statistics of the machine are recorded."""
        wandb: Any = importlib.import_module("wandb")

        self.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, disable_code=True, x_disable_stats=True,
            x_disable_meta=True, x_disable_machine_info=True,
        )  # fmt: skip
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jumpahead"), group=self.run, name=sae, dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"), reinit="create_new", settings=settings,
        )  # fmt: skip

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


SINK = WeightsAndBiases
