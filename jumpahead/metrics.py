"""Declarations of all evaluation metrics: name, unit, formula, direction, role on curves and in queries.

    G  clusters of held-out text: one document each, or several documents     R  bootstrap replicates
    d  dimension of the activations                                          M  number of features of the SAE

An evaluation accumulates `metric_sums.Sums` per cluster. A metric is a function of the totals over clusters. A
bootstrap replicate of the metric is the same function of totals with random weights per cluster:

    total_r = Σ_g w_rg · sum_g        w_r ~ Multinomial(G; 1/G, …, 1/G), the same w for every SAE of a study

Sums and counts are float64 and are divided last. A mean over tokens is a ratio of two sums over clusters,
ρ = Σ y_g / Σ n_g. The ratio estimator gives the standard error SE = √(G/(G−1) · Σ_g (y_g − ρ·n_g)²) / Σ_g n_g.
This module uses numpy only, not torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from jumpahead.errors import DataError
from jumpahead.formatting import SampleUnit, format_number, format_percent
from jumpahead.metric_sums import Sums, totals
from jumpahead.resampling import ratio_standard_error

ONE_IN_10 = 10
"""A feature fires on more than 10 % of the rows if ONE_IN_10 · (firing count) > rows. Integers avoid rounding."""
ONE_IN_100 = 100
"""A feature fires on more than 1 % of the rows if ONE_IN_100 · (firing count) > rows."""
MAX_REPLICATE_ELEMENTS = 2**24
"""Maximum elements of the [replicates, features] arrays that `measure` allocates (128 MiB in float64)."""


Terms = Callable[[Sums], tuple[Any, Any]]
"""A function from sums to numerator and denominator of a ratio; both are linear, so it applies to totals too."""
Format = Literal["number", "count", "share"]
Scale = Literal["log", "log_if_significant", "linear"]
Domain = Literal["real", "non-negative", "features"]


class QueryOption(NamedTuple):
    """The options by which a query names a metric: `jumpahead ask RUN --delta-loss 0.2 --max-never-fired 3%`."""

    option: str
    """Name of the command-line option without leading dashes: `above-10%`; the limit is `--max-above-10%`."""
    help: str
    """Help text of the option in `jumpahead ask --help`."""
    is_target: bool = True
    """True if a query can have a target value of this metric."""
    is_limit: bool = False
    """True if a query can limit this metric to a largest accepted value."""

    @property
    def argument(self) -> str:
        """Return the keyword of the option in `Frontier.ask`: `above_10`."""
        return self.option.removesuffix("%").replace("-", "_")


class CurveInterpolation(NamedTuple):
    """Interpolation of a metric on the measured curve of a series.

    A series is an architecture with its options. Evaluations save bootstrap replicates of metrics with this role.
    """

    scale: Scale
    """Scale of interpolation. `log_if_significant`: logarithmic if all SAEs are ≥ 2 standard errors above zero."""
    domain: Domain
    """Range that bootstrap replicates are clipped to: `real` (−∞, ∞), `non-negative` [0, ∞), `features` [0, M]."""
    is_fidelity: bool = False
    """True if SAEs can be compared by the metric. Comparisons use the first fidelity metric that was measured."""


class Metric(NamedTuple):
    """An evaluation metric, with the metadata used by tables, figures, text and command-line options.

    `title` and `unit` have placeholders: `{unit.singular}` and `{unit.plural}` for fields of `formatting.SampleUnit`,
    `{rows}` for the number of held-out activations.
    """

    key: str
    """Key of the metric in JSON."""
    name: str
    """Name within sentences: `delta LM loss`, `features above 10 %`."""
    title: str
    """Title for headings and explanations."""
    short: str
    """Short title for the heading of a narrow column."""
    unit: str
    """Unit of the value; empty for dimensionless metrics."""
    better: str
    """Direction of improvement: `lower`, `higher`, `one` (nearer to 1) or `none` (does not depend on the SAE)."""
    formula: str
    """Formula as text, for explanations."""
    compute: Callable[[Sums], Any]
    """Return the metric from totals over clusters; totals of shape [R] give values of shape [R]."""
    terms: Terms | None
    """Numerator and denominator if the metric is a ratio of two sums over clusters; used for the standard error."""
    format: Format = "number"
    """Format of values: a number, a count of features, or a share of all features."""
    share_of: str = ""
    """If the metric is a share of all features: the key of the metric that counts these features; else empty."""
    curve: CurveInterpolation | None = None
    """Role on curves; None if the metric is not interpolated on curves."""
    query: QueryOption | None = None
    """Options by which queries name the metric; None if queries cannot use it."""
    depends_on_rows: bool = False
    """True if more activations change the expected value, so that texts say how many there were."""

    def declaration(self, unit: SampleUnit, rows: int) -> dict[str, Any]:
        """Return the metadata of the metric as a JSON-compatible dict, with the placeholders filled in."""
        words = {field: getattr(self, field) for field in ("key", "name", "short", "better", "formula", "format")}
        return {
            **words,
            "title": self.title.format(unit=unit, rows=f"{rows:,}"),
            "unit": self.unit.format(unit=unit, rows=f"{rows:,}"),
            "share_of": self.share_of,
            "curve": self.curve._asdict() if self.curve else None,
            "is_target": bool(self.query and self.query.is_target),
        }


def _divide_or_nan(numerator: Any, denominator: Any) -> Any:
    """Return numerator / denominator as float64, elementwise; nan if the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def _ratio(
    key: str, name: str, title: str, short: str, unit: str, better: str, formula: str, terms: Terms, **roles: Any
) -> Metric:
    """Return a metric that is a ratio of two sums over clusters, given by `terms`."""
    return Metric(key, name, title, short, unit, better, formula, lambda s: _divide_or_nan(*terms(s)), terms, **roles)


