"""Bootstrap over seeds: weights of the SAEs of one sparsity setting in each replicate.

    R  bootstrap replicates     S  SAEs with the same sparsity setting, one per seed

Replicate r draws seeds with replacement; all settings and series of a panel use the same draws:

    value(setting, r) = Σ_s w_rs · value(setting, seed s, r)      w_rs = 1/S + √(S/(S−1)) · (drawn_rs/S − 1/S)

The weights w give the weighted mean the variance of a mean of S independent seeds; plain resampling would give only
(S−1)/S of this variance. If a study crosses initialisation seeds with data-order seeds, each is drawn separately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jumpahead.resampling import replicate_weights

Seeds = tuple[int, int]
"""(sae_seed, stream_seed): the seeds of the initialisation and of the order of the training data."""


def seeds_of(point: Mapping[str, Any]) -> Seeds:
    """Return the two seeds of an SAE in frontier.json."""
    return point["sae_seed"], point["stream_seed"]


def seed_weights(group: Sequence[Seeds], panel_seeds: Sequence[Seeds], replicates: int) -> np.ndarray:
    """Return the weights of the SAEs of one sparsity setting in each replicate, [1 + R, S] float64; rows sum to 1.

    Row 0 has equal weights. group: seeds of the S SAEs. panel_seeds: seeds of all SAEs of the panel; settings and
    series with equal `panel_seeds` share the draws. Draws of seeds that `group` lacks are ignored.
    """
    size = len(group)
    weights = np.full((1 + replicates, size), 1 / size)
    if size == 1:
        return weights
    axes = _seed_axes(panel_seeds)
    draws = [replicate_weights(len(axis), replicates, seed=1 + i) for i, axis in enumerate(axes)]
    columns = [[axis.index(pair if len(axes) == 1 else pair[i]) for pair in group] for i, axis in enumerate(axes)]
    drawn = [draw[:, column] for draw, column in zip(draws, columns, strict=True)]
    if size == math.prod(map(len, axes)):  # no seed is missing: rescale each axis separately
        spread = [
            _rescale_to_unbiased_variance(draw / len(axis), len(axis)) for draw, axis in zip(drawn, axes, strict=True)
        ]
        weights[1:] = np.prod(spread, axis=0)
    else:
        both = np.prod(drawn, axis=0)
        total = both.sum(axis=1, keepdims=True)
        weights[1:] = _rescale_to_unbiased_variance(np.where(total > 0, both / np.maximum(total, 1), 1 / size), size)
    return weights


def _seed_axes(panel_seeds: Sequence[Seeds]) -> list[list]:
    """Return the lists to draw from: one of seed pairs, or if the study crosses seeds, one per kind of seed."""
    pairs = sorted(set(panel_seeds))
    saes, streams = sorted({sae for sae, _ in pairs}), sorted({stream for _, stream in pairs})
    return [pairs] if len(pairs) == max(len(saes), len(streams)) else [saes, streams]


def _rescale_to_unbiased_variance(drawn: np.ndarray, size: int) -> np.ndarray:
    """Return weights `drawn` with their deviations from 1/size multiplied by √(size / (size − 1)).

    drawn: share of draws per seed, [R, size]. The result has the variance of `size` independent seeds.
    """
    return 1 / size + math.sqrt(size / (size - 1)) * (drawn - 1 / size)
