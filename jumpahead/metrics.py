"""Every metric of an evaluation, declared once: names, unit, formula, direction, role on curves and in questions.

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
from typing import Any, Literal, NamedTuple

import numpy as np

from jumpahead.errors import DataError
from jumpahead.formatting import SampleUnit, format_number, format_percent

ONE_IN_10 = 10
"""A feature is above 10 % if ONE_IN_10 · (rows it fires on) > rows: whole numbers, so that no rounding decides."""
ONE_IN_100 = 100
"""A feature is above 1 % if ONE_IN_100 · (rows it fires on) > rows."""
ELEMENTS_AT_ONCE = 2**24
"""Largest replicates × features array that `measure` makes (128 MiB in float64)."""


class Sums(NamedTuple):
    """Sums over held-out text, one entry per cluster. Totals have the same fields without G, or with R for G."""

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
    """[G] spliced positions, which everything below is summed over."""
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
        """Return empty accumulators: int64 for counts, float64 for the rest."""
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
Format = Literal["number", "count", "share"]
Scale = Literal["log", "log_if_significant", "linear"]
Domain = Literal["real", "non-negative", "features"]


class QueryOption(NamedTuple):
    """How the frontier is asked by a metric: `jumpahead ask RUN --delta-loss 0.2 --max-dead 3%`."""

    option: str
    """On the command line, without dashes: `above-10%`; the limit is `--max-above-10%`."""
    help: str
    """For `jumpahead ask --help`."""
    is_target: bool = True
    """Curves can be asked where they have a value of the metric."""
    is_limit: bool = False
    """The largest accepted value of the metric can be given."""

    @property
    def argument(self) -> str:
        """The name in `Frontier.ask`: `above_10`."""
        return self.option.removesuffix("%").replace("-", "_")


class CurveRole(NamedTuple):
    """How a metric is interpolated on the measured curve of a series. Its bootstrap replicates are saved."""

    scale: Scale
    """`log_if_significant`: in the logarithm if every SAE is at least two standard errors above zero."""
    domain: Domain
    """What resampled values are clipped to: nothing, ≥ 0, or from 0 to the width."""
    is_fidelity: bool = False
    """SAEs can be compared by it; the first fidelity that was measured is used."""


class Metric(NamedTuple):
    """One number of an evaluation, with everything that tables, figures, sentences and options need to know of it.

    `{unit.singular}` and the like in `title` and `unit` stand for the name of an activation (`formatting.SampleUnit`).
    """

    key: str
    """Its name in JSON."""
    name: str
    """In sentences: `delta LM loss`, `features above 10 %`."""
    title: str
    """For headings and explanations."""
    short: str
    """For the heading of a narrow column."""
    unit: str
    """Empty for pure numbers."""
    better: str
    """`lower`, `higher`, `one` (the nearer to 1 the better) or `none` (describes the LM or the text)."""
    formula: str
    of: Callable[[Sums], Any]
    """From totals, [...] for totals of shape [...]."""
    terms: Terms | None
    """For ratios of two sums over clusters, which have a standard error."""
    format: Format = "number"
    """How values are written: a number, a count of features, or a share of all features."""
    share_of: str = ""
    """For shares: the key of the count that is divided by the width."""
    curve: CurveRole | None = None
    """None: the metric is not on curves."""
    query: QueryOption | None = None
    """None: the frontier cannot be asked by the metric."""

    def declaration(self, unit: SampleUnit) -> dict[str, Any]:
        """Return everything but the functions, for JSON, with the name of the unit filled in."""
        words = {field: getattr(self, field) for field in ("key", "name", "short", "better", "formula", "format")}
        return {
            **words,
            "title": self.title.format(unit=unit),
            "unit": self.unit.format(unit=unit),
            "share_of": self.share_of,
            "curve": self.curve._asdict() if self.curve else None,
            "is_target": bool(self.query and self.query.is_target),
        }


def _divide(numerator: Any, denominator: Any) -> Any:
    """Return numerator / denominator in float64, nan where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def _ratio(
    key: str, name: str, title: str, short: str, unit: str, better: str, formula: str, terms: Terms, **roles: Any
) -> Metric:
    """Declare a ratio of two sums over clusters."""
    return Metric(key, name, title, short, unit, better, formula, lambda s: _divide(*terms(s)), terms, **roles)


def _count(
    key: str, name: str, title: str, short: str, formula: str, which: Callable[[Sums], Any], option: QueryOption
) -> list[Metric]:
    """Declare a number of features (`which`: [..., M] booleans) and their share of all M features."""

    def count(s: Sums) -> Any:
        return which(s).sum(-1).astype(np.float64)

    def share(s: Sums) -> Any:
        return count(s) / s.firing.shape[-1]

    curve = CurveRole("linear", "features")
    lower = title[0].lower() + title[1:]
    return [
        Metric(key, name, title, short, "features", "lower", f"|{{{formula}}}|", count, None, "count",
               curve=curve, query=option),
        Metric(f"share_{key}", name, f"Share of {lower}", short, "share of features", "lower", f"|{{{formula}}}| / M",
               share, None, "share", share_of=key),
    ]  # fmt: skip