def _count_and_share(
    key: str,
    name: str,
    title: str,
    short: str,
    formula: str,
    which: Callable[[Sums], Any],
    option: QueryOption,
    depends_on_rows: bool = False,
) -> list[Metric]:
    """Return two metrics: the number of features selected by `which`, and their share of all M features.

    which: a function from totals to a mask of features, [..., M] bool.
    """

    def count(s: Sums) -> Any:
        """Return the number of selected features, [...] float64."""
        return which(s).sum(-1).astype(np.float64)

    def share(s: Sums) -> Any:
        """Return the number of selected features divided by M, [...] float64."""
        return count(s) / s.firing.shape[-1]

    curve = CurveInterpolation("linear", "features")
    lower, among = title[0].lower() + title[1:], ", in {rows} {unit.plural}" if depends_on_rows else ""
    return [
        Metric(key, name, title, short, f"features{among}", "lower", f"|{{{formula}}}|", count, None, "count",
               curve=curve, query=option, depends_on_rows=depends_on_rows),
        Metric(f"share_{key}", name, f"Share of {lower}", short, f"share of features{among}", "lower",
               f"|{{{formula}}}| / M", share, None, "share", share_of=key, depends_on_rows=depends_on_rows),
    ]  # fmt: skip


def _is_above_10_percent(s: Sums) -> Any:
    """Return a mask of the features that fire on more than 10 % of the rows, [..., M] bool."""
    return ONE_IN_10 * s.firing > s.rows[..., None]


def _is_above_1_percent(s: Sums) -> Any:
    """Return a mask of the features that fire on more than 1 % of the rows, [..., M] bool."""
    return ONE_IN_100 * s.firing > s.rows[..., None]


def _has_never_fired(s: Sums) -> Any:
    """Return a mask of the features that never fire, [..., M] bool."""
    return s.firing == 0


def _variance(s: Sums) -> Any:
    """Return Σ‖x − x̄‖² = Σ‖x‖² − ‖Σx‖²/rows."""
    return s.x_sq - (s.x_sum**2).sum(-1) / np.maximum(s.rows, 1)


