"""Contexts: a study's text as token ids, cut for the language model. No torch here.

    n, t      contexts in a group, positions (of the longest context in the group)

A context is [BOS] followed by a chunk of ONE document; documents are never packed together. Contexts come in one fixed
order that looks random and depends on no seed of a study. Consecutive `batch` contexts form a group: what the language
model runs at once. Padding is on the right, where a causal model cannot see it.

    position   0      1   2   3   4   5
    token      BOS    a   b   ◆   c   pad        ◆ a special token inside the text
    trained           ×   ×       ×              the activation is trained on, spliced, counted
    scored            ×   ×                      … and there is a next token to score (here: b after a, ◆ after b)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from jumpahead.errors import ArtefactError, DataError
from jumpahead.lm.text import Document, is_held_out
from jumpahead.store import digest_json, read_arrays, read_json, write_json, write_tensors

Split = Literal["train", "held_out"]
SCHEMA = "jumpahead.contexts/1"
ORDER = 2407_14435  # what the fixed order is drawn from; another number is another stream for every study
_CHARACTERS = 2_000_000  # tokenised at once: enough to keep every core busy


class Tokenises(Protocol):
    """What `tokenize` needs of an LM."""

    bos_id: int | None
    context: int
    batch: int
    vocabulary: int
    name: str

    @property
    def special(self) -> np.ndarray: ...

    def encode(self, texts: list[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Contexts:
    """All contexts of one split, in their fixed order."""

    tokens: np.ndarray
    """uint16 or uint32 [tokens]: the documents' token ids one after the other, without BOS."""
    start: np.ndarray
    """int64 [contexts]: where each context's chunk begins in `tokens`."""
    length: np.ndarray
    """int64 [contexts]: tokens in the chunk, without BOS."""
    owner: np.ndarray
    """int32 [contexts]: the document each context is a part of, an index into `identities`."""
    identities: tuple[str, ...]
    """What each document is known by."""
    names: tuple[str, ...]
    """What each document is called in messages."""
    special: np.ndarray
    """bool [V]: the ids that are neither trained on nor spliced."""
    bos_id: int | None
    batch: int
    """Contexts per group."""
    split: Split

    # ------------------------------------------------------------------------------------------ groups

    @property
    def groups(self) -> int:
        return -(-len(self.start) // self.batch)

    def of(self, group: int) -> slice:
        """Which contexts a group holds; the last group may be smaller."""
        assert 0 <= group < self.groups, f"group {group} of {self.groups}"
        return slice(group * self.batch, min((group + 1) * self.batch, len(self.start)))

    def ids(self, group: int) -> np.ndarray:
        """int64 [n, t], padded on the right with BOS (or 0) to the longest context of the group."""
        start, length = self.start[self.of(group)], self.length[self.of(group)]
        here = np.arange(length.max())
        inside = here < length[:, None]
        ids = np.where(inside, self.tokens[np.where(inside, start[:, None] + here, 0)], self.bos_id or 0)
        ids = ids.astype(np.int64)
        return ids if self.bos_id is None else np.pad(ids, ((0, 0), (1, 0)), constant_values=self.bos_id)

    def trained(self, group: int) -> np.ndarray:
        """bool [n, t]: trained on, spliced, counted — not position 0, not special, not padding."""
        return self._usable(group, last=0)

    def scored(self, group: int) -> np.ndarray:
        """bool [n, t]: position t is trained, and token t + 1 of the same context exists to be predicted."""
        return self._usable(group, last=1)

    def document(self, group: int) -> np.ndarray:
        """int32 [n]: the document each context of the group is a part of."""
        return self.owner[self.of(group)]

    def _usable(self, group: int, last: int) -> np.ndarray:
        ids, length = self.ids(group), self.length[self.of(group)] + self._lead
        here = np.arange(ids.shape[1])
        return (here > 0) & (here < length[:, None] - last) & ~self.special[ids]

    # ------------------------------------------------------------------------------------------ counts

    @property
    def _lead(self) -> int:
        return int(self.bos_id is not None)

    def _counts(self, last: int) -> np.ndarray:
        """Usable positions of every context, from prefix sums over the token ids alone."""
        before = np.concatenate([[0], np.cumsum(~self.special[self.tokens], dtype=np.int64)])
        first = self.start + (1 - self._lead)  # without BOS, the first token of the text stands at position 0
        return before[self.start + self.length - last] - before[first]

    @cached_property
    def rows_per_group(self) -> np.ndarray:
        """int64 [groups]: trained positions, that is activations, of each group."""
        return np.add.reduceat(self._counts(last=0), np.arange(0, len(self.start), self.batch))

    @cached_property
    def scored_per_group(self) -> np.ndarray:
        """int64 [groups]: scored tokens of each group."""
        return np.add.reduceat(self._counts(last=1), np.arange(0, len(self.start), self.batch))

    @property
    def rows(self) -> int:
        """All trained positions: the distinct training tokens of a study."""
        return int(self.rows_per_group.sum())

    # ------------------------------------------------------------------------------------------ files

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the groups."""
        sha = hashlib.sha256()
        for array in (self.tokens, self.start, self.length, self.owner, self.special):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
        return digest_json([sha.hexdigest(), self.identities, self.bos_id, self.batch, self.split])

    def save(self, folder: str | Path) -> None:
        """Writes `contexts.safetensors` and, last, `contexts.json` into the folder."""
        folder = Path(folder)
        arrays = {"tokens": self.tokens, "start": self.start, "length": self.length, "owner": self.owner}
        write_tensors(folder / "contexts.safetensors", {**arrays, "special": self.special})
        head = {"schema": SCHEMA, "digest": self.digest, "split": self.split, "batch": self.batch}
        head |= {"bos_id": self.bos_id, "contexts": len(self.start), "tokens": len(self.tokens)}
        write_json(folder / "contexts.json", {**head, "identities": self.identities, "names": self.names}, indent=None)

    @classmethod
    def load(cls, folder: str | Path) -> Contexts:
        """Reads what `save` wrote; ArtefactError where it is missing, torn or not what it says it is."""
        folder = Path(folder)
        head = read_json(folder / "contexts.json", SCHEMA)
        arrays = read_arrays(folder / "contexts.safetensors")
        texts = {name: tuple(head[name]) for name in ("identities", "names")}
        contexts = cls(**arrays, **texts, **{name: head[name] for name in ("bos_id", "batch", "split")})
        if contexts.digest != head["digest"]:
            raise ArtefactError(
                f"{folder} holds tokens of another text: remove it, and `jumpahead run` makes it again."
            )
        return contexts


def tokenize(
    documents: Iterable[Document],
    lm: Tokenises,
    *,
    split: Split,
    held_out: float = 0.1,
    max_tokens: int | None = None,
) -> Contexts:
    """The contexts of one split of the documents, at most `max_tokens` tokens (without BOS) of them.

    Raises DataError where the split holds less than one full context of text.
    """
    lead = int(lm.bos_id is not None)
    chunk = lm.context - lead
    small = lm.vocabulary <= 2**16
    tokens: list[np.ndarray] = []
    identities: list[str] = []
    names: list[str] = []
    total = 0
    for batch in _batches(d for d in documents if is_held_out(d.identity, held_out) == (split == "held_out")):
        for document, ids in zip(batch, lm.encode([d.text for d in batch]), strict=True):
            if max_tokens is not None:
                ids = ids[: max_tokens - total]
                if not len(ids):
                    break
            if len(ids) and int(ids.max()) >= lm.vocabulary:
                raise DataError(
                    f"the tokenizer of '{lm.name}' makes token {ids.max()} of {document.name}, but the model knows "
                    f"only {lm.vocabulary}: they do not belong together."
                )
            tokens.append(ids.astype(np.uint16 if small else np.uint32))
            identities.append(document.identity)
            names.append(document.name)
            total += len(ids)
        if max_tokens is not None and total >= max_tokens:
            break
    start, length, owner = _chunks([len(ids) for ids in tokens], chunk, 3 - lead)
    if total < chunk or not len(start):
        raise DataError(_too_short(split, held_out, names, total, chunk))
    order = shuffled(len(start), ORDER)
    return Contexts(
        tokens=np.concatenate(tokens),
        start=start[order],
        length=length[order],
        owner=owner[order],
        identities=tuple(identities),
        names=tuple(names),
        special=lm.special,
        bos_id=lm.bos_id,
        batch=lm.batch,
        split=split,
    )


def shuffled(n: int, *key: int) -> np.ndarray:
    """int64 [n]: a permutation that is a function of the key (non-negative integers) alone, on every machine.

    From raw Philox output and a stable sort: unlike `Generator.permutation`, both promise never to change.
    """
    entropy = (len(key), *key)  # SeedSequence takes (1, 2) and (1, 2, 0) for the same
    return np.argsort(np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n), kind="stable")


def _batches(documents: Iterable[Document]) -> Iterable[list[Document]]:
    """Consecutive documents, of `_CHARACTERS` characters together or a little more."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _chunks(lengths: list[int], chunk: int, shortest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts each document into chunks; returns start, length and document of each that has something to score."""
    size = np.asarray(lengths, dtype=np.int64)
    first, count = np.cumsum(size) - size, -(-size // chunk)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    start = first[owner] + number * chunk
    length = np.minimum(chunk, size[owner] - number * chunk)
    keep = length >= shortest
    return start[keep], length[keep], owner[keep]


def _too_short(split: Split, held_out: float, names: list[str], total: int, needed: int) -> str:
    what = "training text" if split == "train" else "held-out text"
    if not names:
        return (
            f"the {what} is empty: none of the documents is on that side of text.held_out = {held_out:g}; give more "
            "documents (a folder, or text.separator to cut a file into parts) or another share."
        )
    where = names[0] if len(names) == 1 else f"{len(names)} documents, {names[0]} among them"
    return (
        f"the {what} is too short, {total} tokens ({where}) where at least {needed} are needed, one full context: give "
        "more text, or a smaller lm.context."
    )
