"""Evaluating SAEs on activations alone, without a language model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import Kernels, SparseEncoder
from jumpahead.errors import DataError
from jumpahead.evaluation.batches import encoder_batches
from jumpahead.evaluation.held_out import HeldOutRows
from jumpahead.evaluation.sums import EvaluationSums, firing_counts, reconstruction_sums
from jumpahead.progress import Progress, Silent
from jumpahead.sae.saved import SAE


def reconstruct(
    saes: Mapping[str, SAE],
    text: HeldOutRows,
    site: str,
    progress: Progress | None = None,
    layer: Kernels | None = None,
    unit: str = "tokens",
    device: torch.device | str = "cpu",
) -> dict[str, EvaluationSums]:
    """Return the sums of every SAE at `site` without a language model; values in nats are NaN, a row counts as a token.

    unit: what progress calls the rows. device, layer: as in `evaluate`. Raises DataError if an SAE's d is not that of
    the activations.
    """
    width = text.activations.widths[site]
    for name, sae in saes.items():
        if sae.d != width:
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {width}.")
    found = {name: EvaluationSums.zeros(sae, text) for name, sae in saes.items()}
    rows, progress = int(text.activations.rows_per_group[: text.groups].sum()), progress or Silent()
    coders = encoder_batches(saes, device, layer, 0)
    part = next(coders, {})
    with progress.phase("evaluating", rows * max(1, len(saes)), unit) as phase:
        while part:
            for group in range(text.groups):
                x = text.activations.rows(group)[site].float().to(device)
                document, place = np.unique(text.activations.document_ids(group), return_inverse=True)
                for name in part:
                    _add_rows(found[name], part[name], x, document, torch.from_numpy(place), text.cluster[document])
                    phase.advance(len(x))
            part = next(coders, {})
    for measured in found.values():
        for key in ("clean", "spliced", "zero", "mean", "kl"):
            getattr(measured.sums, key).fill(np.nan)
        for key in ("clean", "spliced"):
            measured.documents[key].fill(np.nan)
    return found


def _add_rows(
    found: EvaluationSums, coder: SparseEncoder, x: Tensor, document: np.ndarray, place: Tensor, cluster: np.ndarray
) -> None:
    """Add the rows x [n, d] to the sums of one SAE.

    document [documents]: indices of the documents at hand; place [n]: which of them each row belongs to;
    cluster [documents].
    """
    features = coder.encode(x)
    exact, count = x.double(), len(document)
    of_row = reconstruction_sums(exact, coder.decode(features), features)
    of_row |= {"x_sq": exact.square().sum(1), "x_sum": exact, "rows": torch.ones(len(x), dtype=torch.int64)}
    sums = {
        name: torch.zeros(count, *value.shape[1:], dtype=value.dtype).index_add_(0, place, value.cpu()).numpy()
        for name, value in of_row.items()
    }
    sums["firing"] = firing_counts(features, place, count, coder.sae.width)
    sums["tokens"] = sums["rows"]
    for name, value in sums.items():
        np.add.at(getattr(found.sums, name), cluster, value)
    np.add.at(found.documents["tokens"], document, sums["tokens"])
