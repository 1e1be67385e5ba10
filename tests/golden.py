"""Golden losses: float64 training of every case on data of exact arithmetic, to full precision.

`tests/test_train.py` compares them to 1e-9, so that a refactor which changes a number is noticed. After a change
that is meant to change them, say so in the CHANGELOG and write them again:

    .venv/bin/python -m tests.golden
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import fresh_state, step
from jumpahead.engine.kernels.torch.layer import Plain
from jumpahead.sae import controller
from jumpahead.sae.recipe import learning_rate, sparsity_warmup
from tests.engine.cases import CASES, Case

PATH = Path(__file__).with_name("golden_losses.json")
D, WIDTH, TOKENS, STEPS, EVERY = 6, 24, 32, 40, 8


def uniform(*shape: int, key: int) -> Tensor:
    """Float64 in [0, 1), the same bits on every machine: raw Philox output."""
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape))) >> 11
    return torch.from_numpy(raw.astype(np.float64).reshape(shape) * 2.0**-53)


def batch(i: int) -> Tensor:
    """[TOKENS, D] sparse sums of 2·D directions, a mean and a little noise; by additions and products alone."""
    directions = uniform(2 * D, D, key=1) - 0.5
    active = (uniform(TOKENS, 2 * D, key=1000 + i) < 0.15).double()
    sizes = (0.5 + uniform(TOKENS, 2 * D, key=2000 + i)) * active
    x = (sizes[:, :, None] * directions).sum(1) + 0.25 * (uniform(D, key=2) - 0.5)
    return x + 0.02 * (uniform(TOKENS, D, key=3000 + i) - 0.5)


def losses(case: Case) -> list[float]:
    """Loss at every EVERY-th step, then sums over the trained weights: what a wrong last step would move."""
    fixed = {"control_gain": 0.05, "steering": 0.02, "dead_after": 3 * TOKENS}
    fixed |= {"threshold_pull": 2.5, "l0_start": 1.7, "l0_steps": 21}
    with mock.patch.object(controller, "SMOOTHING", 0.2):  # tuned elsewhere; here it only has to stay
        state = fresh_state(case.arch(**fixed), D, WIDTH, 4, batch(900))
        found, recipe = [], state.arch.recipe
        for i in range(STEPS):
            result = step(state, batch(i), learning_rate(recipe, i, STEPS), sparsity_warmup(recipe, i), Plain())
            if i % EVERY == EVERY - 1:
                found.append(result.error + result.penalty)
    return [*found, *(float(tensor.abs().sum()) for _, tensor in sorted(state.p.items()))]


def all_losses() -> dict[str, list[float]]:
    """By the case's label."""
    return {case.label: losses(case) for case in CASES}


if __name__ == "__main__":
    PATH.write_text(json.dumps(all_losses(), indent=1) + "\n")
    print(f"wrote {PATH.name}")
