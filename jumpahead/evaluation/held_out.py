"""What SAEs are evaluated on: held-out text, or held-out activations if there is no language model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jumpahead.activations.base import Activations
from jumpahead.text.contexts import Contexts

MOST_CLUSTERS = 256
"""Documents are bundled into so many clusters at most, which only makes intervals wider."""


class HeldOut(NamedTuple):
    """Held-out text: whole groups of contexts."""

    contexts: Contexts
    groups: int
    """How many groups, from the first, are scored."""
    cluster: np.ndarray
    """int64 [documents]: the cluster of each document that occurs in these groups, −1 for the others."""

    @classmethod
    def of(cls, contexts: Contexts, tokens: int) -> HeldOut:
        """Take whole groups until `tokens` tokens are scored, or all groups."""
        scored = np.cumsum(contexts.scored_per_group)
        groups = min(int(np.searchsorted(scored, tokens)) + 1, contexts.num_groups)
        seen = np.unique(np.concatenate([contexts.chunk_documents(group) for group in range(groups)]))
        cluster = np.full(len(contexts.document_ids), -1, np.int64)
        cluster[seen] = np.arange(len(seen)) % MOST_CLUSTERS
        return cls(contexts, groups, cluster)

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max()) + 1

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.contexts.scored_per_group[: self.groups].sum())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the documents."""
        return self.contexts.document_names

    @property
    def digest(self) -> str:
        """Digest of the text."""
        return self.contexts.digest


class HeldOutRows(NamedTuple):
    """Held-out activations, to be measured without a language model."""

    activations: Activations
    groups: int
    """How many groups, from the first, are used."""
    cluster: np.ndarray
    """int64 [documents]: the cluster of each document."""
    names: tuple[str, ...]
    """Names of the documents."""
    digest: str
    tokens: int
    """Number of tokens, or rows, that results say they were measured on."""

    @classmethod
    def of(cls, activations: Activations, tokens: int) -> HeldOutRows:
        """Take whole groups until there are `tokens` rows, or all groups; each group counts as a document."""
        rows = np.cumsum(activations.rows_per_group)
        groups = min(int(np.searchsorted(rows, tokens)) + 1, len(rows))
        names, cluster = tuple(f"group {group}" for group in range(groups)), np.arange(groups) % MOST_CLUSTERS
        return cls(activations, groups, cluster, names, activations.digest, int(rows[groups - 1]))

    @classmethod
    def of_text(cls, activations: Activations, text: HeldOut) -> HeldOutRows:
        """Take the activations of a text, so that results are comparable with those measured with the LM."""
        return cls(activations, text.groups, text.cluster, text.names, text.digest, text.tokens)

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max()) + 1