def _ordinary_variance(s: Sums) -> Any:
    """Return Σ‖x − x̄‖² over the rows that are no outliers, about their own mean; nan if no row is an outlier."""
    rest = s._replace(rows=s.rows - s.outlier_rows, x_sq=s.x_sq - s.outlier_x_sq, x_sum=s.x_sum - s.outlier_x_sum)
    return np.where(np.asarray(s.outlier_rows) == 0, np.nan, _variance(rest))


def _f1(s: Sums) -> Any:
    """Return the mean over true features that fire of the F1 of the rows on which they and their match fire, [...]."""
    scores = 2 * s.both_firing / np.maximum(s.true_firing + s.matched_firing, 1)
    return _divide_or_nan(scores.sum(-1), (s.true_firing > 0).sum(-1))


_NATS = "nats per {unit.singular}"
_DECLARED = [
    _ratio("l0", "L0", "Active features per {unit.singular}", "L0", "features per {unit.singular}", "lower",
           "Σ |{i : f_i > 0}| / positions", lambda s: (s.l0, s.rows), curve=CurveInterpolation("log", "features"),
           query=QueryOption("l0", "Active features per token.", is_limit=True)),
    _ratio("delta_lm_loss", "delta LM loss", "Delta LM loss", "delta loss", _NATS, "lower",
           "Σ (nats spliced − nats clean) / scored positions", lambda s: (s.spliced - s.clean, s.tokens),
           curve=CurveInterpolation("log_if_significant", "real", is_fidelity=True),
           query=QueryOption("delta-loss", "Nats per token lost by splicing.")),
    Metric("fvu", "FVU", "Fraction of variance unexplained", "FVU", "", "lower", "Σ‖x − x̂‖² / Σ‖x − x̄‖²",
           lambda s: _divide_or_nan(s.error, _variance(s)), None,
           curve=CurveInterpolation("log", "non-negative", is_fidelity=True),
           query=QueryOption("fvu", "Fraction of variance unexplained.")),
    *_count_and_share("above_10pct", "features above 10 %", "Features active on more than 10 % of {unit.plural}",
            ">10 %", "i : frequency_i > 10 %", _is_above_10_percent,
            QueryOption("above-10%", "Features active on more than 10 % of tokens: 12, or 0.06%.", is_limit=True)),
    *_count_and_share("above_1pct", "features above 1 %", "Features active on more than 1 % of {unit.plural}",
            ">1 %", "i : frequency_i > 1 %", _is_above_1_percent,
            QueryOption("above-1%", "Features active on more than 1 % of tokens: 12, or 0.06%.", is_limit=True)),
    *_count_and_share("never_fired", "features that never fired", "Features that never fired in {rows} held-out "
            "{unit.plural}", "never fired", "i : frequency_i = 0", _has_never_fired,
            QueryOption("never-fired", "Features that never fired on held-out text: 12, or 3%.", False, is_limit=True),
            depends_on_rows=True),
    Metric("f1", "F1", "F1 of the true features", "F1", "", "higher",
           "mean over true features of 2·|both active| / (|true active| + |matched active|)", _f1, None,
           curve=CurveInterpolation("linear", "non-negative")),
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
    Metric("fvu_ordinary", "FVU without outliers", "Fraction of variance unexplained, without outliers", "FVU*", "",
           "lower", "Σ‖x − x̂‖² / Σ‖x − x̄‖² within 10 × the median norm",
           lambda s: _divide_or_nan(s.error - s.outlier_error, _ordinary_variance(s)), None),
    Metric("outlier_variance", "variance of outliers", "Share of the variance that outliers hold", "outliers", "",
           "none", "1 − Σ‖x − x̄‖² within 10 × the median norm / Σ‖x − x̄‖²",
           lambda s: 1 - _divide_or_nan(_ordinary_variance(s), _variance(s)), None),
    _ratio("ce_clean", "loss of the LM", "Loss of the LM", "LM loss", _NATS, "none",
           "Σ nats clean / scored positions", lambda s: (s.clean, s.tokens)),
    _ratio("ce_zero", "loss with zero ablation", "Loss with the site set to zero", "zero", _NATS, "none",
           "Σ nats zero-ablated / scored positions", lambda s: (s.zero, s.tokens)),
    _ratio("ce_mean", "loss with mean ablation", "Loss with the site set to its mean", "mean", _NATS, "none",
           "Σ nats mean-ablated / scored positions", lambda s: (s.mean, s.tokens)),
]  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _DECLARED}
"""All metrics by key, in the order of tables. The first is L0, which orders the points of curves."""


