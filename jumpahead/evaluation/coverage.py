"""Width of bootstrap intervals with few documents of unequal length.

    G    clusters of documents, n_g tokens each          h_g = n_g / Σ n     share of cluster g in the tokens

Intervals are percentiles of bootstrap replicates. A bootstrap underestimates the variance, most where a few documents
hold most of the tokens, and its percentiles are those of a normal distribution instead of Student's t. With one effect
u_g of variance σ² per document, a mean over tokens ρ = Σ h_g·u_g has the variance σ²·Σ h², while the variance between
replicates has the expectation

    E Σ h_g²·(u_g − ρ)² = σ²·(Σ h² − 2·Σ h³ + (Σ h²)²)

Deviations of replicates from their mean are therefore multiplied by

    √( Σ h² / (Σ h² − 2·Σ h³ + (Σ h²)²) ) · t(0.975; 1/Σ h² − 1) / 1.96

1/Σ h² is the effective number of documents. With documents of equal length this is √(G/(G−1)) and G − 1 degrees of
freedom. The factor is the same for all SAEs and metrics, so that differences of SAEs stay paired. docs/LOG.md has the
measured coverage.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from jumpahead.frontier import CONFIDENCE_LEVEL


def effective_clusters(tokens: np.ndarray) -> float:
    """Return the effective number of clusters, (Σ n)² / Σ n²: G for equal clusters. tokens: n_g, [G]."""
    n = np.asarray(tokens, np.float64)
    return float(n.sum() ** 2 / (n**2).sum())


def interval_expansion(tokens: np.ndarray) -> float:
    """Return the factor that deviations of replicates are multiplied by; inf if one cluster has all the tokens.

    tokens: number of tokens of each cluster, n_g, [G].
    """
    share = np.asarray(tokens, np.float64) / np.sum(tokens)
    second, third = float((share**2).sum()), float((share**3).sum())
    observed = second - 2 * third + second**2
    if observed <= 1e-12:
        return math.inf
    level = (1 + CONFIDENCE_LEVEL) / 2
    degrees_of_freedom = max(1.0, effective_clusters(tokens) - 1)
    return math.sqrt(second / observed) * t_quantile(level, degrees_of_freedom) / NormalDist().inv_cdf(level)


def t_quantile(level: float, degrees_of_freedom: float) -> float:
    """Return the quantile of Student's t distribution, within 0.1 % from 3 degrees of freedom on.

    Uses the expansion in powers of 1/ν, Abramowitz and Stegun 26.7.5.
    """
    z, nu = NormalDist().inv_cdf(level), degrees_of_freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / nu ** (i + 1) for i, term in enumerate(terms))
