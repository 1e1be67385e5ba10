"""Evaluate SAEs on activations alone, without a language model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import Kernels, SparseEncoder
from jumpahead.errors import DataError
from jumpahead.evaluation.batches import encoder_batches
from jumpahead.evaluation.held_out import HeldOutRows
from jumpahead.evaluation.outliers import OutlierRule, find_outliers, outlier_firing, outlier_terms
from jumpahead.evaluation.saved_sums import SavedSums
from jumpahead.evaluation.sums import EvaluationSums, firing_counts, reconstruction_sums
from jumpahead.evaluation.truth import FeatureMatch, match_features
from jumpahead.progress import Progress, SilentProgress
from jumpahead.sae.saved import SAE


def reconstruct(
    saes: Mapping[str, SAE],
    text: HeldOutRows,
    site: str,
    progress: Progress | None = None,
    layer: Kernels | None = None,
    unit: str = "tokens",
    device: torch.device | str = "cpu",
    outliers: OutlierRule | None = None,
    saved: SavedSums | None = None,
) -> dict[str, EvaluationSums]:
    """Return the evaluation sums of every SAE, by name, computed without a language model.

    Sums in nats are NaN; each row counts as a token. True features are compared if the activations' origin knows them.
    unit: the name of rows in progress messages. layer: the kernel layer, by default the device's. device: the device on
    which SAEs encode and decode. outliers: which rows are outliers, by default none. saved: where the sums of an
    evaluation that was stopped are. Raises DataError if an SAE's d differs from the activations' d.
    """
    width = text.activations.widths[site]
    for name, sae in saes.items():
        if sae.d != width:
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {width}.")
    directions = text.activations.dictionary.get(site, torch.empty(0, width))
    matches = {name: match_features(directions, sae.params["W_dec"]) for name, sae in saes.items()}
    totals = {name: EvaluationSums.zeros(sae, text, len(directions)) for name, sae in saes.items()}
    rows, progress = int(text.activations.rows_per_group[: text.groups].sum()), progress or SilentProgress()
    batches = encoder_batches(saes, device, layer, 0)
    encoders = next(batches, {})
    with progress.phase("evaluating", rows * max(1, len(saes)), unit) as phase:
        while encoders:
            part = {name: totals[name] for name in encoders}
            first = saved.resume(part) if saved else 0
            phase.advance(int(text.activations.rows_per_group[:first].sum()) * len(part))
            for group in range(first, text.groups):
                x = text.activations.rows(group)[site].float().to(device)
                active = text.activations.feature_activations(group).get(site, x.new_empty(len(x), 0)).cpu() > 0
                document, row_document = np.unique(text.activations.document_ids(group), return_inverse=True)
                for name in encoders:
                    _add_rows(
                        totals[name],
                        encoders[name],
                        matches[name],
                        x,
                        active,
                        document,
                        torch.from_numpy(row_document),
                        text.cluster[document],
                        outliers,
                    )
                    phase.advance(len(x))
                if saved:
                    saved.save_if_due(part, group + 1)
            encoders = next(batches, {})
    for measured in totals.values():
        for key in ("clean", "spliced", "zero", "mean", "kl"):
            getattr(measured.sums, key).fill(np.nan)
        for key in ("clean", "spliced"):
            measured.documents[key].fill(np.nan)
    return totals


def _add_rows(
    totals: EvaluationSums,
    encoder: SparseEncoder,
    match: FeatureMatch,
    x: Tensor,
    active: Tensor,
    document: np.ndarray,
    row_document: Tensor,
    cluster: np.ndarray,
    outliers: OutlierRule | None,
) -> None:
    """Add the rows x [n, d] to the sums of one SAE.

    match: of the true features with the SAE's. active: bool [n, F], the active true features; F = 0 if unknown.
    document [documents]: indices of the documents that occur in x. row_document [n]: the position in `document` of each
    row's document. cluster [documents]: the bootstrap cluster of each of these documents.
    """
    features = encoder.encode(x)
    x_float64, count = x.double(), len(document)
    row_terms = reconstruction_sums(x_float64, encoder.decode(features), features)
    row_terms |= {"x_sq": x_float64.square().sum(1), "x_sum": x_float64, "rows": torch.ones(len(x), dtype=torch.int64)}
    is_outlier = find_outliers(outliers, x_float64)
    row_terms |= outlier_terms(is_outlier, {name: row_terms[name] for name in ("rows", "error", "x_sq", "x_sum")})
    totals.outlier_firing[:] += outlier_firing(is_outlier, features, encoder.sae.width)
    sums = {
        name: torch.zeros(count, *value.shape[1:], dtype=value.dtype).index_add_(0, row_document, value.cpu()).numpy()
        for name, value in row_terms.items()
    }
    sums["firing"] = firing_counts(features, row_document, count, encoder.sae.width)
    sums |= match.firing_counts(features, active, row_document, count)
    sums["tokens"] = sums["rows"]
    for name, value in sums.items():
        np.add.at(getattr(totals.sums, name), cluster, value)
    np.add.at(totals.documents["tokens"], document, sums["tokens"])
