"""Sums over held-out text, per cluster, which metrics are computed from, and their totals over clusters.

G  clusters of held-out text: one document each, or several documents     R  bootstrap replicates
d  dimension of the activations                                          M  number of features of the SAE
F  number of true features, which activations are made of; 0 if they are not known
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
    """Sums over held-out text, [G, …] for G clusters; [R, …] for R bootstrap replicates, […] summed over clusters."""

    tokens: np.ndarray
    """[G] number of scored tokens."""
    clean: np.ndarray
    """[G] next-token loss of the unmodified LM in nats, summed over scored tokens."""
    spliced: np.ndarray
    """[G] loss with activations replaced by the SAE's reconstructions, nats, summed over scored tokens."""
    zero: np.ndarray
    """[G] loss with activations set to zero, nats, summed over scored tokens."""
    mean: np.ndarray
    """[G] loss with activations set to the mean activation, nats, summed over scored tokens."""
    kl: np.ndarray
    """[G] KL(clean ‖ spliced) between next-token distributions, nats, summed over scored tokens."""
    rows: np.ndarray
    """[G] number of spliced positions. All fields below are sums over spliced positions."""
    l0: np.ndarray
    """[G] Σ |{i : f_i > 0}|, the number of active features."""
    error: np.ndarray
    """[G] Σ ‖x − x̂‖²."""
    x_sq: np.ndarray
    """[G] Σ ‖x‖²."""
    x_sum: np.ndarray
    """[G, d] Σ x."""
    xhat_sq: np.ndarray
    """[G] Σ ‖x̂‖²."""
    x_dot_xhat: np.ndarray
    """[G] Σ x·x̂."""
    cosine: np.ndarray
    """[G] Σ x·x̂ / (‖x‖‖x̂‖)."""
    firing: np.ndarray
    """[G, M] int32, number of rows on which each feature is active: by far the largest field."""
    outlier_rows: np.ndarray
    """[G] number of outliers (evaluation/outliers.py)."""
    outlier_error: np.ndarray
    """[G] Σ ‖x − x̂‖² over outliers."""
    outlier_x_sq: np.ndarray
    """[G] Σ ‖x‖² over outliers."""
    outlier_x_sum: np.ndarray
    """[G, d] Σ x over outliers."""
    true_firing: np.ndarray
    """[G, F] int64, number of rows on which each true feature is active."""
    matched_firing: np.ndarray
    """[G, F] int64, the same of the feature matched to it; 0 if there is none."""
    both_firing: np.ndarray
    """[G, F] int64, the same of the two together."""

    @classmethod
    def zeros(cls, clusters: int, d: int, width: int, true_features: int = 0) -> Sums:
        """Return sums initialised to zero: int64 for counts (`firing` int32), float64 otherwise.

        G = `clusters`, M = `width`, F = `true_features`.
        """
        truth = ("true_firing", "matched_firing", "both_firing")
        dtypes = {"firing": np.int32, **dict.fromkeys(("tokens", "rows", "l0", "outlier_rows", *truth), np.int64)}
        trailing = {"x_sum": (d,), "outlier_x_sum": (d,), "firing": (width,), **dict.fromkeys(truth, (true_features,))}
        return cls(
            *(np.zeros((clusters, *trailing.get(name, ())), dtypes.get(name, np.float64)) for name in cls._fields)
        )


def totals(sums: Sums, weights: np.ndarray | None = None) -> Sums:
    """Return every field summed over clusters in float64, which is exact for counts below 2⁵³.

    If `weights` [R, G] is given, return R weighted sums over clusters; each field has a leading dimension R.
    Raises ValueError if shapes do not match.
    """
    clusters = len(sums.tokens)
    fields = [np.asarray(field, np.float64) for field in sums]
    if any(len(field) != clusters for field in fields):
        raise ValueError("every field of Sums needs one entry per cluster.")
    if weights is None:
        return Sums(*(field.sum(0) for field in fields))
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != clusters:
        raise ValueError(f"weights must be [R, {clusters}], not {list(weights.shape)}.")
    return Sums(*(weights @ field for field in fields))
