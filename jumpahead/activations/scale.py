"""Scale and mean of activations. The scale defines the unit that SAEs are trained in: x ← x/C, so that E‖x‖² = 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.activations.base import Activations
from jumpahead.errors import DataError


class Scale(NamedTuple):
    """Scale and mean of the activations at one site."""

    C: float
    """√(mean ‖x‖²): activations divided by C have mean squared norm 1."""
    mean: Tensor
    """float32 [d]: the mean activation, in the language model's unit."""


def measure_scale(activations: Activations, n_rows: int) -> dict[str, Scale]:
    """Return the scale and mean of every site, measured on groups 0, 1, … with at least `n_rows` rows in total.

    Sums are accumulated in float64. Raises DataError if all activations of a site are zero.
    """
    square = dict.fromkeys(activations.widths, 0.0)
    total = {site: torch.zeros(width, dtype=torch.float64) for site, width in activations.widths.items()}
    count = 0
    for group in range(len(activations.rows_per_group)):
        if count >= n_rows:
            break
        for site, rows in activations.rows(group).items():
            exact = rows.to(device="cpu", dtype=torch.float64)
            square[site] += float(exact.square().sum())
            total[site] += exact.sum(0)
        count += int(activations.rows_per_group[group])
    for site, value in square.items():
        if not value > 0:
            raise DataError(f"the activations at {site} are all zero ({count} rows): nothing can be learned there.")
    return {site: Scale((square[site] / count) ** 0.5, (total[site] / count).float()) for site in square}
