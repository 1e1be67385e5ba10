"""The 95 % intervals cover the truth in about 95 % of simulated evaluations, with few and unequal documents too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jumpahead.evaluation.coverage import effective_clusters, interval_expansion, t_quantile
from jumpahead.frontier.curve import centre_replicates, estimate_with_interval
from jumpahead.resampling import ratio_standard_error, replicate_weights
from jumpahead.study.schema import EvaluateTable

REPLICATES = EvaluateTable().replicates


@pytest.mark.parametrize(
    ("degrees", "expected"), [(3, 3.18245), (4, 2.77645), (9, 2.26216), (14.5, 2.13791), (36, 2.02809), (1e9, 1.95996)]
)
def test_quantiles_of_students_t(degrees, expected):
    assert t_quantile(0.975, degrees) == pytest.approx(expected, rel=0.0013 if degrees < 5 else 3e-5)
    assert t_quantile(0.025, degrees) == pytest.approx(-expected, rel=0.0013 if degrees < 5 else 3e-5)


def test_equal_documents_have_the_textbook_factor():
    assert effective_clusters(np.full(12, 700)) == pytest.approx(12)
    factor = math.sqrt(12 / 11) * t_quantile(0.975, 11) / 1.959964
    assert interval_expansion(np.full(12, 700)) == pytest.approx(factor, rel=1e-6)
    assert interval_expansion(np.full(100_000, 3)) == pytest.approx(1, abs=1e-4)


def test_the_factor_by_hand():
    tokens = np.array([600, 300, 100])  # Σh² = 0.46, Σh³ = 0.244
    assert effective_clusters(tokens) == pytest.approx(1 / 0.46)
    ratio = 0.46 / (0.46 - 2 * 0.244 + 0.46**2)
    assert interval_expansion(tokens) == pytest.approx(
        math.sqrt(ratio) * t_quantile(0.975, 1 / 0.46 - 1) / 1.959964, rel=1e-6
    )
    assert interval_expansion(np.array([50, 0, 0])) == math.inf
    assert interval_expansion(np.array([50])) == math.inf


def test_the_variance_of_replicates_is_corrected_without_bias():
    """With one effect per document, Σ h²·σ² is the variance of the mean, whatever the lengths."""
    rng = np.random.default_rng(2)
    tokens = np.array([9_000, 4_000, 2_500, 1_000, 800, 500, 500, 300, 300, 100.0])
    share = tokens / tokens.sum()
    effects = 0.7 * rng.normal(size=(40_000, 10))
    residuals = effects - (effects @ share)[:, None]
    between_replicates = ((share * residuals) ** 2).sum(1).mean()  # the bootstrap's variance, for many replicates
    factor = interval_expansion(tokens) / t_quantile(0.975, effective_clusters(tokens) - 1) * 1.959964
    assert factor**2 * between_replicates == pytest.approx(0.49 * (share**2).sum(), rel=0.02)


def lengths(clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths as of the modules of Python's library: their standard deviation is 1.2 times their mean."""
    return np.maximum(20, np.exp(6 + rng.normal(size=clusters)))


def effects(kind: str, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Return one effect per document, with mean 1: normal, or with heavy tails on both sides or on one."""
    if kind == "normal":
        return 1 + 0.3 * rng.normal(size=clusters)
    if kind == "t3":
        return 1 + 0.2 * rng.standard_t(3, size=clusters)
    return np.exp(0.5 * rng.normal(size=clusters) - 0.125)


def coverage(clusters: int, kind: str, times: int, expansion=interval_expansion) -> float:
    """Return how often the interval of a mean over tokens contains its true value, 1."""
    rng, weights, hits = np.random.default_rng(clusters), replicate_weights(clusters, REPLICATES).astype(float), 0
    for _ in range(times):
        tokens = lengths(clusters, rng)
        nats = tokens * effects(kind, clusters, rng)
        value, drawn = nats.sum() / tokens.sum(), (weights @ nats) / (weights @ tokens)
        found = estimate_with_interval(np.concatenate([[value], centre_replicates(value, drawn, expansion(tokens))]))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 <= found.high
    return hits / times


@pytest.mark.parametrize("kind", ["normal", "t3", "lognormal"])
@pytest.mark.parametrize("clusters", [20, 37])
def test_intervals_cover_with_few_unequal_documents(clusters, kind):
    assert 0.92 < coverage(clusters, kind, 500) < 0.985  # 0.95 ± 3 simulation errors


def test_plain_percentiles_do_not_cover():
    def plain(tokens: np.ndarray) -> float:
        return math.sqrt(len(tokens) / (len(tokens) - 1))

    assert coverage(37, "lognormal", 500, plain) < 0.915


def test_intervals_of_a_run_are_as_wide_as_the_standard_error_says():
    """All SAEs of a run share the draws, so that all their intervals would be too narrow together: 200 are too few."""
    tokens = np.full(150, 400)
    weights = replicate_weights(150, REPLICATES).astype(float)
    ratios = []
    for seed in range(20):
        nats = tokens * (1 + 0.3 * np.random.default_rng(seed).normal(size=150))
        value = nats.sum() / tokens.sum()
        drawn = centre_replicates(value, (weights @ nats) / (weights @ tokens), interval_expansion(tokens))
        found = estimate_with_interval(np.concatenate([[value], drawn]))
        assert found.low is not None
        assert found.high is not None
        ratios.append((found.high - found.low) / (2 * t_quantile(0.975, 149) * ratio_standard_error(nats, tokens)))
    assert REPLICATES >= 2_000
    assert np.std(ratios) < 0.03  # 0.022 expected; with 200 replicates 0.07
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
