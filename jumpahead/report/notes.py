"""Notes on SAEs, grouped: sentences that differ only in their numbers become one, with the range of each number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
"""A number in a sentence: `0.084`, `8,192`, `4e-05`; not the digits of a name such as `l0`."""


class NoteGroup(NamedTuple):
    """One sentence, and the SAEs that it is about."""

    text: str
    """The sentence; numbers that differ between SAEs are ranges: `0.014 to 0.094`."""
    labels: list[str]
    """Labels of the SAEs, in their order, each once."""


def group_notes(notes: Iterable[tuple[str, str]]) -> list[NoteGroup]:
    """Return notes grouped by their words, in the order of the first of each. notes: (label of the SAE, sentence)."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for label, text in notes:
        groups.setdefault(NUMBER.sub("#", text), []).append((label, text))
    return [
        NoteGroup(_merge([text for _, text in group]), list(dict.fromkeys(label for label, _ in group)))
        for group in groups.values()
    ]


def _merge(texts: Sequence[str]) -> str:
    """Return sentences of the same words as one sentence, with the range of every number that differs."""
    columns = iter(list(zip(*(NUMBER.findall(text) for text in texts), strict=True)))
    return NUMBER.sub(lambda _: _range(next(columns)), texts[0])


def _range(numbers: Sequence[str]) -> str:
    """Return the range of some numbers, `4 to 64`; the number itself if all are the same."""
    ordered = sorted(set(numbers), key=lambda text: float(text.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def join_labels(labels: Sequence[str]) -> str:
    """Return labels of SAEs as text, settings of a series listed together: `Gated, l0 = 4, 8, 64; TopK, k = 4`."""
    joined: dict[str, list[str]] = {}
    for label in labels:
        head, equals, value = label.partition(" = ")
        is_plain = bool(equals) and "," not in value
        joined.setdefault(f"{head} = " if is_plain else label, []).extend([value] if is_plain else [])
    return "; ".join(f"{head}{', '.join(values)}" for head, values in joined.items())
