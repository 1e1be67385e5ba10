"""Selections over the whole batch, made of the selections that a kernel layer has.

    n        entries to select: round(k·B)
    bound    the n-th largest π over all entries (token, feature), by canonical values
    selected π > bound, and of π = bound the first in the support's order (feature, then token) until there are n

No kernel sorts B×M entries: the layer is asked for π > guess, with a guess a little below the bound of the last
batches. If at least n entries come back, the n largest of all are among them, whatever the guess was; if not, it is
asked again with a lower guess, finally with 0. So the guess decides how many entries are looked at, and nothing else.

B tokens · M features · |S| entries.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from jumpahead.engine.interface import AsyncKernels, CentredInput, EncoderWeights, Kernels, SelectedSupport
from jumpahead.engine.supports import Support, drop_entries, merge_supports
from jumpahead.sae.support import AboveThreshold, Selection, TopKOfBatch, TopKPerToken

FIRST_GUESS_RATIO = 0.85
"""The first guess, in multiples of the expected bound: about 1.5 times the requested entries exceed it."""
GUESS_DECAY = 0.5
"""Each further guess, in multiples of the one before."""
MAX_GUESSES = 6
"""Guesses above 0."""


def select_support(
    x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: Selection, kernels: Kernels
) -> SelectedSupport:
    """Step 1 for any selection: return the support and the smallest selected π. b_enc [M]."""
    if not isinstance(selection, TopKOfBatch):
        return SelectedSupport(kernels.find_support(x, encoder, b_enc, selection), None)
    if kernels.is_async:
        return cast(AsyncKernels, kernels).find_batch_topk(x, encoder, b_enc, selection)
    main = batch_topk(x, encoder, b_enc, selection, kernels)
    smallest = main.pre.min().item() if len(main.pre) else None
    if selection.dead is None:
        return SelectedSupport(main, smallest)
    return SelectedSupport(add_dead_topk(main, x, encoder, b_enc, selection.dead, selection.k_dead, kernels), smallest)


def batch_topk(
    x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, selection: TopKOfBatch, kernels: Kernels
) -> Support:
    """Return the support of the n largest positive π of the batch. b_enc [M]."""

    def above(guess: float) -> Support:
        return kernels.find_support(x, encoder, b_enc, AboveThreshold(torch.full_like(b_enc, guess)))

    n, (first, *others) = selection.count(len(x.x)), decreasing_guesses(float(selection.guess))
    support = above(first)
    for guess in others:
        if len(support.pre) >= n:
            break
        support = above(guess)
    return keep_n_largest(support, n)


def decreasing_guesses(expected: float) -> list[float]:
    """Return the guesses to try for an expected bound, decreasing; the last is 0."""
    if not (0 < expected < math.inf):
        return [0.0]
    return [expected * FIRST_GUESS_RATIO * GUESS_DECAY**i for i in range(MAX_GUESSES)] + [0.0]


def keep_n_largest(support: Support, n: int) -> Support:
    """Return the n largest entries of a support, or all if it has fewer; ties go to the first entry."""
    pre = support.pre
    if len(pre) <= n:
        return support
    bound = torch.kthvalue(pre, len(pre) - n + 1).values
    is_kept = pre > bound
    ties = (pre == bound).nonzero()[:, 0]
    is_kept[ties[: n - int(is_kept.sum())]] = True
    return drop_entries(support, ~is_kept)


def add_dead_topk(
    main: Support, x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, dead: Tensor, k: int, kernels: Kernels
) -> Support:
    """Return the support with, as part DEAD, the k largest positive π of each token among dead features added.

    b_enc [M]; dead [M] bool.
    """
    members = dead.nonzero()[:, 0]
    among = kernels.find_support(x, kernels.prepare_encoder(encoder.w_enc[members]), b_enc[members], TopKPerToken(k))
    return merge_supports(
        main.feature.long(), main.token.long(), main.pre,
        members[among.feature.long()], among.token.long(), among.pre, len(x.x), len(b_enc),
    )  # fmt: skip
