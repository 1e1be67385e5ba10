"""Evaluating SAEs on held-out text: the loss of splicing them into the LM, reconstruction, and firing frequencies.

    clean     the LM as it is
    spliced   the site's activations x replaced by x̂ at every spliceable position (not position 0, not special tokens)
    zero      replaced by 0 instead            mean      replaced by the mean activation of the training text

All SAEs of one site are evaluated together: the LM runs up to the site once per group of contexts, and per SAE only the
layers after it. On a GPU, SAEs encode and decode there, as many at once as its memory holds; sums are computed on the
CPU, in a fixed order. Sums are kept per document; `metrics.py` derives numbers from them.
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
from jumpahead.evaluation.logits import LOGIT_BYTES, scores, spliced_logits
from jumpahead.evaluation.sums import EvaluationSums, count_per_chunk, firing_counts, reconstruction_sums, sum_per_chunk
from jumpahead.lm.model import LM, ResumePoint
from jumpahead.progress import Phase, Progress, Silent
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
) -> dict[str, EvaluationSums]:
    """Return the sums of every SAE at `site`. mean [d]: the activation for mean ablation, in the LM's unit.

    device: where SAEs encode and decode; layer: the kernels that do it, by default the device's own. Raises DataError
    if an SAE's d is not that of the site.
    """
    for name, sae in saes.items():
        if sae.d != lm.width_at(site):
            raise DataError(f"{name} takes activations of width {sae.d}; {site} has {lm.width_at(site)}.")
    found = {name: EvaluationSums.zeros(sae, text) for name, sae in saes.items()}
    logits = LOGIT_BYTES * lm.vocab_size * int(text.contexts.scored_per_group[: text.groups].max())
    coders = encoder_batches(saes, device, layer, logits)
    part = next(coders, {})
    progress = progress or Silent()
    with progress.phase("evaluating", text.tokens * max(1, len(saes)), "tokens") as phase:
        while part:
            for group in range(text.groups):
                _add_group(_Group.of(lm, text, group, site, mean, device), found, part, phase)
            part = next(coders, {})
    return found


def _add_group(
    view: _Group, found: Mapping[str, EvaluationSums], coders: Mapping[str, SparseEncoder], phase: Phase
) -> None:
    """Add a group of contexts to the sums of these SAEs."""
    for name, coder in coders.items():
        view.add(found[name], coder)
        phase.advance(len(view.target))


class _Group(NamedTuple):
    """One group of contexts, run up to the site, with everything that SAEs share."""

    lm: LM
    resume: ResumePoint
    spliced: Tensor
    """bool [b, t]"""
    scored: Tensor
    """bool [b, t]"""
    target: Tensor
    """int64 [scored]: the next token of every scored position."""
    x: Tensor
    """float32 [rows, d]: the site's activations at spliced positions, where the SAEs are."""
    exact: Tensor
    """float64 [rows, d]: x again."""
    p: Tensor
    """float32 [scored, V]: clean probabilities of the next token."""
    negentropy: Tensor
    """[scored]: Σ p·log p."""
    chunk: Tensor
    """int64 [b, t]: the chunk that each position belongs to; −1 for padding."""
    cluster: np.ndarray
    """int64 [chunks]: the cluster of each chunk of a document."""
    document: np.ndarray
    """int64 [chunks]"""
    shared: dict[str, np.ndarray]
    """[chunks, …] each: the fields of `Sums` that are the same for every SAE."""

    @classmethod
    def of(
        cls, lm: LM, text: HeldOut, group: int, site: str, mean: Tensor, device: torch.device | str = "cpu"
    ) -> _Group:
        ids = torch.from_numpy(text.contexts.ids(group))
        spliced = torch.from_numpy(text.contexts.trained_mask(group))
        scored = torch.from_numpy(text.contexts.scored_mask(group))
        chunk, document = (
            torch.from_numpy(text.contexts.chunk_index(group)),
            text.contexts.chunk_documents(group).astype(np.int64),
        )
        resume = lm.run_to_site(ids, site, text.contexts.position_ids(group))
        target, x = torch.roll(ids, -1, 1)[scored], resume.activation[spliced].float().to(device)
        clean = spliced_logits(lm, resume, spliced, scored, None)
        p = torch.softmax(clean.float(), dim=-1)
        nats, negentropy = scores(clean, target, p)
        del clean
        zero, middle = (
            scores(spliced_logits(lm, resume, spliced, scored, value), target)[0]
            for value in (torch.zeros_like(x), mean.to(x).expand_as(x))
        )
        exact = x.double()
        tokens, rows = (count_per_chunk(chunk, where, len(document)) for where in (scored, spliced))
        shared = {
            "tokens": tokens,
            "rows": rows,
            **{name: sum_per_chunk(v, tokens) for name, v in {"clean": nats, "zero": zero, "mean": middle}.items()},
            **{name: sum_per_chunk(v, rows) for name, v in {"x_sq": exact.square().sum(1), "x_sum": exact}.items()},
        }
        cluster = text.cluster[document]
        return cls(lm, resume, spliced, scored, target, x, exact, p, negentropy, chunk, cluster, document, shared)

    def add(self, found: EvaluationSums, coder: SparseEncoder) -> None:
        """Add this group to the sums of one SAE."""
        features = coder.encode(self.x)
        x_hat = coder.decode(features)
        nats, cross = scores(
            spliced_logits(self.lm, self.resume, self.spliced, self.scored, x_hat), self.target, self.p
        )
        of_scored = {"spliced": nats, "kl": self.negentropy - cross}
        of_spliced = reconstruction_sums(self.exact, x_hat, features)
        sums = dict(self.shared)
        sums |= {name: sum_per_chunk(value, self.shared["tokens"]) for name, value in of_scored.items()}
        sums |= {name: sum_per_chunk(value, self.shared["rows"]) for name, value in of_spliced.items()}
        sums["firing"] = firing_counts(features, self.chunk[self.spliced], len(self.document), coder.sae.width)
        for name, value in sums.items():
            np.add.at(getattr(found.sums, name), self.cluster, value)
            if name in found.documents:
                np.add.at(found.documents[name], self.document, value)
