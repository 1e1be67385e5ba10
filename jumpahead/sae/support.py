"""The support: which entries (token, feature) carry a value or a gradient, and lookups at those entries.

B = tokens, M = features, |S| = entries of the support.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

Number = float | Tensor
"""A float, or a 0-d float64 tensor on the SAE's device, so that a step need not synchronize with the device."""


class Above(NamedTuple):
    """Selection: every entry with π > lower."""

    lower: Tensor
    """[M]; −inf selects every token of a feature, +inf none."""
    edges: tuple[Tensor, ...] = ()
    """[M] each: other values of π at which `values` or `rule` are discontinuous; decided canonically, like `lower`."""


class Largest(NamedTuple):
    """Selection: the k largest positive π of each token; ties go to the lower feature index."""

    k: int
    """Entries per token."""
    dead: Tensor | None = None
    """[M] bool: the `k_dead` largest positive π of each token among these features are selected too, as part DEAD."""
    k_dead: int = 0
    """Entries per token among the dead features."""


class LargestOfBatch(NamedTuple):
    """Selection: the largest positive π of a whole batch; ties go to the lower feature, then the earlier token."""

    k: float
    """Entries per token, on average over the batch."""
    guess: Number
    """An estimate of the smallest selected π. It affects the time that the selection takes, not its result."""
    dead: Tensor | None = None
    """[M] bool: as in `Largest`, per token."""
    k_dead: int = 0
    """Entries per token among the dead features."""

    def count(self, tokens: int) -> int:
        """Return the maximum number of entries selected in a batch of that many tokens."""
        return max(1, round(self.k * tokens))


PerTokenSelection = Above | Largest
"""The selections that a kernel layer implements by itself: whether an entry is selected depends on its token alone."""
Selection = PerTokenSelection | LargestOfBatch
MAIN, DEAD = 1, 2  # bits of Entries.part


class EntryOps(Protocol):
    """The lookups of `Entries` in a kernel layer that is faster than tensor operations, on a sparse support."""

    def per_feature(self, vector: Tensor) -> Tensor:
        """Return `Entries.per_feature`."""
        ...

    def between(self, low: Tensor, high: Tensor | None, weight: Tensor | None) -> Tensor:
        """Return `Entries.between`."""
        ...


@final
class Entries:
    """Support vectors: a value per entry, and the lookup of what belongs to its feature or its token.

    On a sparse support every vector is [|S|]; on a dense block of m features it is [m, B].
    """

    def __init__(
        self,
        pre: Tensor,
        feature: Tensor,
        part: Tensor | None = None,
        token: Tensor | None = None,
        ops: EntryOps | None = None,
    ):
        self.pre = pre
        """π at each entry, [|S|] or [m, B]."""
        self.feature = feature
        """[|S|] the feature of each entry, or [m] the features of the block's rows."""
        self.part = part
        """uint8 like `pre`, bits MAIN and DEAD; None if all entries are MAIN."""
        self.token = token
        """[|S|] the token of each entry; None on a dense block, and if `per_token` is not needed."""
        self._ops = ops

    def per_feature(self, vector: Tensor) -> Tensor:
        """Return `vector` [M] at each entry's feature: [|S|], or [m, 1]."""
        if self._ops is not None:
            return self._ops.per_feature(vector)
        found = vector.index_select(0, self.feature)
        return found if self.pre.dim() == 1 else found[:, None]

    def per_token(self, vector: Tensor) -> Tensor:
        """Return `vector` [B] at each entry's token: [|S|], or [1, B]."""
        if self.pre.dim() > 1:
            return vector[None, :]
        assert self.token is not None, "these entries have no token index"
        return vector.index_select(0, self.token)

    def between(self, low: Tensor, high: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Return weight_j at entries with low_j < π (and π < high_j if given), 0 elsewhere. Like `pre`.

        low, high, weight: [M]; the weight is 1 if None.
        """
        if self._ops is not None:
            return self._ops.between(low, high, weight)
        is_in = self.pre > self.per_feature(low)
        if high is not None:
            is_in &= self.pre < self.per_feature(high)
        return is_in.to(self.pre.dtype) if weight is None else is_in * self.per_feature(weight)

    def in_part(self, bit: int) -> Tensor:
        """Return 1 at the entries of a part, 0 elsewhere; like `pre`. bit: MAIN or DEAD."""
        return torch.ones_like(self.pre) if self.part is None else ((self.part & bit) != 0).to(self.pre.dtype)
