"""A label for each feature from token statistics, and how well it tells where the feature fires: no model is asked.

A label is a rule on one token: "the token is one of …", "the token before is one of …", or "the token is a digit". Half
of a feature's random examples choose the rule, by how much more often it holds there than in the text. The other half,
and tokens of the whole text where the feature does not fire, give the score, as in detection scoring:

    score = (share of examples where the rule holds + share of other tokens where it does not) / 2

0.5 is chance, 1 is a rule that says exactly where the feature fires. Everything is deterministic.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import numpy as np

from jumpahead.features.collect import Collected, Examples, FeatureActivity
from jumpahead.features.token_text import TokenText
from jumpahead.text.contexts import Contexts

CLEAR_SCORE = 0.65
"""Score from which a rule is the label; below, the label only names the strongest tokens."""
NAMED_TOKENS, WORDS = 3, 6
"""Tokens that a label names; strongest tokens of a feature that can be searched for."""
LONGEST_TOKEN = 24
START = -1
"""Stands for the token before the first of a text chunk."""

CLASSES: dict[str, Callable[[str], bool]] = {
    "line breaks": lambda text: "\n" in text,
    "spaces and indentation": lambda text: text != "" and text.strip(" \t") == "",
    "digits": lambda text: text.strip().isdigit(),
    "capitalised words": lambda text: text.strip()[:1].isupper() and text.strip().isalpha(),
    "words after a space": lambda text: text[:1] == " " and text.strip().isalpha(),
    "parts of words": lambda text: text != "" and text[0].isalpha() and text.isalpha(),
    "punctuation": lambda text: text.strip() != "" and not any(c.isalnum() or c.isspace() for c in text.strip()),
    "text that is not ASCII": lambda text: not text.isascii(),
}
"""Classes of tokens, by name."""


class FeatureLabel(NamedTuple):
    """The label of a feature."""

    text: str
    rule: str
    """`token`, `before`, `class`, or `none` if no rule tells where it fires."""
    score: float | None
    """Balanced accuracy of the rule on tokens that did not choose it; None for too few examples."""
    words: list[str]
    """The strongest tokens, the strongest first."""


class _Rule(NamedTuple):
    """A rule on the current token or the one before."""

    kind: str
    tokens: frozenset[int]
    name: str = ""
    """Of a class."""

    def holds(self, current: int, before: int) -> bool:
        """Return True if the rule holds for a token and the one before it."""
        return (before if self.kind == "before" else current) in self.tokens


@final
class Labeller:
    """Labels the features of the SAEs of one pass over the text."""

    def __init__(self, collected: Collected, contexts: Contexts, token_text: TokenText) -> None:
        self._contexts, self._token_text = contexts, token_text
        self._share = collected.token_counts / max(1, collected.rows)
        known = np.flatnonzero(collected.token_counts)
        texts = {int(id): token_text.text(int(id)) for id in known}
        self._classes = [
            _Rule("class", frozenset(id for id, text in texts.items() if belongs(text)), name)
            for name, belongs in CLASSES.items()
        ]
        self._class_share = [float(self._share[list(rule.tokens)].sum()) for rule in self._classes]
        current, before = self._tokens_at(collected.pool_chunk, collected.pool_offset)
        self._pool = list(zip(current.tolist(), before.tolist(), strict=True))
        self._pool_counts = {"token": Counter(current.tolist()), "before": Counter(before.tolist())}

    def label(self, activity: FeatureActivity) -> list[FeatureLabel]:
        """Return the label of every feature of an SAE."""
        fires = [[] for _ in range(activity.width)]
        for place, feature in zip(activity.pool_index.tolist(), activity.pool_feature.tolist(), strict=True):
            fires[feature].append(place)
        current, before = (tokens.tolist() for tokens in self._tokens_of(activity.sample))
        strongest = self._tokens_of(activity.top)[0].tolist()
        filled, tops = (activity.sample.value > 0).sum(1).tolist(), (activity.top.value > 0).sum(1).tolist()
        return [
            self._label(
                list(zip(current[j][: filled[j]], before[j][: filled[j]], strict=True)),
                strongest[j][: tops[j]],
                fires[j],
            )
            for j in range(activity.width)
        ]

    def _label(self, examples: list[tuple[int, int]], strongest: list[int], fires: list[int]) -> FeatureLabel:
        """Return the label of one feature.

        examples: (token, token before) where it fires, in random order. strongest: its strongest tokens. fires: the
        tokens of the pool where it fires.
        """
        words = [self._token_text.text(id) for id in dict.fromkeys(strongest)][:WORDS]
        if not examples:
            return FeatureLabel("never fires", "none", None, words)
        train, test = examples[0::2], examples[1::2]
        rule = self._choose(train)
        score = self._score(rule, test, fires) if len(test) > 1 else None
        if score is None or score < CLEAR_SCORE:
            named = ", ".join(quoted(word) for word in words[:NAMED_TOKENS])
            return FeatureLabel(f"strongest at {named}", "none", score, words)
        return FeatureLabel(self._describe(rule, examples), rule.kind, score, words)

    def _choose(self, train: list[tuple[int, int]]) -> _Rule:
        """Return the rule that holds for most of the examples and least of the text.

        A token counts for a list of tokens only if it occurs again among the examples: a list of tokens that occur
        once each says nothing about others.
        """
        n, best, best_score = len(train), None, -1.0
        for kind, counts in (("token", Counter(c for c, _ in train)), ("before", Counter(b for _, b in train))):
            chosen = {token: count for token, count in counts.items() if count / n > self._share_of(token)}
            held = sum(count for count in chosen.values() if count > 1) / n
            score = held - sum(self._share_of(token) for token in chosen)
            if score > best_score:
                best, best_score = _Rule(kind, frozenset(chosen)), score
        for rule, share in zip(self._classes, self._class_share, strict=True):
            score = sum(rule.holds(*each) for each in train) / n - share
            if score > best_score:
                best, best_score = rule, score
        assert best is not None, "a feature that fires has an example"
        return best

    def _score(self, rule: _Rule, test: list[tuple[int, int]], fires: list[int]) -> float:
        """Return the balanced accuracy of a rule: on examples, and on tokens of the pool where it does not fire."""
        found = sum(rule.holds(*each) for each in test) / len(test)
        counts = self._pool_counts["before" if rule.kind == "before" else "token"]
        held = sum(counts[token] for token in rule.tokens) - sum(rule.holds(*self._pool[place]) for place in fires)
        others = len(self._pool) - len(fires)
        return (found + 1 - held / others) / 2 if others else found / 2

    def _describe(self, rule: _Rule, examples: Sequence[tuple[int, int]]) -> str:
        """Return a rule in words; a list of tokens names those that are most frequent among the examples."""
        if rule.kind == "class":
            return rule.name
        tokens = Counter(before if rule.kind == "before" else current for current, before in examples)
        named = [
            token for token, _ in sorted(tokens.items(), key=lambda item: (-item[1], item[0])) if token in rule.tokens
        ]
        words = ["the start" if token == START else quoted(self._token_text.text(token)) for token in named]
        more = ", …" if len(words) > NAMED_TOKENS else ""
        return ("after " if rule.kind == "before" else "") + ", ".join(words[:NAMED_TOKENS]) + more

    def _share_of(self, token: int) -> float:
        """Return the share of a token in the text; that of a context's start is not known and taken as 0."""
        return 0.0 if token == START else float(self._share[token])

    def _tokens_of(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of examples and the tokens before them, int64 [M, slots] each."""
        return self._tokens_at(examples.chunk, examples.offset)

    def _tokens_at(self, chunk: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the token at each place and the one before it, `START` for the first of a text chunk."""
        place = self._contexts.chunk_start[chunk] + offset
        current, before = (
            np.asarray(self._contexts.tokens[each.ravel()]) for each in (place, np.maximum(place - 1, 0))
        )
        before = np.where(offset.ravel() > 0, before.astype(np.int64), START)
        return current.astype(np.int64).reshape(place.shape), before.reshape(place.shape)


def quoted(text: str) -> str:
    """Return a token in quotation marks, with visible line breaks, tabs and indentation; a long token is cut."""
    text = re.sub(" {4,}", lambda spaces: f"␣×{len(spaces[0])}", text.replace("\n", "⏎").replace("\t", "⇥"))
    return f"“{text if len(text) <= LONGEST_TOKEN else text[: LONGEST_TOKEN - 1] + '…'}”"
