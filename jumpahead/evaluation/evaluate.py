"""Evaluate SAEs on held-out text: LM loss with reconstructions spliced in, reconstruction error, firing frequencies.

    clean     the unmodified LM
    spliced   the site's activations x replaced by x̂ at every spliceable position (not position 0, not special tokens)
    zero      x replaced by 0 at the same positions
    mean      x replaced by the mean activation of the training text at the same positions

All SAEs of one site are evaluated together: the LM runs up to the site once per group of contexts, and per SAE only the
layers after it. SAEs encode and decode on the device, in batches that fit in its memory. Sums are computed on the CPU,
in a fixed order, per document and per cluster; `metrics.py` computes metrics from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import Kernels, SparseEncoder
from jumpahead.errors import DataError
from jumpahead.evaluation.batches import encoder_batches
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.logits import LOGIT_BYTES, cross_entropies, logits_with_splice
from jumpahead.evaluation.outliers import OutlierRule, find_outliers, outlier_firing, outlier_terms
from jumpahead.evaluation.saved_sums import SavedSums
from jumpahead.evaluation.sums import EvaluationSums, count_per_chunk, firing_counts, reconstruction_sums, sum_per_chunk
from jumpahead.lm.model import LM, ResumePoint
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import parse_site
from jumpahead.progress import Phase, Progress, SilentProgress
from jumpahead.sae.saved import SAE


def evaluate(
    saes: Mapping[str, SAE],
    lm: LM,
    text: HeldOut,
    site: str,
    mean: Tensor,
    progress: Progress | None = None,
    layer: Kernels | None = None,
    device: torch.device | str = "cpu",
    outliers: OutlierRule | None = None,
    saved: SavedSums | None = None,
) -> dict[str, EvaluationSums]:
    """Return the evaluation sums of every SAE, by name.

    mean [d]: the activation for mean ablation, in the LM's unit. layer: the kernel layer, by default the device's.
    device: the device on which SAEs encode and decode. outliers: which rows are outliers, by default none. saved:
    where the sums of an evaluation that was stopped are. Raises DataError if an SAE's d differs from the site's d.
    """
    for name, sae in saes.items():
        if sae.d != lm.width_at(site):
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {lm.width_at(site)}.")
        warn_if_elsewhere(sae, lm.name, lm.digest, parse_site(site))
    totals = {name: EvaluationSums.zeros(sae, text) for name, sae in saes.items()}
    logits = LOGIT_BYTES * lm.vocab_size * int(text.contexts.scored_per_group[text.start : text.groups].max())
    batches = encoder_batches(saes, device, layer, logits)
    encoders = next(batches, {})
    progress = progress or SilentProgress()
    with progress.phase("evaluating", text.tokens * max(1, len(saes)), "tokens") as phase:
        while encoders:
            part = {name: totals[name] for name in encoders}
            first = max(text.start, saved.resume(part) if saved else 0)
            phase.advance(int(text.contexts.scored_per_group[text.start : first].sum()) * len(part))
            for group in range(first, text.groups):
                clean = _ContextGroup.run_clean(lm, text, group, site, mean, device, outliers)
                _add_group(clean, totals, encoders, phase)
                if saved:
                    saved.save_if_due(part, group + 1)
            encoders = next(batches, {})
    return totals


def _add_group(
    group: _ContextGroup, totals: Mapping[str, EvaluationSums], encoders: Mapping[str, SparseEncoder], phase: Phase
) -> None:
    """Add the terms of a group of contexts to the sums of every SAE in `encoders`."""
    for name, encoder in encoders.items():
        group.add_to(totals[name], encoder)
        phase.advance(len(group.target))


class _ContextGroup(NamedTuple):
    """One group of contexts with the results that do not depend on the SAE.

    [b, t]: contexts × positions. rows: spliced positions. chunks: contiguous pieces of documents within contexts.
    """

    lm: LM
    resume: ResumePoint
    """State of the LM's forward pass at the site, from which the pass continues."""
    spliced: Tensor
    """bool [b, t]: positions whose activation is replaced."""
    scored: Tensor
    """bool [b, t]: positions whose next-token loss counts."""
    target: Tensor
    """int64 [scored]: the next token of every scored position."""
    x: Tensor
    """float32 [rows, d]: the site's activations at spliced positions, on the device of the SAEs."""
    x_float64: Tensor
    """float64 [rows, d]: `x` in float64."""
    is_outlier: Tensor | None
    """bool [rows]: which rows are outliers; None if none is."""
    p: Tensor
    """float32 [scored, V]: next-token probabilities of the unmodified LM."""
    negentropy: Tensor
    """float32 [scored]: Σ p·log p."""
    chunk: Tensor
    """int64 [b, t]: the chunk that each position belongs to; −1 for padding."""
    cluster: np.ndarray
    """int64 [chunks]: the bootstrap cluster that each chunk belongs to."""
    document: np.ndarray
    """int64 [chunks]: the document that each chunk belongs to."""
    shared: dict[str, np.ndarray]
    """[chunks, …] each: sums per chunk that do not depend on the SAE, by field of `metric_sums.Sums`."""

    @classmethod
    def run_clean(
        cls,
        lm: LM,
        text: HeldOut,
        group: int,
        site: str,
        mean: Tensor,
        device: torch.device | str = "cpu",
        outliers: OutlierRule | None = None,
    ) -> _ContextGroup:
        """Run the LM on a group of contexts: unmodified, with zero ablation and with mean ablation."""
        ids = torch.from_numpy(text.contexts.ids(group))
        spliced = torch.from_numpy(text.contexts.trained_mask(group))
        scored = torch.from_numpy(text.contexts.scored_mask(group))
        chunk, document = (
            torch.from_numpy(text.contexts.chunk_index(group)),
            text.contexts.chunk_documents(group).astype(np.int64),
        )
        positions = text.contexts.position_ids(group)
        resume = lm.run_to_site(ids, site, positions, torch.ones_like(ids))  # no padding on the left
        target, x = torch.roll(ids, -1, 1)[scored], resume.activation[spliced].float().to(device)
        clean = logits_with_splice(lm, resume, spliced, scored, None)
        p = torch.softmax(clean.float(), dim=-1)
        nats, negentropy = cross_entropies(clean, target, p)
        del clean
        zero, mean_nats = (
            cross_entropies(logits_with_splice(lm, resume, spliced, scored, value), target)[0]
            for value in (torch.zeros_like(x), mean.to(x).expand_as(x))
        )
        x_float64 = x.double()
        tokens, rows = (count_per_chunk(chunk, where, len(document)) for where in (scored, spliced))
        row_terms = {"x_sq": x_float64.square().sum(1), "x_sum": x_float64}
        is_outlier = find_outliers(outliers, x_float64)
        row_terms |= outlier_terms(is_outlier, row_terms | {"rows": torch.ones(len(x), dtype=torch.int64)})
        shared = {
            "tokens": tokens,
            "rows": rows,
            **{name: sum_per_chunk(v, tokens) for name, v in {"clean": nats, "zero": zero, "mean": mean_nats}.items()},
            **{name: sum_per_chunk(v, rows) for name, v in row_terms.items()},
        }
        cluster = text.cluster[document]
        return cls(
            lm,
            resume,
            spliced,
            scored,
            target,
            x,
            x_float64,
            is_outlier,
            p,
            negentropy,
            chunk,
            cluster,
            document,
            shared,
        )

    def add_to(self, totals: EvaluationSums, encoder: SparseEncoder) -> None:
        """Add this group's terms to the sums `totals` of one SAE."""
        features = encoder.encode(self.x)
        x_hat = encoder.decode(features)
        nats, expected_log_prob = cross_entropies(
            logits_with_splice(self.lm, self.resume, self.spliced, self.scored, x_hat), self.target, self.p
        )
        scored_terms = {"spliced": nats, "kl": self.negentropy - expected_log_prob}
        row_terms = reconstruction_sums(self.x_float64, x_hat, features)
        row_terms |= outlier_terms(self.is_outlier, {"error": row_terms["error"]})
        totals.outlier_firing[:] += outlier_firing(self.is_outlier, features, encoder.sae.width)
        sums = dict(self.shared)
        sums |= {name: sum_per_chunk(value, self.shared["tokens"]) for name, value in scored_terms.items()}
        sums |= {name: sum_per_chunk(value, self.shared["rows"]) for name, value in row_terms.items()}
        sums["firing"] = firing_counts(features, self.chunk[self.spliced], len(self.document), encoder.sae.width)
        for name, value in sums.items():
            np.add.at(getattr(totals.sums, name), self.cluster, value)
            if name in totals.documents:
                np.add.at(totals.documents[name], self.document, value)
