"""Every number of an evaluation, declared once: formula, title, unit, direction, and the function that computes it.

    G  clusters of held-out text: a document each, or a bundle of documents     R  bootstrap replicates
    d  width of the activation                                                 M  width of the SAE

An evaluation accumulates `Sums` per cluster. A metric is a function of their totals, so a bootstrap replicate is the
same function of differently weighted totals:

    total_r = Σ_g w_rg · sum_g        w_r ~ Multinomial(G; 1/G, …, 1/G), the same w for every SAE of a study

Sums and counts in float64, divided last. A mean over tokens is a ratio of two sums over clusters, ρ = Σ y_g / Σ n_g;
its standard error is the ratio estimator's, SE = √(G/(G−1) · Σ_g (y_g − ρ·n_g)²) / Σ_g n_g.
No torch here: numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from jumpahead.errors import DataError

HIGH = 10
"""A feature is above 10 % when HIGH · (rows it fires on) > rows: whole numbers, so that no rounding decides."""
MIDDLE = 100
"""… and above 1 % when MIDDLE · (rows it fires on) > rows."""
BOOTSTRAPPED = ("l0", "delta_lm_loss", "fvu", "above_10pct", "above_1pct", "dead")
"""The metrics whose replicates are kept, in the order in which `frontier` stacks them."""
SHARES = {"share_above_10pct": "above_10pct", "share_above_1pct": "above_1pct", "share_dead": "dead"}
"""Metrics that are another one divided by the width."""
ELEMENTS_AT_ONCE = 2**24
"""Largest replicates × features array that `measure` makes (128 MiB in float64)."""


class Sums(NamedTuple):
    """What is added up over held-out text, one entry per cluster; totals have the same fields without (or R for) G."""

    tokens: np.ndarray
    """[G] scored tokens."""
    clean: np.ndarray
    """[G] nats of the untouched LM, summed over scored tokens, like the next four."""
    spliced: np.ndarray
    """[G] nats with the SAE's reconstruction spliced in."""
    zero: np.ndarray
    """[G] nats with the site set to zero."""
    mean: np.ndarray
    """[G] nats with the site set to its mean."""
    kl: np.ndarray
    """[G] KL(clean ‖ spliced) between next-token distributions, nats."""
    rows: np.ndarray
    """[G] spliced positions; everything below is summed over these."""
    l0: np.ndarray
    """[G] Σ |{i : f_i > 0}|."""
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
    """[G, M] rows on which each feature is active, whole numbers."""

    @classmethod
    def zeros(cls, clusters: int, d: int, width: int) -> Sums:
        """Empty accumulators: int64 for counts, float64 for the rest."""
        counts = {"tokens", "rows", "l0", "firing"}
        trailing = {"x_sum": (d,), "firing": (width,)}
        return cls(
            *(
                np.zeros((clusters, *trailing.get(name, ())), np.int64 if name in counts else np.float64)
                for name in cls._fields
            )
        )


Terms = Callable[[Sums], tuple[Any, Any]]
"""Numerator and denominator of a ratio, linear in the sums: the same expression serves clusters and totals."""


class Metric(NamedTuple):
    """One number of an evaluation."""

    key: str
    """Its name in JSON."""
    title: str
    """In words, for axes."""
    short: str
    """For the heading of a narrow column."""
    unit: str
    """Empty for pure numbers."""
    better: str
    """`lower`, `higher`, `one` (the nearer to 1 the better) or `none` (describes the LM or the text)."""
    formula: str
    """As one would write it down."""
    of: Callable[[Sums], Any]
    """From totals, [...] for totals of shape [...]."""
    terms: Terms | None
    """For ratios of two sums over clusters, which have a standard error."""

    def declaration(self) -> dict[str, str]:
        """The words alone, for JSON."""
        return {field: getattr(self, field) for field in ("key", "title", "short", "unit", "better", "formula")}


