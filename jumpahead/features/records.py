"""One JSON object per feature, with everything that its page shows; numbers are rounded to a few digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.features.bias import BiasLikeness
from jumpahead.features.collect import FeatureActivity
from jumpahead.features.collect_loops import BINS
from jumpahead.features.examples import FeatureExamples, feature_examples, rounded
from jumpahead.features.labels import FeatureLabel
from jumpahead.features.logits import TopLogits, top_logits
from jumpahead.features.similarity import best_cosines, unit_rows
from jumpahead.features.token_text import TokenText
from jumpahead.sae.saved import SAE

LOGITS, NEAREST = 10, 5
"""Tokens whose logits are raised and lowered most; nearest features of the same SAE."""


class FeatureTable(NamedTuple):
    """Statistics of the features of one SAE, beside their examples."""

    activity: FeatureActivity
    labels: list[FeatureLabel]
    vectors: dict[str, np.ndarray]
    """[M] each: `threshold` if the SAE has one, `encoder_norm`, `decoder_norm`, `bias` of the encoder."""
    logits: tuple[TopLogits, TopLogits] | None
    """Of the features that fire; None if the site does not write to the residual stream."""
    logit_row: np.ndarray
    """int64 [M]: the row of each feature in `logits` and `nearest`; −1 for a feature that never fires."""
    nearest: tuple[np.ndarray, np.ndarray]
    """Index and cosine of the nearest features in the same SAE, [n, NEAREST] each."""
    across: dict[int, tuple[np.ndarray, np.ndarray]]
    """By number of another SAE of the site: index and cosine of its nearest feature, [n] each."""
    bias: dict[int, BiasLikeness]
    """By feature, for the most frequent ones."""


def measure_features(
    sae: SAE,
    activity: FeatureActivity,
    labels: list[FeatureLabel],
    weight: Tensor | None,
    across: Mapping[int, tuple[np.ndarray, np.ndarray]],
    bias: Sequence[BiasLikeness],
) -> FeatureTable:
    """Return what is known of the features of an SAE.

    weight: of the logits, as `logit_weights` returns it. across: as in `FeatureTable`.
    """
    alive = alive_features(activity)
    row = np.full(activity.width, -1)
    row[alive] = np.arange(len(alive))
    rows, index = unit_rows(sae), torch.from_numpy(alive)
    logits = None
    if weight is not None and len(alive):
        logits = top_logits(weight, sae.params["W_dec"][index.to(sae.device)], LOGITS)
    nearest = best_cosines(rows[index.to(rows.device)], rows, NEAREST, own=index)
    return FeatureTable(
        activity, labels, feature_vectors(sae), logits, row, nearest, dict(across), {one.feature: one for one in bias}
    )


def alive_features(activity: FeatureActivity) -> np.ndarray:
    """Return the features that fire, int64 [n], ascending."""
    return np.flatnonzero(activity.count)


def feature_vectors(sae: SAE) -> dict[str, np.ndarray]:
    """Return the numbers of an SAE that there is one of per feature."""
    p, derived = sae.params, sae.arch.derive(sae.params)
    threshold = p.get("threshold", derived.get("threshold"))
    vectors = {
        "threshold": threshold,
        "encoder_norm": p["W_enc"].norm(dim=1),
        "decoder_norm": p["W_dec"].norm(dim=1),
        "bias": p.get("b_enc"),
    }
    return {name: value.detach().float().cpu().numpy() for name, value in vectors.items() if value is not None}


def feature_records(
    table: FeatureTable, features: Sequence[int], tokens: int, token_text: TokenText
) -> list[tuple[dict[str, Any], FeatureExamples]]:
    """Return the JSON object of each of some features, and its examples. tokens: number of tokens of the text."""
    shown = feature_examples(table.activity, features)
    return [(_record(table, j, tokens, one, token_text), one) for j, one in zip(features, shown, strict=True)]


def _record(table: FeatureTable, j: int, tokens: int, shown: FeatureExamples, token_text: TokenText) -> dict[str, Any]:
    """Return the JSON object of feature j."""
    activity, label, row = table.activity, table.labels[j], int(table.logit_row[j])
    count = int(activity.count[j])
    record: dict[str, Any] = {
        "index": j,
        "count": count,
        "label": {"text": label.text, "rule": label.rule, "score": rounded_score(label)},
        **{name: _digits(float(vector[j]), 4) for name, vector in table.vectors.items()},
    }
    if count == 0:
        return record
    record |= {
        "density": count / tokens,
        "max": _digits(float(activity.top.value[j, 0]), 4),
        "mean": _digits(float(activity.total[j]) / count, 4),
        "histogram": histogram(activity, j),
        **shown._asdict(),
        "nearest": _pairs(*(part[row] for part in table.nearest)),
        "across": [
            [number, int(index[row]), _digits(float(cosine[row]))] for number, (index, cosine) in table.across.items()
        ],
    }
    if table.logits is not None:
        for name, found in zip(("positive_logits", "negative_logits"), table.logits, strict=True):
            values = rounded(found.value[row].numpy()).tolist()
            record[name] = [[token_text.text(id), v] for id, v in zip(found.token[row].tolist(), values, strict=True)]
    if j in table.bias:
        record["bias_likeness"] = bias_record(table.bias[j])
    return record


def rounded_score(label: FeatureLabel) -> float | None:
    """Return the score of a label in hundredths, as the list of features has it too."""
    return None if label.score is None else round(100 * label.score) / 100


def bias_record(found: BiasLikeness) -> dict[str, Any]:
    """Return the bias-likeness of a feature with the losses that it is computed from."""
    named = {"value": found.value, "zeroed": found.zeroed, "mean": found.mean, "zeroed_se": found.zeroed_se}
    return {name: _digits(value, 4) for name, value in named.items()} | {"tokens": found.tokens}


def histogram(activity: FeatureActivity, j: int) -> dict[str, Any]:
    """Return the histogram of a feature's activations: the width of its equal bins from 0, and their counts.

    Bins beyond the largest activation are left out.
    """
    counts = activity.histogram[j]
    last = int(np.flatnonzero(counts)[-1]) + 1
    return {"bin": float(2.0 ** float(activity.exponent[j])) / BINS, "counts": counts[:last].tolist()}


def _pairs(index: np.ndarray, cosine: np.ndarray) -> list[list[Any]]:
    """Return [[feature, cosine], …]."""
    return [[i, c] for i, c in zip(index.tolist(), rounded(cosine).tolist(), strict=True)]


def _digits(value: float | None, digits: int = 3) -> float | None:
    """Return a number rounded to significant digits; None for None."""
    return None if value is None else float(f"{value:.{digits}g}")
