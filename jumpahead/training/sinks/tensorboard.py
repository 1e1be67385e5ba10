"""TensorBoard: one event file per SAE. `tensorboard --logdir runs/NAME/logs/tensorboard` shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumpahead.training.sink import Sink


class TensorBoard(Sink):
    """Writes event files; a resumed training replaces the steps that it repeats."""

    needs = "tensorboard"

    def __init__(self, folder: Path, run: str) -> None:
        super().__init__(folder, run)
        self._writers: dict[str, Any] = {}

    def log(self, sae: str, step: int, values: Mapping[str, float]) -> None:
        if sae not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            name = re.sub(r"[^\w.=-]+", "_", sae)
            self._writers[sae] = SummaryWriter(self.folder / name, purge_step=step)
        for key, value in values.items():
            self._writers[sae].add_scalar(key, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


SINK = TensorBoard
