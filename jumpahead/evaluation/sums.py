"""Sums over held-out text: what is added per row, per chunk of a document and per cluster; and evaluation.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead import metrics
from jumpahead.engine import SparseFeatures
from jumpahead.evaluation.held_out import HeldOut, HeldOutRows
from jumpahead.sae.saved import SAE


class EvaluationSums(NamedTuple):
    """One SAE's sums over the held-out text, per cluster and per document."""

    sums: metrics.Sums
    documents: dict[str, np.ndarray]
    """[documents] each: `tokens`, `clean`, `spliced` (nats)."""

    @classmethod
    def zeros(cls, sae: SAE, text: HeldOut | HeldOutRows) -> EvaluationSums:
        """Return sums to which nothing was added yet."""
        documents = {key: np.zeros(len(text.cluster)) for key in ("tokens", "clean", "spliced")}
        return cls(metrics.Sums.zeros(text.clusters, sae.d, sae.width), documents)


def reconstruction_sums(exact: Tensor, x_hat: Tensor, features: SparseFeatures) -> dict[str, Tensor]:
    """Return the per-row terms, [n] each, that follow from x [n, d] (float64), its reconstruction and its features."""
    guess = x_hat.double()
    dot, square = (exact * guess).sum(1), guess.square().sum(1)
    return {
        "l0": features.indptr.diff(), "error": (exact - guess).square().sum(1), "xhat_sq": square, "x_dot_xhat": dot,
        "cosine": dot / (exact.square().sum(1) * square).sqrt().clamp_min(1e-30),
    }  # fmt: skip


def firing_counts(features: SparseFeatures, place: Tensor, count: int, width: int) -> np.ndarray:
    """Return on how many rows each feature fires, per chunk: int64 [count, M]. place [n]: the chunk of each row."""
    place = place.to(features.indptr.device).repeat_interleave(features.indptr.diff())
    return torch.bincount(place * width + features.feature, minlength=count * width).view(count, -1).cpu().numpy()


def count_per_chunk(chunk: Tensor, where: Tensor, chunks: int) -> np.ndarray:
    """Return, int64 [chunks], the positions of each chunk at which `where` (bool [b, t]) holds. chunk [b, t]."""
    return torch.bincount(chunk[where], minlength=chunks).numpy()


def sum_per_chunk(values: Tensor, counts: np.ndarray) -> np.ndarray:
    """Return the sums of each chunk's values, of which there are `counts` (int64 [chunks]): [n, …] → [chunks, …].

    Chunks are contiguous, context by context. Sums are in float64, those of whole numbers in int64.
    """
    values = (values.double() if values.is_floating_point() else values.long()).cpu()
    found = np.zeros((len(counts), *values.shape[1:]), values.numpy().dtype)
    some = counts > 0
    if some.any():
        found[some] = np.add.reduceat(values.numpy(), (np.cumsum(counts) - counts)[some], axis=0)
    return found


def evaluation_json(
    measured: EvaluationSums, text: HeldOut | HeldOutRows, weights: np.ndarray, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the measured part of evaluation.json.

    weights [R, clusters]: bootstrap replicates, shared by a study's SAEs.
    """
    sums, documents = measured.sums, measured.documents
    seen = np.flatnonzero(text.cluster >= 0)
    found = metrics.measure(sums)
    error = metrics.standard_error((documents["spliced"] - documents["clean"])[seen], documents["tokens"][seen])
    errors = metrics.standard_errors(sums) | {"delta_lm_loss": error}
    delta = found["delta_lm_loss"]
    said = list(notes)
    if not np.isnan(delta) and not error <= 0.05 * abs(delta):
        said.append(
            f"The standard error of delta LM loss is {error:.2g} nats, more than 5 % of it: "
            "raise evaluate.tokens, or hold out more text, for a sharper number."
        )
    return {
        "schema": "jumpahead.evaluation/1",
        "metrics": found,
        "standard_errors": errors,
        "bootstrap": {key: values.tolist() for key, values in metrics.bootstrap(sums, weights).items()},
        "documents": {
            "identity": [text.names[i] for i in seen],
            **{key: documents[key][seen].tolist() for key in ("tokens", "clean", "spliced")},
        },
        "histogram": metrics.frequency_histogram(sums.firing.sum(0), int(sums.rows.sum())),
        "text": {
            "tokens": text.tokens,
            "documents": len(seen),
            "clusters": text.clusters,
            "digest": text.digest,
        },
        "notes": said,
    }