def _above_10(s: Sums) -> Any:
    """Return which features fire on more than 10 % of the rows, [..., M] bool."""
    return ONE_IN_10 * s.firing > s.rows[..., None]


def _above_1(s: Sums) -> Any:
    """Return which features fire on more than 1 % of the rows, [..., M] bool."""
    return ONE_IN_100 * s.firing > s.rows[..., None]


def _dead(s: Sums) -> Any:
    """Return which features never fire, [..., M] bool."""
    return s.firing == 0


def _fvu(s: Sums) -> Any:
    """Return Σ‖x−x̂‖² / Σ‖x−x̄‖², with Σ‖x−x̄‖² = Σ‖x‖² − ‖Σx‖² / rows (x̄: the mean over the same rows)."""
    return _divide(s.error, s.x_sq - (s.x_sum**2).sum(-1) / s.rows)


_NATS = "nats per {unit.singular}"
_DECLARED = [
    _ratio("l0", "L0", "Active features per {unit.singular}", "L0", "features per {unit.singular}", "lower",
           "Σ |{i : f_i > 0}| / positions", lambda s: (s.l0, s.rows), curve=CurveRole("log", "features"),
           query=QueryOption("l0", "Active features per token.", is_limit=True)),
    _ratio("delta_lm_loss", "delta LM loss", "Delta LM loss", "delta loss", _NATS, "lower",
           "Σ (nats spliced − nats clean) / scored positions", lambda s: (s.spliced - s.clean, s.tokens),
           curve=CurveRole("log_if_significant", "real", is_fidelity=True),
           query=QueryOption("delta-loss", "Nats per token lost by splicing.")),
    Metric("fvu", "FVU", "Fraction of variance unexplained", "FVU", "", "lower", "Σ‖x − x̂‖² / Σ‖x − x̄‖²", _fvu, None,
           curve=CurveRole("log", "non-negative", is_fidelity=True),
           query=QueryOption("fvu", "Fraction of variance unexplained.")),
    *_count("above_10pct", "features above 10 %", "Features active on more than 10 % of {unit.plural}", ">10 %",
            "i : frequency_i > 10 %", _above_10,
            QueryOption("above-10%", "Features active on more than 10 % of tokens: 12, or 0.06%.", is_limit=True)),
    *_count("above_1pct", "features above 1 %", "Features active on more than 1 % of {unit.plural}", ">1 %",
            "i : frequency_i > 1 %", _above_1,
            QueryOption("above-1%", "Features active on more than 1 % of tokens: 12, or 0.06%.", is_limit=True)),
    *_count("dead", "features dead", "Features that never fire on the held-out {unit.text}", "dead",
            "i : frequency_i = 0", _dead,
            QueryOption("dead", "Features that never fire on held-out text: 12, or 3%.", False, is_limit=True)),
    _ratio("ce_spliced", "loss with the SAE", "Loss with the SAE spliced in", "spliced", _NATS, "lower",
           "Σ nats spliced / scored positions", lambda s: (s.spliced, s.tokens)),
    _ratio("loss_recovered_zero", "loss recovered", "Loss recovered, against zero ablation", "recovered", "", "higher",
           "(CE zero − CE spliced) / (CE zero − CE clean)", lambda s: (s.zero - s.spliced, s.zero - s.clean)),
    _ratio("loss_recovered_mean", "loss recovered", "Loss recovered, against mean ablation", "recovered", "", "higher",
           "(CE mean − CE spliced) / (CE mean − CE clean)", lambda s: (s.mean - s.spliced, s.mean - s.clean)),
    _ratio("kl", "KL divergence", "KL divergence of the next token", "KL", _NATS, "lower",
           "Σ KL(clean ‖ spliced) / scored positions", lambda s: (s.kl, s.tokens)),
    _ratio("cosine", "cosine", "Cosine of x and its reconstruction", "cosine", "", "higher",
           "Σ x·x̂ / (‖x‖‖x̂‖) / positions", lambda s: (s.cosine, s.rows)),
    _ratio("shrinkage", "shrinkage", "Shrinkage", "shrinkage", "", "one",
           "Σ‖x̂‖² / Σ x·x̂", lambda s: (s.xhat_sq, s.x_dot_xhat)),
    _ratio("ce_clean", "loss of the LM", "Loss of the LM", "LM loss", _NATS, "none",
           "Σ nats clean / scored positions", lambda s: (s.clean, s.tokens)),
    _ratio("ce_zero", "loss with zero ablation", "Loss with the site set to zero", "zero", _NATS, "none",
           "Σ nats zero-ablated / scored positions", lambda s: (s.zero, s.tokens)),
    _ratio("ce_mean", "loss with mean ablation", "Loss with the site set to its mean", "mean", _NATS, "none",
           "Σ nats mean-ablated / scored positions", lambda s: (s.mean, s.tokens)),
]  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _DECLARED}
"""By key, in the order in which tables show them; curves run in the order of the first, L0."""


