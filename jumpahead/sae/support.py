"""The support: the entries (token, feature) that carry a value or a gradient; how they are selected and looked up.

B = tokens, M = features, |S| = number of entries of the support. A dense block: all B tokens of m features.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

Number = float | Tensor
"""A float, or a 0-d float64 tensor on the SAE's device, so that the CPU need not wait for the device."""


class AboveThreshold(NamedTuple):
    """Selection of every entry with π > lower."""

    lower: Tensor
    """[M] lower bound on π; −inf selects every token of a feature, +inf none."""
    edges: tuple[Tensor, ...] = ()
    """[M] each: further values of π at which `values` or `entry_gradients` are discontinuous. Near them and near
    `lower`, π is computed in float64 (engine/canonical.py), so that all kernel layers agree."""
    dead: Tensor | None = None
    """[M] bool mask of dead features: the `k_dead` largest positive π of each token among them are selected too, and
    marked with the bit DEAD of `Entries.part`."""
    k_dead: int = 0
    """Number of entries per token among the dead features."""


class TopKPerToken(NamedTuple):
    """Selection of the k largest positive π of each token; of equal π, the lower feature index is selected."""

    k: int
    """Number of entries per token."""
    dead: Tensor | None = None
    """[M] bool mask of dead features. The `k_dead` largest positive π of each token among them are selected too, and
    marked with the bit DEAD of `Entries.part`."""
    k_dead: int = 0
    """Number of entries per token among the dead features."""


class TopKOfBatch(NamedTuple):
    """Selection of the k·B largest positive π of a batch; of equal π, the lower feature, then the earlier token."""

    k: float
    """Mean number of entries per token."""
    guess: Number
    """An estimate of the smallest selected π; affects the speed of the selection, not its result."""
    dead: Tensor | None = None
    """[M] bool mask of dead features: the `k_dead` largest positive π of each token among them are selected too."""
    k_dead: int = 0
    """Number of entries per token among the dead features."""

    def count(self, tokens: int) -> int:
        """Return the maximum number of entries selected in a batch of `tokens` tokens, without dead features."""
        return max(1, round(self.k * tokens))


PerTokenSelection = AboveThreshold | TopKPerToken
"""Selections in which tokens are independent of each other; kernel layers implement these themselves."""
Selection = PerTokenSelection | TopKOfBatch
MAIN, DEAD = 1, 2
"""Bits of `Entries.part`: the entry has π > lower, or is among the k largest; the entry is among the `k_dead` largest
dead features."""


class EntryOps(Protocol):
    """A kernel layer's faster implementation of the lookups of `Entries` on a sparse support."""

    def per_feature(self, vector: Tensor) -> Tensor:
        """Return `vector` [M] at each entry's feature, [|S|]; see `Entries.per_feature`."""
        ...

    def between(self, low: Tensor, high: Tensor | None, weight: Tensor | None) -> Tensor:
        """Return the weight of each entry with π between two bounds, else 0, [|S|]; see `Entries.between`."""
        ...


@final
class Entries:
    """The entries of a support with their pre-activations, and lookups of per-feature and per-token vectors.

    Tensors with one value per entry have shape [|S|] on a sparse support, and [m, B] on a dense block of m features.
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
        """Pre-activation π at each entry, [|S|] or [m, B]."""
        self.feature = feature
        """[|S|] the feature index of each entry; on a dense block, [m] the feature index of each row."""
        self.part = part
        """Why each entry was selected, as bits MAIN and DEAD: uint8, shape of `pre`; None if all are MAIN only."""
        self.token = token
        """[|S|] the token index of each entry; None on a dense block, and if `per_token` is not needed."""
        self._ops = ops

    def per_feature(self, vector: Tensor) -> Tensor:
        """Return the value of `vector` [M] at each entry's feature: [|S|]; on a dense block, [m, 1]."""
        if self._ops is not None:
            return self._ops.per_feature(vector)
        selected = vector.index_select(0, self.feature)
        return selected if self.pre.dim() == 1 else selected[:, None]

    def per_token(self, vector: Tensor) -> Tensor:
        """Return the value of `vector` [B] at each entry's token: [|S|]; on a dense block, [1, B]."""
        if self.pre.dim() > 1:
            return vector[None, :]
        assert self.token is not None, "these entries have no token index"
        return vector.index_select(0, self.token)

    def between(self, low: Tensor, high: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Return weight_j at entries with low_j < π (and π < high_j if `high` is given), and 0 at all other entries.

        The result has the shape and dtype of `pre`.
        low, high, weight: [M] each; if `weight` is None, every weight is 1.
        """
        if self._ops is not None:
            return self._ops.between(low, high, weight)
        is_in = self.pre > self.per_feature(low)
        if high is not None:
            is_in &= self.pre < self.per_feature(high)
        return is_in.to(self.pre.dtype) if weight is None else is_in * self.per_feature(weight)

    def part_mask(self, bit: int) -> Tensor:
        """Return 1 at entries whose `part` has the bit (MAIN or DEAD), else 0; shape and dtype of `pre`."""
        return torch.ones_like(self.pre) if self.part is None else ((self.part & bit) != 0).to(self.pre.dtype)
