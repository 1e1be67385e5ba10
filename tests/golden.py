"""Golden losses: float64 training of every case on data of exact arithmetic, to full precision.

`tests/training/test_training.py` compares them to 1e-9, so that a refactoring that changes a number fails. After an
intended change, state it in the CHANGELOG and record the losses again. A new architecture is recorded by the same
command; until then it is not compared:

    .venv/bin/python -m tests.golden
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import initial_state, train_step
from jumpahead.engine.kernels.torch.layer import TorchKernels
from jumpahead.sae import controller
from jumpahead.sae.recipe import learning_rate_at, sparsity_warmup_share
from tests.engine.cases import CASES, Case

PATH = Path(__file__).with_name("golden_losses.json")
D, WIDTH, TOKENS, STEPS, EVERY = 6, 24, 32, 40, 8


def uniform(*shape: int, key: int) -> Tensor:
    """Return numbers in [0, 1), float64, with the same bits on every machine: raw Philox output."""
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape))) >> 11
    return torch.from_numpy(raw.astype(np.float64).reshape(shape) * 2.0**-53)


def batch(i: int) -> Tensor:
    """Return batch i, [TOKENS, D]: sparse sums of 2·D directions, a mean and noise, by additions and products alone."""
    directions = uniform(2 * D, D, key=1) - 0.5
    active = (uniform(TOKENS, 2 * D, key=1000 + i) < 0.15).double()
    sizes = (0.5 + uniform(TOKENS, 2 * D, key=2000 + i)) * active
    x = (sizes[:, :, None] * directions).sum(1) + 0.25 * (uniform(D, key=2) - 0.5)
    return x + 0.02 * (uniform(TOKENS, D, key=3000 + i) - 0.5)


def losses(case: Case) -> list[float]:
    """Return the loss at every EVERY-th step, then Σ|w| of each parameter, which a wrong last step would change."""
    fixed = {"integral_gain": 0.05, "proportional_gain": 0.02, "dead_after_tokens": 3 * TOKENS}
    fixed |= {"threshold_decay": 2.5, "initial_l0_multiplier": 1.7, "l0_anneal_steps": 21}
    with mock.patch.object(controller, "SMOOTHING", 0.2):  # tuned elsewhere; here it only has to stay
        state = initial_state(case.arch(**fixed), D, WIDTH, 4, batch(900))
        found, recipe = [], state.arch.recipe
        for i in range(STEPS):
            result = train_step(
                state, batch(i), learning_rate_at(recipe, i, STEPS), sparsity_warmup_share(recipe, i), TorchKernels()
            )
            if i % EVERY == EVERY - 1:
                found.append(result.squared_error + result.penalty)
    return [*found, *(float(tensor.abs().sum()) for _, tensor in sorted(state.params.items()))]


def recorded_losses() -> dict[str, list[float]]:
    """Return the recorded losses by label. Raises AssertionError if an architecture is recorded in part."""
    recorded, labels = json.loads(PATH.read_text()), {case.label for case in CASES}
    assert set(recorded) <= labels, "recorded cases that no longer exist"
    architectures = {case.architecture for case in CASES if case.label in recorded}
    missing = [case.label for case in CASES if case.architecture in architectures and case.label not in recorded]
    assert not missing, f"cases that are not recorded: {missing}"
    return recorded


def all_losses() -> dict[str, list[float]]:
    """Return the losses of every case by its label."""
    return {case.label: losses(case) for case in CASES}


if __name__ == "__main__":
    PATH.write_text(json.dumps(all_losses(), indent=1) + "\n")
    print(f"wrote {PATH.name}")
