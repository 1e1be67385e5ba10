"""Sums over held-out data, per row, per chunk of a document and per cluster, and the content of evaluation.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead import metrics
from jumpahead.engine import SparseFeatures
from jumpahead.evaluation.coverage import effective_clusters, interval_expansion
from jumpahead.evaluation.held_out import HeldOut, HeldOutRows
from jumpahead.evaluation.histogram import frequency_histogram
from jumpahead.evaluation.outliers import outlier_note
from jumpahead.formatting import format_number
from jumpahead.metric_sums import Sums
from jumpahead.metrics import bootstrap_replicates
from jumpahead.resampling import ratio_standard_error
from jumpahead.sae.saved import SAE
from jumpahead.storage.packed_numbers import pack_numbers

EVALUATION_SCHEMA = "jumpahead.evaluation/2"


class EvaluationSums(NamedTuple):
    """One SAE's sums over the held-out text, per cluster and per document."""

    sums: Sums
    documents: dict[str, np.ndarray]
    """float64 [documents] each: number of `tokens`, and LM loss `clean` and `spliced`, summed in nats."""
    outlier_firing: np.ndarray
    """int64 [M]: number of outliers on which each feature fires, in all clusters together."""

    @classmethod
    def zeros(cls, sae: SAE, text: HeldOut | HeldOutRows, true_features: int = 0) -> EvaluationSums:
        """Return sums of zeros with the shapes for an SAE, its held-out data and a number of true features."""
        documents = {key: np.zeros(len(text.cluster)) for key in ("tokens", "clean", "spliced")}
        sums = Sums.zeros(text.clusters, sae.d, sae.width, true_features)
        return cls(sums, documents, np.zeros(sae.width, np.int64))


def reconstruction_sums(x_float64: Tensor, x_hat: Tensor, features: SparseFeatures) -> dict[str, Tensor]:
    """Return per-row reconstruction terms, [n] each: L0, squared error, squared norm of x̂, ⟨x, x̂⟩ and cosine.

    x_float64, x_hat: [n, d]; features: the sparse features of the n rows.
    """
    x_hat = x_hat.double()
    dot, square = (x_float64 * x_hat).sum(1), x_hat.square().sum(1)
    return {
        "l0": features.indptr.diff(), "error": (x_float64 - x_hat).square().sum(1), "xhat_sq": square,
        "x_dot_xhat": dot, "cosine": dot / (x_float64.square().sum(1) * square).sqrt().clamp_min(1e-30),
    }  # fmt: skip


def firing_counts(features: SparseFeatures, row_chunk: Tensor, chunks: int, width: int) -> np.ndarray:
    """Return per chunk the number of rows on which each feature fires: int32 [chunks, M].

    row_chunk int64 [n]: the chunk of each row. width: M.
    """
    entry_chunk = row_chunk.to(features.indptr.device).repeat_interleave(features.indptr.diff())
    counts = torch.bincount(entry_chunk * width + features.feature, minlength=chunks * width)
    return counts.view(chunks, -1).int().cpu().numpy()


def count_per_chunk(chunk: Tensor, mask: Tensor, chunks: int) -> np.ndarray:
    """Return the number of positions per chunk at which `mask` is True, int64 [chunks].

    chunk int64 [b, t]: the chunk of each position. mask: bool [b, t].
    """
    return torch.bincount(chunk[mask], minlength=chunks).numpy()


def sum_per_chunk(values: Tensor, counts: np.ndarray) -> np.ndarray:
    """Return the sum of the values of each chunk: [n, …] → [chunks, …], float64, or int64 for integer values.

    counts int64 [chunks]: the number of values per chunk. The values of a chunk are contiguous, in the order of chunks.
    """
    values = (values.double() if values.is_floating_point() else values.long()).cpu()
    sums = np.zeros((len(counts), *values.shape[1:]), values.numpy().dtype)
    is_nonempty = counts > 0
    if is_nonempty.any():
        sums[is_nonempty] = np.add.reduceat(values.numpy(), (np.cumsum(counts) - counts)[is_nonempty], axis=0)
    return sums


def evaluation_json(
    measured: EvaluationSums, text: HeldOut | HeldOutRows, weights: np.ndarray, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of evaluation.json that the held-out data determines.

    weights [R, clusters]: bootstrap weights of R replicates, shared by all SAEs of a study. notes: sentences to add.
    """
    sums, documents = measured.sums, measured.documents
    seen = np.flatnonzero(text.cluster >= 0)
    values = metrics.measure(sums)
    error = ratio_standard_error((documents["spliced"] - documents["clean"])[seen], documents["tokens"][seen])
    errors = metrics.standard_errors(sums) | {"delta_lm_loss": error}
    delta = values["delta_lm_loss"]
    outliers, rows = int(sums.outlier_rows.sum()), int(sums.rows.sum())
    never_fired = int((sums.firing.sum(0) == measured.outlier_firing).sum())
    all_notes = list(notes)
    if note := outlier_note(values["outlier_variance"], outliers, rows, values["fvu_ordinary"], never_fired):
        all_notes.append(note)
    if values["fvu"] >= 1:
        all_notes.append(f"FVU is {format_number(values['fvu'])}: the mean activation alone is no worse.")
    if not np.isnan(delta) and not error <= 0.05 * abs(delta):
        all_notes.append(
            f"The standard error of delta LM loss is {error:.2g} nats, more than 5 % of it: "
            "raise evaluate.tokens, or hold out more text, for a sharper number."
        )
    return {
        "schema": EVALUATION_SCHEMA,
        "metrics": {key: None if np.isnan(value) else value for key, value in values.items()},
        "standard_errors": errors,
        "bootstrap": {
            key: pack_numbers(replicates)
            for key, replicates in bootstrap_replicates(sums, weights).items()
            if not np.isnan(values[key])
        },
        "documents": {
            "identity": [text.names[i] for i in seen],
            **{key: documents[key][seen].tolist() for key in ("tokens", "clean", "spliced")},
        },
        "outliers": {"rows": outliers, "never_fired_without": never_fired},
        "histogram": frequency_histogram(sums.firing.sum(0), rows),
        "text": {
            "tokens": text.tokens,
            "documents": len(seen),
            "rows": rows,
            "clusters": text.clusters,
            "effective_clusters": effective_clusters(sums.tokens),
            "interval_expansion": interval_expansion(sums.tokens),
            "digest": text.digest,
        },
        "notes": all_notes,
    }
