"""The device that SAEs are trained on, and the number of CPU threads."""

from __future__ import annotations

import torch

from jumpahead.errors import StudyError
from jumpahead.sae.recipe import TrainConfig


def training_device(config: TrainConfig) -> torch.device:
    """Return the device that SAEs are trained on.

    Raises StudyError if the study requires a GPU and torch finds none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise StudyError('train.device = "cuda": torch sees no GPU here; leave it out to train on the CPU.')
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_threads(threads: int | None) -> None:
    """Set torch's number of CPU threads. If `threads` is None, keep torch's default, one thread per core."""
    if threads is not None:
        torch.set_num_threads(threads)
