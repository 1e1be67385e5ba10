"""Examples of a feature as records: the strongest, groups by quantile, and a random choice of its activations.

An example names a token of the text; the text itself is stored once for all features (`TextPassages`). All functions
take the examples of several features at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from jumpahead.features.collect import Examples, FeatureActivity
from jumpahead.features.collect_loops import BEFORE
from jumpahead.features.token_text import TokenText
from jumpahead.text.contexts import Contexts

SHOWN_TOP, QUANTILE_GROUPS, SHOWN_PER_GROUP, SHOWN_RANDOM = 10, 4, 3, 5
DIGITS = 3
"""Significant digits of activations in records."""

Record = list[Any]
"""[chunk, offset, activation, [distance, activation, …]]: the last has the other activations around the example."""


class FeatureExamples(NamedTuple):
    """The examples of one feature that its page shows."""

    top: list[Record]
    """The strongest activations, each in a text chunk of its own."""
    groups: list[dict[str, Any]]
    """{"low", "high", "examples"}: the random sample in groups of equal size, by activation, the strongest first."""
    random: list[Record]
    """A random choice of its activations, without those that the groups show."""


def feature_examples(activity: FeatureActivity, features: Sequence[int] | np.ndarray) -> list[FeatureExamples]:
    """Return the examples of some features."""
    index = np.asarray(features)
    top, sample = (_records(Examples(*(array[index] for array in kind))) for kind in (activity.top, activity.sample))
    return [
        FeatureExamples(strongest[:SHOWN_TOP], groups := quantile_groups(drawn), random_rest(drawn, groups))
        for strongest, drawn in zip(top, sample, strict=True)
    ]


def quantile_groups(drawn: list[Record]) -> list[dict[str, Any]]:
    """Return the random examples of a feature in groups of equal size by activation; [] for too few examples.

    drawn: in random order. Of each group the first in that order are shown.
    """
    if len(drawn) < QUANTILE_GROUPS:
        return []
    order = sorted(range(len(drawn)), key=lambda i: -drawn[i][2])
    groups = [sorted(part) for part in np.array_split(order, QUANTILE_GROUPS)]
    return [
        {
            "low": min(drawn[i][2] for i in group),
            "high": max(drawn[i][2] for i in group),
            "examples": [drawn[i] for i in group[:SHOWN_PER_GROUP]],
        }
        for group in groups
    ]


def random_rest(drawn: list[Record], groups: list[dict[str, Any]]) -> list[Record]:
    """Return the first random examples that no group shows."""
    shown = [id(record) for group in groups for record in group["examples"]]
    return [record for record in drawn if id(record) not in shown][:SHOWN_RANDOM]


def _records(examples: Examples) -> list[list[Record]]:
    """Return the filled slots of every feature as records, in the order of the slots."""
    n, slots = examples.value.shape
    windows = examples.window.reshape(n * slots, -1).copy()
    windows[:, BEFORE] = 0  # the example's own activation stands beside it
    slot, place = np.nonzero(windows)
    value = rounded(windows[slot, place]).tolist()
    pairs = np.searchsorted(slot, np.arange(n * slots + 1)).tolist()
    distance, own = (place - BEFORE).tolist(), rounded(examples.value).ravel().tolist()
    chunk, offset = examples.chunk.ravel().tolist(), examples.offset.ravel().tolist()
    records = [
        [chunk[s], offset[s], own[s], [x for p in range(pairs[s], pairs[s + 1]) for x in (distance[p], value[p])]]
        for s in range(n * slots)
    ]
    filled = (examples.value > 0).sum(1).tolist()
    return [records[i * slots : i * slots + filled[i]] for i in range(n)]


def rounded(values: np.ndarray, digits: int = DIGITS) -> np.ndarray:
    """Return values rounded to significant digits, float64."""
    values = np.asarray(values, np.float64)
    size = np.floor(np.log10(np.where(values == 0, 1, np.abs(values))))
    factor = 10.0 ** np.abs(digits - 1 - size)
    is_small = digits - 1 - size >= 0
    return np.where(is_small, np.round(values * factor) / factor, np.round(values / factor) * factor)


@final
class TextPassages:
    """The text chunks of held-out text, as token texts, with the document and place that each is from."""

    def __init__(self, contexts: Contexts, token_text: TokenText) -> None:
        self.contexts, self.token_text = contexts, token_text
        start = np.full(len(contexts.document_names), np.iinfo(np.int64).max)
        np.minimum.at(start, contexts.chunk_document, contexts.chunk_start)
        self._document_start = start

    def ids(self, chunk: int) -> np.ndarray:
        """Return the token ids of a text chunk."""
        start = int(self.contexts.chunk_start[chunk])
        return np.asarray(self.contexts.tokens[start : start + int(self.contexts.chunk_length[chunk])])

    def passage(self, chunk: int) -> dict[str, Any]:
        """Return a text chunk as {"document", "start", "tokens"}; start: its first token's place in the document."""
        document = int(self.contexts.chunk_document[chunk])
        start = int(self.contexts.chunk_start[chunk] - self._document_start[document])
        name = self.contexts.document_names[document]
        return {"document": name, "start": start, "tokens": self.token_text.texts(self.ids(chunk).tolist())}


def used_chunks(shown: Iterable[FeatureExamples]) -> set[int]:
    """Return the text chunks that examples are from."""
    found: set[int] = set()
    for one in shown:
        found.update(record[0] for record in one.top)
        found.update(record[0] for record in one.random)
        found.update(record[0] for group in one.groups for record in group["examples"])
    return found
