"""Example evaluations with known curves, for the tests of whatever reads a frontier.

`example` simulates documents and firing features and measures them with `jumpahead.metrics`, as an evaluation would;
`evaluation` states the numbers directly. Nothing here knows `jumpahead.frontier`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jumpahead import metrics
from jumpahead.evaluation.coverage import effective_clusters, interval_expansion
from jumpahead.evaluation.histogram import frequency_histogram
from jumpahead.metric_sums import Sums
from jumpahead.metrics import bootstrap_replicates
from jumpahead.resampling import replicate_weights
from jumpahead.storage.packed_numbers import pack_numbers

SERIES: list[dict[str, Any]] = [
    {"name": "jumprelu", "title": "JumpReLU", "architecture": "jumprelu"},
    {"name": "gated", "title": "Gated", "architecture": "gated"},
    {"name": "topk", "title": "TopK", "architecture": "topk"},
]
L0S = (4.0, 7.0, 12.0, 21.0, 37.0, 64.0)
LOSS = {"jumprelu": (1.15, 0.62), "gated": (1.90, 0.66), "topk": (1.30, 0.62)}
"""delta LM loss = a · L0^−b."""
SPREAD = {"jumprelu": 1.5, "gated": 1.2, "topk": 1.35}
"""Standard deviation of the log frequencies: the larger, the more features above 10 %."""


class Example(NamedTuple):
    evaluations: list[dict[str, Any]]
    keywords: dict[str, Any]
    """For `build_frontier(evaluations, **keywords)`."""


class Documents(NamedTuple):
    tokens: np.ndarray
    difficulty: np.ndarray
    """[G] shared by all SAEs, so that their losses rise and fall together."""


def documents(count: int, rng: np.random.Generator) -> Documents:
    return Documents(rng.integers(600, 3000, count), rng.normal(size=count))


def frequencies(l0: float, spread: float, width: int, dead: float, rng: np.random.Generator) -> np.ndarray:
    """[width] log-normal firing rates that add up to `l0`; a share `dead` of them is 0."""
    rates = np.exp(spread * rng.normal(size=width))
    rates[rng.random(width) < dead] = 0
    for _ in range(50):
        rates = np.minimum(rates * l0 / rates.sum(), 0.8)
    return rates


def sums(texts: Documents, l0: float, loss: float, spread: float, width: int, d: int, rng: np.random.Generator):
    """The `Sums` of one SAE on these documents."""
    tokens, clusters = texts.tokens, len(texts.tokens)
    rows = tokens + 1
    clean = tokens * (1.9 + 0.3 * texts.difficulty)
    rise = tokens * loss * (1 + 0.3 * texts.difficulty + 0.1 * rng.normal(size=clusters))
    fvu = 0.55 * l0**-0.4
    rate = frequencies(l0, spread, width, 0.04 / np.sqrt(l0), rng)
    firing = rng.binomial(rows[:, None], np.minimum(rate * np.exp(0.2 * rng.normal(size=(clusters, width))), 1.0))
    mean = rng.normal(size=d) / np.sqrt(d) / 3
    x_sq = rows * (1 + (mean**2).sum())
    error = rows * fvu * (1 + 0.1 * texts.difficulty)
    return Sums(
        tokens=tokens, clean=clean, spliced=clean + rise, zero=clean + 6.2 * tokens, mean=clean + 4.4 * tokens,
        kl=1.1 * rise, rows=rows, l0=firing.sum(1), error=error, x_sq=x_sq, x_sum=rows[:, None] * mean,
        xhat_sq=x_sq - 1.05 * error, x_dot_xhat=x_sq - error, cosine=rows * np.sqrt(1 - fvu), firing=firing,
        outlier_rows=0 * rows, outlier_error=0 * error, outlier_x_sq=0 * x_sq, outlier_x_sum=0 * rows[:, None] * mean,
        **dict.fromkeys(("true_firing", "matched_firing", "both_firing"), np.zeros((clusters, 0), np.int64)),
    )  # fmt: skip


def setting_of(series: str, l0: float) -> dict[str, Any]:
    if series == "gated":
        return {"kind": "lambda", "value": float(f"{0.02 * l0**-1.1:.3g}")}
    return {"kind": "k" if series == "topk" else "l0", "value": l0}


def example(
    *,
    series: Sequence[str] = ("jumprelu", "gated", "topk"),
    l0s: Sequence[float] = L0S,
    seeds: Sequence[int] = (0,),
    replicates: int = 200,
    clusters: int = 64,
    width: int = 8192,
    d: int = 256,
    site: str = "layers.1.residual",
) -> Example:
    """A whole run: every series at every L0 and seed, on the same documents with the same replicates."""
    rng = np.random.default_rng(20240719)
    texts, weights = documents(clusters, rng), replicate_weights(clusters, replicates)
    found = []
    for name in series:
        a, b = LOSS[name]
        for l0 in l0s:
            for seed in seeds:
                wobble = np.exp(0.03 * rng.normal()) if len(seeds) > 1 else 1.0
                measured = sums(texts, l0, a * l0**-b * wobble, SPREAD[name], width, d, rng)
                found.append(_measured(measured, texts, weights, name, l0, seed, site))
    train_tokens = 2_000_000
    keywords = {
        "name": "example",
        "study_text": f'name = "example"\n\n[lm]\nmodel = "tiny"\n\n[sae]\nwidth = [{width}]\nseed = {list(seeds)}\n',
        "manifest": {"schema": "jumpahead.run/1", "versions": {"jumpahead": "0.1.0", "python": "3.11.7"}},
        "series": [each for each in SERIES if each["name"] in series],
        "lm": {"name": "tiny"},
        "text": {"source": "stdlib", "train_tokens": train_tokens, "held_out_tokens": int(texts.tokens.sum())},
    }
    return Example(found, keywords)


def _measured(
    measured: Sums, texts: Documents, weights: np.ndarray, series: str, l0: float, seed: int, site: str
) -> dict[str, Any]:
    clusters, width = measured.firing.shape
    setting = setting_of(series, l0)
    coefficient = {"l0": {"lambda": 0.015 * l0**-0.9}, "k": {"k": l0}, "lambda": {"lambda": setting["value"]}}[
        setting["kind"]
    ]
    rows = int(measured.rows.sum())
    return {
        "schema": "jumpahead.evaluation/2",
        "path": f"saes/{site}/{width}/{series}/{setting['kind']}-{setting['value']:g}_seed-{seed}",
        "sae": {"site": site, "width": width, "d": measured.x_sum.shape[1], "series": series, "architecture": series,
                "setting": setting, "sae_seed": seed, "stream_seed": 0},
        "metrics": {key: None if np.isnan(value) else value for key, value in metrics.measure(measured).items()},
        "standard_errors": metrics.standard_errors(measured),
        "bootstrap": {key: pack_numbers(values) for key, values in bootstrap_replicates(measured, weights).items()},
        "documents": {"identity": [f"package/module_{g}.py" for g in range(clusters)],
                      "tokens": texts.tokens.tolist(), "clean": measured.clean.tolist(),
                      "spliced": measured.spliced.tolist()},
        "histogram": frequency_histogram(measured.firing.sum(0), rows),
        "text": {"tokens": int(texts.tokens.sum()), "rows": rows, "documents": clusters, "clusters": clusters,
                 "effective_clusters": effective_clusters(texts.tokens),
                 "interval_expansion": interval_expansion(texts.tokens), "digest": "f00d"},
        "notes": [],
        "training": {"tokens": 2_000_000, "distinct_tokens": 1_800_000, "epochs": 1.11,
                     "seconds": round(20 + l0 / 3, 1), "steps": 977},
        "sparsity_coefficient": coefficient,
        "health": {},
        "inputs": "0" * 64,
    }  # fmt: skip


def evaluation(
    series: str = "jumprelu",
    *,
    l0: float,
    loss: float,
    fvu: float = 0.1,
    above_10: float = 5,
    above_1: float = 50,
    never_fired: float = 7,
    setting: Mapping[str, Any] | None = None,
    error: float = 1e-6,
    replicates: Mapping[str, Sequence[float]] | None = None,
    sae_seed: int = 0,
    stream_seed: int = 0,
    width: int = 1000,
    clusters: int = 40,
    expansion: float = 1.0,
    site: str = "layers.1.residual",
    sparsity_coefficient: Mapping[str, float] | None = None,
    rows: int = 50_040,
    digest: str = "f00d",
) -> dict[str, Any]:
    """One SAE's evaluation with the numbers as given; `error` is the standard error of the loss."""
    values = {
        "l0": l0,
        "delta_lm_loss": loss,
        "fvu": fvu,
        "above_10pct": above_10,
        "above_1pct": above_1,
        "never_fired": never_fired,
    }
    setting = dict(setting or {"kind": "l0", "value": l0})
    shares = {f"share_{key}": values[key] / width for key in ("above_10pct", "above_1pct", "never_fired")}
    return {
        "schema": "jumpahead.evaluation/2",
        "path": f"saes/{site}/{width}/{series}/{setting['kind']}-{setting['value']:g}_seed-{sae_seed}-{stream_seed}",
        "sae": {"site": site, "width": width, "d": 16, "series": series, "architecture": series, "setting": setting,
                "sae_seed": sae_seed, "stream_seed": stream_seed},
        "metrics": {**values, **shares, "ce_clean": 2.5, "ce_zero": 9.5, "ce_mean": 7.5},
        "standard_errors": {"delta_lm_loss": error},
        "bootstrap": {
            key: pack_numbers(np.asarray((replicates or {}).get(key, [value] * 4), float))
            for key, value in values.items()
        },
        "text": {"tokens": 50_000, "rows": rows, "documents": 40, "clusters": clusters,
                 "effective_clusters": 0.9 * clusters, "interval_expansion": None if clusters == 1 else expansion,
                 "digest": digest},
        "notes": [],
        "training": {"tokens": 10**6, "seconds": 3.0},
        "sparsity_coefficient": dict(sparsity_coefficient or {}),
        "histogram": {"log10_edges": [-1.0, 0.0], "counts": [3]},
    }  # fmt: skip


def keywords(*series: str) -> dict[str, Any]:
    """Return the keyword arguments of `build_frontier` for these series."""
    listed = [each for each in SERIES if each["name"] in series]
    listed += [
        {"name": name, "title": name, "architecture": "jumprelu"}
        for name in series
        if name not in {each["name"] for each in SERIES}
    ]
    text = {"source": "stdlib", "train_tokens": 10**6, "held_out_tokens": 50_000}
    return {"name": "made-up", "study_text": "", "manifest": {}, "series": listed, "lm": {"name": "tiny"}, "text": text}


def write(folder: Path, made: Example, frontier: Mapping[str, Any]) -> Path:
    """A run's folder as its readers expect it: manifest, study, evaluations, frontier.json."""
    for evaluated in made.evaluations:
        content = {key: value for key, value in evaluated.items() if key != "path"}
        file = folder / evaluated["path"] / "evaluation.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    (folder / "manifest.json").write_text(json.dumps(made.keywords["manifest"]))
    (folder / "study.toml").write_text(made.keywords["study_text"])
    (folder / "frontier.json").write_text(json.dumps(frontier))
    return folder
