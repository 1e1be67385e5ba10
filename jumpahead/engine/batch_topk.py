"""Selections that look at the whole batch, made of those that a kernel layer has.

    n        entries to select: round(k·B)
    bound    the n-th largest π, canonical values, over all entries (token, feature)
    selected π > bound, and of π = bound the first in the support's order (feature, then token) until there are n

No kernel sorts B×M entries: the layer is asked for π > guess, where the guess is a little below the bound of the last
batches. If n entries come back, the n largest of all are among them, whatever the guess was; if not, it is asked again
with a lower guess, in the end with 0. So the guess decides how many entries are looked at, and nothing else.

B tokens · M features · |S| entries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from jumpahead.engine.supports import Support, union, without
from jumpahead.sae.base import Above, Largest, LargestOfBatch, Number, Selection

if TYPE_CHECKING:
    from jumpahead.engine.step import Centred, Encoder, Kernels, LateKernels

BELOW = 0.85
"""The first guess, in multiples of the bound that is expected: one and a half times the entries wanted, about."""
AGAIN = 0.5
"""Each further guess, in multiples of the one before."""
GUESSES = 6
"""Guesses above 0."""


class Selected(NamedTuple):
    """A support, and what was seen on the way."""

    support: Support
    least: Number | None
    """The smallest π that `LargestOfBatch` selected; None where it selected nothing, and for other selections. A late
    layer says the guess where it selected nothing."""


def select(x: Centred, encoder: Encoder, b_enc: Tensor, selection: Selection, kernels: Kernels) -> Selected:
    """Step 1 for any selection."""
    if not isinstance(selection, LargestOfBatch):
        return Selected(kernels.support(x, encoder, b_enc, selection), None)
    if kernels.late:
        return cast("LateKernels", kernels).largest_of_batch(x, encoder, b_enc, selection)
    main = largest_of_batch(x, encoder, b_enc, selection, kernels)
    least = main.pre.min().item() if len(main.pre) else None
    if selection.dead is None:
        return Selected(main, least)
    return Selected(with_dead(main, x, encoder, b_enc, selection.dead, selection.k_dead, kernels), least)


def largest_of_batch(
    x: Centred, encoder: Encoder, b_enc: Tensor, selection: LargestOfBatch, kernels: Kernels
) -> Support:
    """The n largest positive π of the batch."""

    def above(guess: float) -> Support:
        return kernels.support(x, encoder, b_enc, Above(torch.full_like(b_enc, guess)))

    n, (first, *others) = selection.count(len(x.x)), guesses(float(selection.guess))
    support = above(first)
    for guess in others:
        if len(support.pre) >= n:
            break
        support = above(guess)
    return largest(support, n)


def guesses(expected: float) -> list[float]:
    """Falling; the last is 0."""
    if not (0 < expected < math.inf):
        return [0.0]
    return [expected * BELOW * AGAIN**i for i in range(GUESSES)] + [0.0]


def largest(support: Support, n: int) -> Support:
    """The n largest entries of a support, all where it has no more; of equal ones the first."""
    pre = support.pre
    if len(pre) <= n:
        return support
    bound = torch.kthvalue(pre, len(pre) - n + 1).values
    is_kept = pre > bound
    ties = (pre == bound).nonzero()[:, 0]
    is_kept[ties[: n - int(is_kept.sum())]] = True
    return without(support, ~is_kept)


def with_dead(
    main: Support, x: Centred, encoder: Encoder, b_enc: Tensor, dead: Tensor, k: int, kernels: Kernels
) -> Support:
    """The support with the k largest positive π of each token among `dead` [M] besides, as part DEAD."""
    members = dead.nonzero()[:, 0]
    among = kernels.support(x, kernels.encoder(encoder.w[members]), b_enc[members], Largest(k))
    return union(
        main.feature.long(), main.token.long(), main.pre,
        members[among.feature.long()], among.token.long(), among.pre, len(x.x), len(b_enc),
    )  # fmt: skip