def curve_metrics() -> tuple[str, ...]:
    """Return the keys of the metrics that are interpolated on curves: L0, fidelity metrics and counts of features."""
    return tuple(key for key, metric in METRICS.items() if metric.curve)


def fidelity_metrics() -> tuple[str, ...]:
    """Return the keys of the metrics that SAEs can be compared by, in order of preference."""
    return tuple(key for key, metric in METRICS.items() if metric.curve and metric.curve.is_fidelity)


def count_key_by_share() -> dict[str, str]:
    """Return a dict from the key of each metric that is a share of all features to the key of the matching count."""
    return {key: metric.share_of for key, metric in METRICS.items() if metric.share_of}


def query_options() -> dict[str, QueryOption]:
    """Return the query options by key of the metric."""
    return {key: metric.query for key, metric in METRICS.items() if metric.query}


def format_value(key: str, value: float | None) -> str:
    """Return a value of the metric `key` as plain text: `12`, or `0.06 %` for a share of all features."""
    return format_percent(value) if METRICS[key].format == "share" else format_number(value)


def format_with_name(key: str, value: float | None, sample: str = "") -> str:
    """Return a value with the name of the metric `key`: `delta LM loss 0.2`, `12 features above 10 %`.

    sample: the activations it was measured on, `50,000 tokens`: `3 features that never fired in 50,000 tokens`.
    """
    metric, text = METRICS[key], format_value(key, value)
    if metric.format == "number":
        return f"{metric.name} {text}"
    among = f" in {sample}" if metric.depends_on_rows and sample else ""
    return f"{text} {'of ' if metric.format == 'share' else ''}{metric.name}{among}"


def measure(sums: Sums, weights: np.ndarray | None = None, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the metrics `keys` (by default all) as floats by key; nan for 0 / 0.

    weights [R, G]: weights of the clusters per bootstrap replicate. If given, values are float64 arrays [R].
    Raises DataError if no token was scored.
    """
    if not np.sum(sums.tokens) or not np.sum(sums.rows):
        raise DataError(
            "no held-out token was scored, so nothing can be measured: raise text.held_out or give more text."
        )
    chosen = [METRICS[key] for key in (METRICS if keys is None else keys)]
    if weights is None:
        total = totals(sums)
        return {metric.key: float(metric.compute(total)) for metric in chosen}
    sums = Sums(*(np.asarray(values, np.float64) for values in sums))  # once, not for each part of the replicates
    at_once = max(1, MAX_REPLICATE_ELEMENTS // max(sums.firing.shape[1], sums.true_firing.shape[1]))
    parts = []
    for start in range(0, len(weights), at_once):
        total = totals(sums, weights[start : start + at_once])
        parts.append({metric.key: metric.compute(total) for metric in chosen})
    return {metric.key: np.concatenate([part[metric.key] for part in parts]) for metric in chosen}


def standard_errors(sums: Sums) -> dict[str, float]:
    """Return the finite standard errors, by key, of all metrics that are ratios of sums."""
    errors = {m.key: ratio_standard_error(*m.terms(sums)) for m in METRICS.values() if m.terms is not None}
    return {key: error for key, error in errors.items() if np.isfinite(error)}


def bootstrap_replicates(sums: Sums, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the bootstrap replicates of all metrics that are interpolated on curves, [R] float64 by key.

    weights [R, G]: see `resampling.replicate_weights`.
    """
    return measure(sums, weights, curve_metrics())
