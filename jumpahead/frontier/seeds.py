"""Seeds of a setting's SAEs: how much each SAE counts in each bootstrap replicate.

    R  bootstrap replicates     S  SAEs of a setting, one per seed

Replicate r draws seeds, the same for all settings and series of a panel:

    value(setting, r) = Σ_s w_rs · value(setting, seed s, r)      w_rs = 1/S + √(S/(S−1)) · (drawn_rs/S − 1/S)

w spreads the mean of S seeds as widely as S independent seeds do (plain resampling: (S−1)/S of that variance).
Initialisation and data order are drawn separately if a study crosses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jumpahead.metrics import replicate_weights

Seeds = tuple[int, int]
"""(sae_seed, stream_seed)."""


def seeds_of(point: Mapping[str, Any]) -> Seeds:
    """Return the seeds of an SAE of frontier.json."""
    return point["sae_seed"], point["stream_seed"]


def seed_weights(group: Sequence[Seeds], panel_seeds: Sequence[Seeds], replicates: int) -> np.ndarray:
    """Return how much each SAE of a setting counts in each replicate, [1 + R, S]; row 0 is the plain mean.

    Rows sum to 1. All settings and series with the same `panel_seeds` share the draws; a setting that lacks some of
    these seeds draws among those that it has.
    """
    size = len(group)
    weights = np.full((1 + replicates, size), 1 / size)
    if size == 1:
        return weights
    axes = _axes(panel_seeds)
    draws = [replicate_weights(len(axis), replicates, seed=1 + i) for i, axis in enumerate(axes)]
    columns = [[axis.index(pair if len(axes) == 1 else pair[i]) for pair in group] for i, axis in enumerate(axes)]
    drawn = [draw[:, column] for draw, column in zip(draws, columns, strict=True)]
    if size == math.prod(map(len, axes)):  # nothing missing: each axis by itself
        spread = [_spread(draw / len(axis), len(axis)) for draw, axis in zip(drawn, axes, strict=True)]
        weights[1:] = np.prod(spread, axis=0)
    else:
        both = np.prod(drawn, axis=0)
        total = both.sum(axis=1, keepdims=True)
        weights[1:] = _spread(np.where(total > 0, both / np.maximum(total, 1), 1 / size), size)
    return weights


def _axes(panel_seeds: Sequence[Seeds]) -> list[list]:
    """Return what is drawn: [pairs of seeds], or [initialisations, data orders] if the study crosses them."""
    pairs = sorted(set(panel_seeds))
    saes, streams = sorted({sae for sae, _ in pairs}), sorted({stream for _, stream in pairs})
    return [pairs] if len(pairs) == max(len(saes), len(streams)) else [saes, streams]


def _spread(drawn: np.ndarray, size: int) -> np.ndarray:
    """Return the shares drawn of `size` seeds, scaled about 1/size to the variance of independent seeds."""
    return 1 / size + math.sqrt(size / (size - 1)) * (drawn - 1 / size)
