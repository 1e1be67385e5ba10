"""Standard errors of ratios of sums over clusters, and the weights of bootstrap replicates. Imports numpy only."""

from __future__ import annotations

import numpy as np

MOST_CLUSTERS = 256
"""Maximum number of clusters of documents for the bootstrap. Fewer clusters widen the confidence intervals."""


def ratio_standard_error(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Return the standard error of Σ numerator / Σ denominator over G clusters; inf for one cluster or Σ = 0.

    numerator, denominator: [G]. Uses the ratio estimator of metrics.py. For delta LM loss, call
    `standard_error(spliced - clean, tokens)`.
    """
    y, n = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    clusters, total = len(y), n.sum()
    if clusters < 2 or total == 0:
        return float("inf")
    return float(np.sqrt(clusters / (clusters - 1) * ((y - y.sum() / total * n) ** 2).sum()) / abs(total))


def replicate_weights(clusters: int, replicates: int, seed: int = 0) -> np.ndarray:
    """Return how often each bootstrap replicate draws each cluster, [R, G] int64; each row sums to G.

    The result depends only on the arguments. All SAEs evaluated on the same clusters therefore share the resampled
    texts, and differences of two SAEs can be taken per replicate.
    """
    draws = np.random.default_rng([clusters, seed]).integers(0, clusters, (replicates, clusters))
    rows = np.arange(replicates)[:, None] * clusters
    return np.bincount((draws + rows).ravel(), minlength=replicates * clusters).reshape(replicates, clusters)
