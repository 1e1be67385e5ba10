"""Metrics against hand arithmetic, against dense recomputation from raw arrays, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpahead import metrics
from jumpahead.errors import DataError
from jumpahead.metric_sums import Sums
from jumpahead.metrics import METRICS, bootstrap_replicates, count_key_by_share, measure
from jumpahead.resampling import ratio_standard_error, replicate_weights

TRUTH = ("true_firing", "matched_firing", "both_firing")
CONTRACT = {
    "delta_lm_loss", "ce_clean", "ce_spliced", "loss_recovered_zero", "loss_recovered_mean", "kl", "l0", "fvu",
    "cosine", "shrinkage", "above_10pct", "above_1pct", "share_above_10pct", "share_above_1pct", "never_fired",
    "share_never_fired", "f1", "fvu_ordinary", "outlier_variance",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- raw arrays


def raw(rng: np.random.Generator, lengths=(5, 40, 17), d=6, width=30):
    """Documents of raw x, x̂, f and nats, as an evaluation sees them; one feature in five is dead."""
    rates = rng.uniform(0, 0.3, width) * (np.arange(width) % 5 != 0)
    documents = []
    for n in lengths:
        x = rng.normal(size=(n, d)) * 3 + 7
        f = (rng.random((n, width)) < rates) * rng.exponential(2, (n, width))
        nats = {key: rng.exponential(2, n - 2) for key in ("clean", "spliced", "zero", "mean", "kl")}
        truth = (f[:, 3:10] > 0) ^ (rng.random((n, 7)) < 0.2)  # true feature i is matched with feature 3 + i
        documents.append({"x": x, "xhat": 0.8 * x + rng.normal(size=x.shape), "f": f, "truth": truth, **nats})
    return documents


def sums_of(documents) -> Sums:
    """The sums over each document, one by one."""

    def each(function):
        return np.array([function(doc) for doc in documents])

    def row_cosine(doc):
        norms = np.linalg.norm(doc["x"], axis=1) * np.linalg.norm(doc["xhat"], axis=1)
        return ((doc["x"] * doc["xhat"]).sum(1) / norms).sum()

    return Sums(
        tokens=each(lambda doc: len(doc["clean"])),
        **{key: each(lambda doc, key=key: doc[key].sum()) for key in ("clean", "spliced", "zero", "mean", "kl")},
        rows=each(lambda doc: len(doc["x"])),
        l0=each(lambda doc: (doc["f"] > 0).sum()),
        error=each(lambda doc: ((doc["x"] - doc["xhat"]) ** 2).sum()),
        x_sq=each(lambda doc: (doc["x"] ** 2).sum()),
        x_sum=each(lambda doc: doc["x"].sum(0)),
        xhat_sq=each(lambda doc: (doc["xhat"] ** 2).sum()),
        x_dot_xhat=each(lambda doc: (doc["x"] * doc["xhat"]).sum()),
        cosine=each(row_cosine),
        firing=each(lambda doc: (doc["f"] > 0).sum(0)),
        outlier_rows=each(lambda doc: is_outlier(doc["x"]).sum()),
        outlier_error=each(lambda doc: ((doc["x"] - doc["xhat"]) ** 2)[is_outlier(doc["x"])].sum()),
        outlier_x_sq=each(lambda doc: (doc["x"] ** 2)[is_outlier(doc["x"])].sum()),
        outlier_x_sum=each(lambda doc: doc["x"][is_outlier(doc["x"])].sum(0)),
        true_firing=each(lambda doc: doc["truth"].sum(0)),
        matched_firing=each(lambda doc: (doc["f"][:, 3:10] > 0).sum(0)),
        both_firing=each(lambda doc: (doc["truth"] & (doc["f"][:, 3:10] > 0)).sum(0)),
    )


def is_outlier(x):
    """Return a mask of the rows [n, d] that are far from the mean of 7."""
    return np.linalg.norm(x - 7, axis=1) > 9


def dense(documents) -> dict[str, float]:
    """Every metric from the arrays laid end to end: an independent statement of its definition."""
    joined = {key: np.concatenate([doc[key] for doc in documents]) for key in documents[0]}
    x, xhat, fires = joined["x"], joined["xhat"], joined["f"] > 0
    clean, spliced, zero, mean = (joined[key].mean() for key in ("clean", "spliced", "zero", "mean"))
    frequency, ordinary = fires.mean(0), ~is_outlier(x)
    f1 = []
    for found, truth in zip(fires[:, 3:10].T, joined["truth"].T, strict=True):
        precision = (found & truth).sum() / found.sum() if found.any() else 0.0
        recall = (found & truth).sum() / truth.sum() if truth.any() else None
        if recall is not None:
            f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    cosines = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, xhat, strict=True)]
    without = ((x - x[ordinary].mean(0)) ** 2)[ordinary].sum() if not ordinary.all() else np.nan
    return {
        "delta_lm_loss": spliced - clean,
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "ce_mean": mean,
        "loss_recovered_zero": 1 - (spliced - clean) / (zero - clean),
        "loss_recovered_mean": 1 - (spliced - clean) / (mean - clean),
        "kl": joined["kl"].mean(),
        "l0": fires.sum(1).mean(),
        "fvu": ((x - xhat) ** 2).sum(1).mean() / ((x - x.mean(0)) ** 2).sum(1).mean(),
        "fvu_ordinary": ((x - xhat) ** 2)[ordinary].sum() / without,
        "outlier_variance": 1 - without / ((x - x.mean(0)) ** 2).sum(),
        "cosine": np.mean(cosines),
        "shrinkage": (xhat**2).sum(1).mean() / (x * xhat).sum(1).mean(),
        "above_10pct": (frequency > 0.1).sum(),
        "above_1pct": (frequency > 0.01).sum(),
        "share_above_10pct": (frequency > 0.1).mean(),
        "share_above_1pct": (frequency > 0.01).mean(),
        "never_fired": (frequency == 0).sum(),
        "share_never_fired": (frequency == 0).mean(),
        "f1": np.mean(f1),
    }


def test_declared_names_are_the_contract():
    assert set(METRICS) >= CONTRACT
    assert set(METRICS) - CONTRACT == {"ce_zero", "ce_mean"}
    assert all(metric.key == key and metric.title and metric.formula for key, metric in METRICS.items())
    assert {metric.better for metric in METRICS.values()} == {"lower", "higher", "one", "none"}
    assert set(metrics.curve_metrics()) < set(METRICS)
    assert set(count_key_by_share()) <= set(METRICS)
    assert set(count_key_by_share().values()) <= set(metrics.curve_metrics())


@pytest.mark.parametrize("seed", range(4))
def test_every_metric_equals_its_dense_definition(seed):
    documents = raw(np.random.default_rng(seed))
    expected = dense(documents)
    found = measure(sums_of(documents))
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert set(found) == set(METRICS)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any))
def test_a_replicate_is_the_same_metric_of_documents_drawn_that_often(weights):
    documents = raw(np.random.default_rng(11))
    drawn = [doc for doc, times in zip(documents, weights, strict=True) for _ in range(times)]
    found = measure(sums_of(documents), np.array([weights, [1, 1, 1]]))
    assert {key: values[0] for key, values in found.items()} == pytest.approx(dense(drawn), rel=1e-12, nan_ok=True)
    assert {key: values[1] for key, values in found.items()} == pytest.approx(dense(documents), rel=1e-12, nan_ok=True)


def test_replicates_do_not_depend_on_how_many_are_computed_at_once(monkeypatch):
    sums = sums_of(raw(np.random.default_rng(2)))
    weights = replicate_weights(3, 17)
    whole = bootstrap_replicates(sums, weights)
    monkeypatch.setattr(metrics, "MAX_REPLICATE_ELEMENTS", 2 * 30)  # two replicates of 30 features
    for key, values in bootstrap_replicates(sums, weights).items():
        np.testing.assert_allclose(values, whole[key], rtol=1e-14)
        assert values.shape == (17,)


# ---------------------------------------------------------------------------------------------- by hand


def by_hand(**changes) -> Sums:
    """Two documents of 8 and 2 scored tokens, 10 and 20 rows, d = 2, 4 features."""
    fields = {
        "tokens": [8, 2], "clean": [16.0, 6.0], "spliced": [20.0, 12.0], "zero": [56.0, 16.0], "mean": [40.0, 12.0],
        "kl": [4.0, 1.0], "rows": [10, 20], "l0": [30, 90], "error": [3.0, 9.0], "x_sq": [100.0, 50.0],
        "x_sum": [[30.0, 0.0], [0.0, 30.0]], "xhat_sq": [90.0, 30.0], "x_dot_xhat": [95.0, 41.0],
        "cosine": [9.0, 18.0], "firing": [[3, 0, 1, 0], [0, 1, 0, 0]],
        "outlier_rows": [1, 0], "outlier_error": [1.5, 0.0], "outlier_x_sq": [34.0, 0.0],
        "outlier_x_sum": [[5.0, 3.0], [0.0, 0.0]],
        "true_firing": [[4, 0, 2], [2, 0, 0]], "matched_firing": [[1, 5, 3], [1, 0, 0]],
        "both_firing": [[1, 0, 1], [0, 0, 0]],
    }  # fmt: skip
    return Sums(**{key: np.asarray(changes.get(key, value)) for key, value in fields.items()})


def test_two_documents_by_hand():
    found = measure(by_hand())
    assert found["delta_lm_loss"] == (4 + 6) / 10  # not the mean of 4/8 and 6/2
    assert found["ce_clean"] == 2.2
    assert found["loss_recovered_zero"] == (72 - 32) / (72 - 22)
    assert found["loss_recovered_mean"] == (52 - 32) / (52 - 22)
    assert found["l0"] == 120 / 30
    assert found["fvu"] == 12 / (150 - (900 + 900) / 30)
    assert found["fvu_ordinary"] == pytest.approx(10.5 / (116 - (25**2 + 27**2) / 29))
    assert found["outlier_variance"] == pytest.approx(1 - (116 - (25**2 + 27**2) / 29) / 90)  # one row, (5, 3)
    assert np.isnan(measure(by_hand(outlier_rows=[0, 0]))["outlier_variance"])
    assert found["shrinkage"] == 120 / 136
    assert found["above_10pct"] == 0  # 3 of 30 rows is 10 %, not more
    assert found["above_1pct"] == 3
    assert (found["never_fired"], found["share_never_fired"]) == (1, 0.25)
    assert found["f1"] == (2 * 1 / (6 + 2) + 2 * 1 / (2 + 3)) / 2  # the second true feature never fires
    assert np.isnan(measure(by_hand(**{key: [[], []] for key in TRUTH}))["f1"])


@pytest.mark.parametrize("rows", [10, 30, 70, 110, 1_000_030])
def test_exactly_ten_percent_is_not_above_ten_percent(rows):
    sums = by_hand(rows=[rows - 1, 1], firing=[[rows // 10, rows // 10 + 1, 0, 0], [0, 0, 0, 0]])
    assert measure(sums)["above_10pct"] == 1


def test_identity_and_zero_splices_are_exact():
    clean, zero = [16.1, 6.3], [56.7, 16.9]
    identity = measure(by_hand(clean=clean, spliced=clean, zero=zero))
    assert identity["delta_lm_loss"] == 0.0
    assert identity["loss_recovered_zero"] == 1.0
    ablated = measure(by_hand(clean=clean, spliced=zero, zero=zero))
    assert ablated["loss_recovered_zero"] == 0.0
    assert ablated["ce_spliced"] == ablated["ce_zero"]


def test_reconstructions_with_known_fvu_and_shrinkage():
    documents = raw(np.random.default_rng(3))
    mean = np.concatenate([doc["x"] for doc in documents]).mean(0)
    constant = [{**doc, "xhat": np.broadcast_to(mean, doc["x"].shape)} for doc in documents]
    assert measure(sums_of(constant))["fvu"] == pytest.approx(1.0, rel=1e-12)
    shrunk = [{**doc, "xhat": 0.7 * doc["x"]} for doc in documents]
    found = measure(sums_of(shrunk))
    assert found["shrinkage"] == pytest.approx(0.7, rel=1e-12)
    assert found["cosine"] == pytest.approx(1.0, rel=1e-12)


def test_undefined_ratios_are_nan_and_nothing_scored_is_an_error():
    found = measure(by_hand(zero=[16.0, 6.0]))
    assert np.isnan(found["loss_recovered_zero"])
    with pytest.raises(DataError, match=r"no held-out token"):
        measure(by_hand(tokens=[0, 0]))
    with pytest.raises(ValueError, match=r"weights must be \[R, 2\]"):
        measure(by_hand(), np.ones((5, 3)))


def test_zeros_have_the_shapes_and_types_to_add_to():
    sums = Sums.zeros(3, 4, 5)
    assert sums.firing.shape == (3, 5)
    assert sums.firing.dtype == np.int32
    assert sums.rows.dtype == np.int64
    assert sums.x_sum.shape == (3, 4)
    assert sums.clean.dtype == np.float64
    with pytest.raises(DataError):
        measure(sums)


# ---------------------------------------------------------------------------------------------- standard errors


def test_standard_error_by_hand():
    # ρ = 10/10 = 1; residuals 4 − 8 = −4 and 6 − 2 = 4; √(2/1 · 32) / 10
    assert ratio_standard_error(np.array([4.0, 6.0]), np.array([8, 2])) == pytest.approx(0.8, rel=1e-15)
    assert metrics.standard_errors(by_hand())["delta_lm_loss"] == pytest.approx(0.8, rel=1e-15)


def test_standard_error_of_equal_documents_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=25)
    expected = values.std(ddof=1) / 5
    assert ratio_standard_error(values * 40, np.full(25, 40)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_one_document_has_no_standard_error():
    assert ratio_standard_error(np.array([4.0]), np.array([8])) == np.inf
    one = Sums(*(field[:1] for field in by_hand()))
    assert metrics.standard_errors(one) == {}


def test_every_ratio_has_a_standard_error():
    found = metrics.standard_errors(sums_of(raw(np.random.default_rng(5))))
    counts = {"above_10pct", "above_1pct", "never_fired"}
    without = {"fvu", "fvu_ordinary", "outlier_variance", "f1", *counts, *(f"share_{key}" for key in counts)}
    assert set(found) == set(METRICS) - without
    assert all(error > 0 for error in found.values())


def draw(rng: np.random.Generator, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """(Σ Δ nats, tokens) of documents of very different lengths; long ones lose less. E Σ Δ / E Σ n = 0.55."""
    tokens = np.where(rng.random(clusters) < 0.5, 200, 1000)  # mean 600
    loss = np.where(tokens == 200, 0.8, 0.5) + rng.normal(0, 0.2, clusters)  # (0.8·200 + 0.5·1000) / 1200 = 0.55
    return loss * tokens, tokens


def test_standard_error_covers_the_truth_in_simulation():
    rng, clusters, times = np.random.default_rng(1), 80, 3000
    estimates, errors = np.empty(times), np.empty(times)
    for i in range(times):
        nats, tokens = draw(rng, clusters)
        estimates[i], errors[i] = nats.sum() / tokens.sum(), ratio_standard_error(nats, tokens)
    assert errors.mean() == pytest.approx(estimates.std(), rel=0.04)
    covered = (np.abs(estimates - 0.55) < 1.96 * errors).mean()
    assert 0.93 < covered < 0.965  # ± 3.8 simulation errors around 0.945


def test_bootstrap_spreads_as_widely_as_the_standard_error():
    nats, tokens = draw(np.random.default_rng(7), 120)
    weights = replicate_weights(120, 4000)
    replicates = (weights @ nats) / (weights @ tokens)
    assert replicates.std() * np.sqrt(120 / 119) == pytest.approx(ratio_standard_error(nats, tokens), rel=0.05)


# ---------------------------------------------------------------------------------------------- replicates


def test_replicate_weights_are_multinomial_and_repeatable():
    weights = replicate_weights(37, 5000, seed=3)
    assert weights.shape == (5000, 37)
    assert np.issubdtype(weights.dtype, np.integer)
    assert (weights.sum(1) == 37).all()
    assert weights.mean(0) == pytest.approx(1, abs=0.06)
    assert weights.var(0).mean() == pytest.approx(1 - 1 / 37, rel=0.02)
    np.testing.assert_array_equal(weights, replicate_weights(37, 5000, seed=3))
    assert (weights != replicate_weights(37, 5000, seed=4)).any()