def _divide(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator in float64, nan where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def _ratio(key: str, title: str, short: str, unit: str, better: str, formula: str, terms: Terms) -> Metric:
    return Metric(key, title, short, unit, better, formula, lambda s: _divide(*terms(s)), terms)


def _features(
    key: str, title: str, short: str, formula: str, which: Callable[[Sums], Any], share: bool = False
) -> Metric:
    """A number of features (`which`: [..., M] booleans), or their share of all M."""

    def count(s: Sums) -> Any:
        return which(s).sum(-1).astype(np.float64)

    def portion(s: Sums) -> Any:
        return count(s) / s.firing.shape[-1]

    unit = "share of features" if share else "features"
    return Metric(key, title, short, unit, "lower", formula, portion if share else count, None)


def _above_10(s: Sums) -> Any:
    return HIGH * s.firing > s.rows[..., None]


def _above_1(s: Sums) -> Any:
    return MIDDLE * s.firing > s.rows[..., None]


def _dead(s: Sums) -> Any:
    return s.firing == 0


def _fvu(s: Sums) -> Any:
    """Σ‖x−x̂‖² / Σ‖x−x̄‖², with Σ‖x−x̄‖² = Σ‖x‖² − ‖Σx‖² / rows (x̄: the mean over the same rows)."""
    return _divide(s.error, s.x_sq - (s.x_sum**2).sum(-1) / s.rows)


_DECLARED = [
    _ratio("delta_lm_loss", "Delta LM loss", "delta loss", "nats per token", "lower",
           "Σ (nats spliced − nats clean) / scored tokens", lambda s: (s.spliced - s.clean, s.tokens)),
    _ratio("ce_clean", "Loss of the LM", "LM loss", "nats per token", "none",
           "Σ nats clean / scored tokens", lambda s: (s.clean, s.tokens)),
    _ratio("ce_spliced", "Loss with the SAE spliced in", "spliced", "nats per token", "lower",
           "Σ nats spliced / scored tokens", lambda s: (s.spliced, s.tokens)),
    _ratio("ce_zero", "Loss with the site set to zero", "zero", "nats per token", "none",
           "Σ nats zero-ablated / scored tokens", lambda s: (s.zero, s.tokens)),
    _ratio("ce_mean", "Loss with the site set to its mean", "mean", "nats per token", "none",
           "Σ nats mean-ablated / scored tokens", lambda s: (s.mean, s.tokens)),
    _ratio("loss_recovered_zero", "Loss recovered, against zero ablation", "recovered", "", "higher",
           "(CE zero − CE spliced) / (CE zero − CE clean)", lambda s: (s.zero - s.spliced, s.zero - s.clean)),
    _ratio("loss_recovered_mean", "Loss recovered, against mean ablation", "recovered", "", "higher",
           "(CE mean − CE spliced) / (CE mean − CE clean)", lambda s: (s.mean - s.spliced, s.mean - s.clean)),
    _ratio("kl", "KL divergence of the next token", "KL", "nats per token", "lower",
           "Σ KL(clean ‖ spliced) / scored tokens", lambda s: (s.kl, s.tokens)),
    _ratio("l0", "Active features per token", "L0", "features", "lower",
           "Σ |{i : f_i > 0}| / positions", lambda s: (s.l0, s.rows)),
    Metric("fvu", "Fraction of variance unexplained", "FVU", "", "lower", "Σ‖x − x̂‖² / Σ‖x − x̄‖²", _fvu, None),
    _ratio("cosine", "Cosine of x and its reconstruction", "cosine", "", "higher",
           "Σ x·x̂ / (‖x‖‖x̂‖) / positions", lambda s: (s.cosine, s.rows)),
    _ratio("shrinkage", "Shrinkage", "shrinkage", "", "one",
           "Σ‖x̂‖² / Σ x·x̂", lambda s: (s.xhat_sq, s.x_dot_xhat)),
    _features("above_10pct", "Features active on more than 10 % of tokens", "above 10 %",
              "|{i : frequency_i > 10 %}|", _above_10),
    _features("above_1pct", "Features active on more than 1 % of tokens", "above 1 %",
              "|{i : frequency_i > 1 %}|", _above_1),
    _features("share_above_10pct", "Share of features active on more than 10 % of tokens", "above 10 %",
              "|{i : frequency_i > 10 %}| / M", _above_10, share=True),
    _features("share_above_1pct", "Share of features active on more than 1 % of tokens", "above 1 %",
              "|{i : frequency_i > 1 %}| / M", _above_1, share=True),
    _features("dead", "Features that never fire on the held-out text", "dead",
              "|{i : frequency_i = 0}|", _dead),
    _features("share_dead", "Share of features that never fire on the held-out text", "dead",
              "|{i : frequency_i = 0}| / M", _dead, share=True),
]  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _DECLARED}


