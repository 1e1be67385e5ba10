"""Whether a feature acts like a bias: does the LM lose as much if it is replaced by its mean as if it is removed?

    zeroed    x − f_i·d_i                the feature is removed where it fires
    mean      x + (m_i − f_i)·d_i        the feature has its mean m_i wherever it fires

The rest of x, what the SAE does not reconstruct included, stays as it is. Losses are over the tokens where it fires.

    bias-likeness = 1 − Δloss(mean) / Δloss(zeroed)

A constant feature has bias-likeness 1: its mean says as much as its value. Near 0, its value at each token matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import SparseEncoder, SparseFeatures
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.logits import cross_entropies, logits_with_splice
from jumpahead.features.collect import FeatureActivity
from jumpahead.lm.model import LM, ResumePoint
from jumpahead.progress import Phase

MIN_STANDARD_ERRORS = 2.0
"""Δloss(zeroed) must be above zero by this many standard errors for bias-likeness to be given."""


class BiasLikeness(NamedTuple):
    """Changes of the LM's loss on the tokens where a feature fires."""

    feature: int
    tokens: int
    """Number of scored tokens where the feature fires."""
    zeroed: float
    """Mean increase of the loss if the feature is removed, in nats per token."""
    mean: float
    """Mean increase of the loss if the feature is replaced by its mean, in nats per token."""
    zeroed_se: float
    """Standard error of `zeroed` over tokens."""

    @property
    def value(self) -> float | None:
        """Return the bias-likeness; None if removing the feature does not measurably raise the loss."""
        if not self.zeroed > MIN_STANDARD_ERRORS * self.zeroed_se or self.tokens < 2:
            return None
        return 1 - self.mean / self.zeroed


def most_frequent(activity: FeatureActivity, n: int) -> list[int]:
    """Return the n features that fire most often, those that never fire left out."""
    order = np.lexsort((np.arange(activity.width), -activity.count))
    return [int(j) for j in order[:n] if activity.count[j] > 0]


def measure_bias_likeness(
    encoder: SparseEncoder,
    activity: FeatureActivity,
    features: Sequence[int],
    lm: LM,
    text: HeldOut,
    site: str,
    tokens: int,
    phase: Phase | None = None,
) -> list[BiasLikeness]:
    """Return the bias-likeness of some features, on about the first `tokens` scored tokens of the text."""
    sums = np.zeros((len(features), 4))  # tokens, Σ zeroed, Σ mean, Σ zeroed²
    remaining = tokens
    for group in range(text.groups):
        batch = _Batch.run(lm, text, group, site, remaining)
        found = encoder.encode(batch.x.to(encoder.sae.device))
        for number, feature in enumerate(features):
            average = float(activity.total[feature] / max(1, activity.count[feature]))
            sums[number] += batch.changes(lm, encoder, found, feature, average)
            if phase is not None:
                phase.advance(len(batch.target))
        remaining -= len(batch.target)
        if remaining <= 0:
            break
    return [_result(feature, *map(float, row)) for feature, row in zip(features, sums, strict=True)]


def _result(feature: int, n: float, zeroed: float, mean: float, squares: float) -> BiasLikeness:
    """Return the result for one feature from its sums over n tokens."""
    if n == 0:
        return BiasLikeness(feature, 0, 0.0, 0.0, 0.0)
    variance = max(0.0, squares / n - (zeroed / n) ** 2)
    return BiasLikeness(feature, int(n), zeroed / n, mean / n, math.sqrt(variance / n))


class _Batch(NamedTuple):
    """Some contexts, run up to the site and, unmodified, to the end."""

    resume: ResumePoint
    spliced: Tensor
    """bool [b, t]: positions that the SAE encodes."""
    scored: Tensor
    """bool [b, t]: positions whose next-token loss counts."""
    target: Tensor
    """int64 [scored]: the next token."""
    x: Tensor
    """float32 [rows, d]: activations at the spliced positions."""
    clean: Tensor
    """float32 [scored]: loss of the unmodified LM."""

    @classmethod
    def run(cls, lm: LM, text: HeldOut, group: int, site: str, tokens: int) -> _Batch:
        """Run the first contexts of a group that have `tokens` scored tokens; the whole group if it has fewer."""
        contexts = text.contexts
        scored = torch.from_numpy(contexts.scored_mask(group))
        enough = int(np.searchsorted(np.cumsum(scored.sum(1).numpy()), tokens)) + 1
        ids, positions = torch.from_numpy(contexts.ids(group))[:enough], contexts.position_ids(group)
        spliced, scored = torch.from_numpy(contexts.trained_mask(group))[:enough], scored[:enough]
        positions = None if positions is None else positions[:enough]
        resume = lm.run_to_site(ids, site, positions, torch.ones_like(ids))  # no padding on the left
        target = torch.roll(ids, -1, 1)[scored]
        clean, _ = cross_entropies(logits_with_splice(lm, resume, spliced, scored, None), target)
        return cls(resume, spliced, scored, target, resume.activation[spliced].float(), clean)

    def changes(
        self, lm: LM, encoder: SparseEncoder, found: SparseFeatures, feature: int, average: float
    ) -> np.ndarray:
        """Return, over the scored tokens where a feature fires: their number, Σ zeroed, Σ mean and Σ zeroed² in nats.

        average: the feature's mean where it fires.
        """
        rows = torch.arange(len(self.x)).repeat_interleave(found.indptr.diff().cpu())
        entries = (found.feature == feature).cpu()
        value = torch.zeros(len(self.x)).index_put((rows[entries],), found.value.float().cpu()[entries])
        fires = torch.zeros_like(self.spliced)
        fires[self.spliced] = value > 0
        counted = fires & self.scored
        if not bool(counted.any()):
            return np.zeros(4)
        is_counted = counted[self.scored]
        target, clean = self.target[is_counted], self.clean[is_counted]
        direction = encoder.sae.params["W_dec"][feature].to(self.x)
        replaced = [-value, torch.where(value > 0, average - value, 0)]
        zeroed, mean = (
            self._loss(lm, counted, target, self.x + change.to(self.x)[:, None] * direction) - clean
            for change in replaced
        )
        zeroed, mean = zeroed.double().numpy(), mean.double().numpy()
        return np.array([len(zeroed), zeroed.sum(), mean.sum(), (zeroed**2).sum()])

    def _loss(self, lm: LM, counted: Tensor, target: Tensor, x: Tensor) -> Tensor:
        """Return the loss at the counted positions with x [rows, d] at the spliced positions."""
        return cross_entropies(logits_with_splice(lm, self.resume, self.spliced, counted, x), target)[0]