def curve_metrics() -> tuple[str, ...]:
    """Return the keys of the metrics that are interpolated on curves: L0, the fidelities, counts."""
    return tuple(key for key, metric in METRICS.items() if metric.curve)


def fidelity_metrics() -> tuple[str, ...]:
    """Return the keys of the metrics that SAEs can be compared by, the preferred one first."""
    return tuple(key for key, metric in METRICS.items() if metric.curve and metric.curve.is_fidelity)


def shares() -> dict[str, str]:
    """Return the keys of metrics that are a count divided by the width, and the keys of those counts."""
    return {key: metric.share_of for key, metric in METRICS.items() if metric.share_of}


def query_options() -> dict[str, QueryOption]:
    """Return how the frontier is asked, by the key of the metric."""
    return {key: metric.query for key, metric in METRICS.items() if metric.query}


def format_value(key: str, value: float | None) -> str:
    """Return a value of a metric as text: `12`, or `0.06 %` for a share."""
    return format_percent(value) if METRICS[key].format == "share" else format_number(value)


def format_with_name(key: str, value: float | None) -> str:
    """Return a value of a metric for a sentence: `delta LM loss 0.2`, `12 features dead`, `3 % of features dead`."""
    metric, text = METRICS[key], format_value(key, value)
    if metric.format == "number":
        return f"{metric.name} {text}"
    return f"{text} of {metric.name}" if metric.format == "share" else f"{text} {metric.name}"


def totals(sums: Sums, weights: np.ndarray | None = None) -> Sums:
    """Return the fields summed over clusters, [] each, or [R] each with `weights` [R, G].

    In float64, exact for counts below 2⁵³.
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


def measure(sums: Sums, weights: np.ndarray | None = None, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Return metrics (all, or `keys`) as floats, or with `weights` [R, G] as float64 arrays [R]; nan for 0 / 0.

    Raises DataError if no token was scored.
    """
    if not np.sum(sums.tokens) or not np.sum(sums.rows):
        raise DataError(
            "no held-out token was scored, so nothing can be measured: raise text.held_out or give more text."
        )
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
    """Return the standard error of Σ numerator / Σ denominator over G clusters, [G] each; inf for one cluster.

    By the ratio estimator of the module docstring. For delta LM loss, `standard_error(spliced - clean, tokens)` over
    documents.
    """
    y, n = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    clusters, total = len(y), n.sum()
    if clusters < 2 or total == 0:
        return float("inf")
    return float(np.sqrt(clusters / (clusters - 1) * ((y - y.sum() / total * n) ** 2).sum()) / abs(total))


def standard_errors(sums: Sums) -> dict[str, float]:
    """Return the standard error of every metric that is a ratio of sums, except those that have none.

    A single cluster and 0 / 0 have none.
    """
    errors = {m.key: standard_error(*m.terms(sums)) for m in METRICS.values() if m.terms is not None}
    return {key: error for key, error in errors.items() if np.isfinite(error)}


def replicate_weights(clusters: int, replicates: int, seed: int = 0) -> np.ndarray:
    """Return how often each replicate draws each cluster, [R, G] int64; each row sums to G.

    A function of its arguments alone: all SAEs measured on the same clusters share their resampled texts, so the
    difference of two SAEs can be taken replicate by replicate.
    """
    draws = np.random.default_rng([clusters, seed]).integers(0, clusters, (replicates, clusters))
    rows = np.arange(replicates)[:, None] * clusters
    return np.bincount((draws + rows).ravel(), minlength=replicates * clusters).reshape(replicates, clusters)


def bootstrap(sums: Sums, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the replicates of every metric on curves, [R] each. weights [R, G]: see `replicate_weights`."""
    return measure(sums, weights, curve_metrics())


BINS_PER_DECADE = 4
"""Bins of the frequency histogram."""


def frequency_histogram(counts: np.ndarray, rows: int) -> dict[str, list]:
    """Return the histogram of log10 firing frequencies: `log10_edges` (quarter decades up to 0) and `counts`.

    counts [M]: the rows on which each feature fires. Features that never fire are in no bin. The edges follow from
    `rows` alone, so all SAEs measured on the same text share them.
    """
    decades = max(1, int(np.ceil(np.log10(rows))))
    edges = np.arange(-decades * BINS_PER_DECADE, 1) / BINS_PER_DECADE
    alive = np.asarray(counts, np.float64)
    alive = alive[alive > 0]
    log10_frequency = np.clip(np.log10(alive) - np.log10(rows), edges[0], edges[-1])
    return {"log10_edges": edges.tolist(), "counts": np.histogram(log10_frequency, edges)[0].tolist()}