def totals(sums: Sums, weights: np.ndarray | None = None) -> Sums:
    """Fields added up over clusters: [] each, or [R] each with `weights` [R, G]; float64 (exact for counts < 2⁵³)."""
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


def measure(sums: Sums, weights: np.ndarray | None = None, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Metrics (all, or `keys`) as floats, or with `weights` [R, G] as float64 arrays [R]; nan for 0 / 0.

    DataError where nothing was scored.
    """
    if not np.sum(sums.tokens) or not np.sum(sums.rows):
        raise DataError("no held-out token was scored, so nothing can be measured: give more text (text.held_out).")
    chosen = [METRICS[key] for key in (METRICS if keys is None else keys)]
    if weights is None:
        total = totals(sums)
        return {metric.key: float(metric.of(total)) for metric in chosen}
    at_once = max(1, ELEMENTS_AT_ONCE // sums.firing.shape[1])
    parts = []
    for start in range(0, len(weights), at_once):
        total = totals(sums, weights[start : start + at_once])
        parts.append({metric.key: metric.of(total) for metric in chosen})
    return {metric.key: np.concatenate([part[metric.key] for part in parts]) for metric in chosen}


def standard_error(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Standard error of Σ numerator / Σ denominator over G clusters, by the ratio estimator; inf for one cluster.

    For delta LM loss: `standard_error(sums.spliced - sums.clean, sums.tokens)`, over documents where they are kept.
    """
    y, n = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    clusters, total = len(y), n.sum()
    if clusters < 2 or total == 0:
        return float("inf")
    return float(np.sqrt(clusters / (clusters - 1) * ((y - y.sum() / total * n) ** 2).sum()) / abs(total))


def standard_errors(sums: Sums) -> dict[str, float]:
    """Of every metric that is a ratio of sums; those without one (a single cluster, 0 / 0) are left out."""
    errors = {m.key: standard_error(*m.terms(sums)) for m in METRICS.values() if m.terms is not None}
    return {key: error for key, error in errors.items() if np.isfinite(error)}


def replicate_weights(clusters: int, replicates: int, seed: int = 0) -> np.ndarray:
    """How often each replicate draws each cluster: int64 [R, G], each row sums to G.

    A function of its arguments alone, so all SAEs measured on the same clusters share their resampled texts, and
    the difference of two SAEs can be taken replicate by replicate.
    """
    draws = np.random.default_rng([clusters, seed]).integers(0, clusters, (replicates, clusters))
    rows = np.arange(replicates)[:, None] * clusters
    return np.bincount((draws + rows).ravel(), minlength=replicates * clusters).reshape(replicates, clusters)


def bootstrap(sums: Sums, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The replicates that a frontier needs: [R] per metric of `BOOTSTRAPPED`."""
    return measure(sums, weights, BOOTSTRAPPED)


BINS_PER_DECADE = 4


def frequency_histogram(counts: np.ndarray, rows: int) -> dict[str, list]:
    """How many features fire how often: `log10_edges` (quarter decades up to 0) and `counts` between them.

    `counts` [M] are the rows on which each feature fires. Features that never fire are in no bin. The edges follow
    from `rows` alone, so all SAEs measured on the same text share them.
    """
    decades = max(1, int(np.ceil(np.log10(rows))))
    edges = np.arange(-decades * BINS_PER_DECADE, 1) / BINS_PER_DECADE
    alive = np.asarray(counts, np.float64)
    alive = alive[alive > 0]
    places = np.clip(np.log10(alive) - np.log10(rows), edges[0], edges[-1])
    return {"log10_edges": edges.tolist(), "counts": np.histogram(places, edges)[0].tolist()}
