"""The data that SAEs are evaluated on: held-out text, or held-out activations if there is no language model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jumpahead.activations.base import Activations
from jumpahead.resampling import MOST_CLUSTERS
from jumpahead.text.contexts import Contexts


class HeldOut(NamedTuple):
    """Held-out text: consecutive groups of contexts."""

    contexts: Contexts
    groups: int
    """The number of the group after the last scored one: the number of scored groups, if the first is scored."""
    cluster: np.ndarray
    """int64 [documents]: the cluster of each document in the scored groups; −1 for documents not in them."""
    start: int = 0
    """The number of the first scored group."""

    @classmethod
    def first_groups(cls, contexts: Contexts, tokens: int) -> HeldOut:
        """Return the first groups of contexts with at least `tokens` scored tokens; all groups if there are fewer."""
        return cls._consecutive(contexts, 0, tokens)

    @classmethod
    def groups_after(cls, text: HeldOut, tokens: int) -> HeldOut:
        """Return the groups that follow `text`, with at least `tokens` scored tokens, or as many as there are."""
        return cls._consecutive(text.contexts, text.groups, tokens)

    @classmethod
    def _consecutive(cls, contexts: Contexts, start: int, tokens: int) -> HeldOut:
        """Return the groups from `start` on with at least `tokens` scored tokens; all if there are fewer."""
        scored = np.cumsum(contexts.scored_per_group[start:])
        end = min(start + int(np.searchsorted(scored, tokens)) + 1, contexts.num_groups)
        chunks = [contexts.chunk_documents(group) for group in range(start, end)]
        seen = np.unique(np.concatenate(chunks)) if chunks else np.empty(0, np.int64)
        cluster = np.full(len(contexts.document_ids), -1, np.int64)
        cluster[seen] = np.arange(len(seen)) % MOST_CLUSTERS
        return cls(contexts, end, cluster, start)

    @property
    def clusters(self) -> int:
        """Return the number of clusters."""
        return int(self.cluster.max()) + 1

    @property
    def tokens(self) -> int:
        """Return the number of scored tokens."""
        return int(self.contexts.scored_per_group[self.start : self.groups].sum())

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the documents."""
        return self.contexts.document_names

    @property
    def digest(self) -> str:
        """Return the digest of the text."""
        return self.contexts.digest


class HeldOutRows(NamedTuple):
    """Held-out activations, on which SAEs are evaluated without a language model."""

    activations: Activations
    groups: int
    """Number of groups of rows, from the first, that are used."""
    cluster: np.ndarray
    """int64 [documents]: the cluster of each document."""
    names: tuple[str, ...]
    """Names of the documents."""
    digest: str
    """Digest of the activations, or of the text that the activations belong to."""
    tokens: int
    """Number of tokens (rows, if there is no text), as reported in evaluation.json."""

    @classmethod
    def first_groups(cls, activations: Activations, tokens: int) -> HeldOutRows:
        """Return the first groups with at least `tokens` rows; all groups if there are fewer.

        Each group of rows counts as one document.
        """
        rows = np.cumsum(activations.rows_per_group)
        groups = min(int(np.searchsorted(rows, tokens)) + 1, len(rows))
        names, cluster = tuple(f"group {group}" for group in range(groups)), np.arange(groups) % MOST_CLUSTERS
        return cls(activations, groups, cluster, names, activations.digest, int(rows[groups - 1]))

    @classmethod
    def with_documents_of(cls, activations: Activations, text: HeldOut) -> HeldOutRows:
        """Return activations of a held-out text, with documents, clusters and token count taken from the text.

        Results are then comparable with `evaluate` on the same text.
        """
        return cls(activations, text.groups, text.cluster, text.names, text.digest, text.tokens)

    @property
    def clusters(self) -> int:
        """Return the number of clusters."""
        return int(self.cluster.max()) + 1
