"""Contexts: a study's text as token ids, cut for the language model. No torch here.

    n, t      contexts in a group, positions (of the longest context in the group)

A context is [BOS] and one chunk of ONE document; with packing, several: [BOS] chunk [BOS] chunk …, each of another
document. Contexts come in one fixed order that looks random and depends on no seed of a study. Consecutive `batch`
contexts form a group: what the language model runs at once. Padding is on the right, where a causal model cannot see
it.

    position   0      1   2   3   4   5      6   7   8
    token      BOS    a   b   ◆   c   BOS    d   e   pad        ◆ a special token inside the text
    trained           ×   ×       ×          ×   ×              the activation is trained on, spliced, counted
    scored            ×   ×                  ×                  … and its chunk has a next token (here: b, ◆, e)
    positions  0      1   2   3   4   0      1   2   3          what an isolated model is told (lm/isolation.py)

Of conversations (`text.chat`) only the tokens of some roles are trained and scored, × above; a chunk without any that
could be scored is left out. What is chosen is kept with the tokens.

On disk token ids lie in shards, which are written while the text is read; a killed call goes on after the last of them.
They are mapped, not loaded.

    tokens-00000.safetensors     `tokens`, and `pieces`: how many of them each piece of text has, one after another;
                                 of conversations, `chosen`
    contexts.safetensors         start, length, owner of every chunk; special; count
    contexts.json                written last: the rest, and the digest of it all
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from jumpahead import store
from jumpahead.errors import ArtefactError, DataError
from jumpahead.store import digest_json, read_arrays, read_json, write_json, write_tensors
from jumpahead.text.chat import Conversation, Encoded
from jumpahead.text.documents import is_held_out, stretches
from jumpahead.text.source import Document

Split = Literal["train", "held_out"]
Packing = Literal["none", "isolated", "plain"]
SPLITS: tuple[Split, Split] = ("train", "held_out")
SCHEMA = "jumpahead.contexts/2"
ORDER = 2407_14435  # what the fixed order is drawn from; another number is another stream for every study
SHARD = 2**26
"""Tokens in a file, or a little more."""
_CHARACTERS = 2_000_000  # tokenised at once: enough to keep every core busy
_AT_ONCE = 2**22  # tokens that are counted at once


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

    def encode_conversations(self, conversations: Sequence[tuple[Conversation, str]]) -> list[Encoded]: ...


class Shards:
    """What several files hold of tokens, read as one array by index or by slice."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self._first = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self._first[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        if isinstance(index, slice):
            low, high, step = index.indices(len(self))
            assert step == 1, "tokens are read forwards"
            bounds = zip(self.parts, self._first[:-1], strict=True)
            return np.concatenate([part[max(0, low - first) : max(0, high - first)] for part, first in bounds])
        if len(self.parts) == 1:
            return self.parts[0][index]
        found = np.empty(index.shape, self.dtype)
        part = np.searchsorted(self._first, index, side="right") - 1
        for number in np.unique(part):
            here = part == number
            found[here] = self.parts[number][index[here] - self._first[number]]
        return found


class _Layout(NamedTuple):
    """Where the chunks of a group stand."""

    ids: np.ndarray
    """int64 [n, t]"""
    chunk: np.ndarray
    """int64 [n, t]: which of the group's chunks stands here, its BOS included; −1 for padding."""
    chosen: np.ndarray
    """bool [n, t]: of a role that is trained on."""
    local: np.ndarray
    """int64 [n, t]: the position within the chunk and its BOS; padding goes on."""
    size: np.ndarray
    """int64 [chunks]: tokens of each, its BOS included."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """All contexts of one split, in their fixed order."""

    tokens: np.ndarray | Shards
    """uint16 or uint32 [tokens]: the documents' token ids one after the other, without BOS."""
    start: np.ndarray
    """int64 [chunks]: where each chunk begins in `tokens`, context by context."""
    length: np.ndarray
    """int64 [chunks]: tokens in the chunk, without BOS."""
    owner: np.ndarray
    """int32 [chunks]: the document each chunk is a part of, an index into `identities`."""
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
    packing: Packing = "none"
    count: np.ndarray | None = None
    """int64 [contexts]: chunks in each context; None where nothing is packed and every context is one chunk."""
    chosen: np.ndarray | Shards | None = None
    """bool [tokens]: of a role that is trained on; None where the text is no conversations and all are."""

    # ------------------------------------------------------------------------------------------ groups

    def __len__(self) -> int:
        return len(self.start if self.count is None else self.count)

    @cached_property
    def _first(self) -> np.ndarray:
        """int64 [contexts + 1]: the first chunk of each context, and how many chunks there are."""
        if self.count is None:
            return np.arange(len(self.start) + 1)
        return np.concatenate([[0], np.cumsum(self.count)])

    @property
    def groups(self) -> int:
        return -(-len(self) // self.batch)

    def of(self, group: int) -> slice:
        """Which contexts a group holds; the last group may be smaller."""
        assert 0 <= group < self.groups, f"group {group} of {self.groups}"
        return slice(group * self.batch, min((group + 1) * self.batch, len(self)))

    def _chunks_of(self, group: int) -> slice:
        contexts = self.of(group)
        return slice(self._first[contexts.start], self._first[contexts.stop])

    def _places(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [chunks] each: the context in the group that each chunk stands in, and where in it the chunk begins."""
        contexts, chunks = self.of(group), self._chunks_of(group)
        size = self.length[chunks] + self._lead
        first = np.cumsum(size) - size  # of each chunk, were the group's contexts one line
        row = np.repeat(
            np.arange(contexts.stop - contexts.start), np.diff(self._first[contexts.start : contexts.stop + 1])
        )
        return row, first - first[self._first[contexts] - chunks.start][row]

    def _layout(self, group: int) -> _Layout:
        contexts, chunks = self.of(group), self._chunks_of(group)
        size = self.length[chunks] + self._lead
        row, column = self._places(group)
        shape = (contexts.stop - contexts.start, int((column + size).max()))
        number, local = _ranges(size)
        at = (row * shape[1] + column)[number] + local
        is_text = local >= self._lead
        ids, chunk = np.full(shape, self.bos_id or 0), np.full(shape, -1)
        token = ((self.start[chunks] - self._lead)[number] + local)[is_text]
        ids.flat[at[is_text]] = self.tokens[token]
        chunk.flat[at] = number
        chosen = np.full(shape, self.chosen is None)
        if self.chosen is not None:
            chosen.flat[at[is_text]] = self.chosen[token]
        last = np.maximum.accumulate(chunk, axis=1)  # padding goes on with the chunk before it
        return _Layout(ids, chunk, chosen, np.arange(shape[1]) - column[last], size)

    def ids(self, group: int) -> np.ndarray:
        """int64 [n, t], padded on the right with BOS (or 0) to the longest context of the group."""
        return self._layout(group).ids

    def positions(self, group: int) -> np.ndarray | None:
        """int64 [n, t]: what an isolated model is told of positions; None where it counts them itself."""
        return self._layout(group).local if self.packing == "isolated" else None

    def trained(self, group: int) -> np.ndarray:
        """bool [n, t]: trained on, spliced, counted — not first in its chunk, not special, not padding, of a role."""
        return self._usable(group, last=0)

    def scored(self, group: int) -> np.ndarray:
        """bool [n, t]: position t is trained, and token t + 1 of the same chunk exists to be predicted."""
        return self._usable(group, last=1)

    def chunk(self, group: int) -> np.ndarray:
        """int64 [n, t]: which of the group's chunks each position belongs to; −1 for padding."""
        return self._layout(group).chunk

    def document(self, group: int) -> np.ndarray:
        """int32 [chunks]: the document each chunk of the group is a part of."""
        return self.owner[self._chunks_of(group)]

    def labels(self, group: int) -> dict[str, np.ndarray]:
        """int32 [n] each, of every trained position of a group: its `token`, its `document` and its `position` in the
        context.

        As `ids`, `document` and `trained` have them, without making the padded grid of the group for each of these.
        """
        chunks, skipped = self._chunks_of(group), 1 - self._lead  # what stands first in a chunk is not trained
        size = self.length[chunks] - skipped
        number, local = _ranges(size)
        token = (self.start[chunks] + skipped)[number] + local
        ids = self.tokens[token]
        usable = ~self.special[ids]
        if self.chosen is not None:
            usable &= self.chosen[token]
        number, position = number[usable], (self._places(group)[1] + 1)[number] + local
        found = {"token": ids[usable], "document": self.document(group)[number], "position": position[usable]}
        return {name: value.astype(np.int32) for name, value in found.items()}

    def _usable(self, group: int, last: int) -> np.ndarray:
        ids, chunk, chosen, local, size = self._layout(group)
        return (chunk >= 0) & (local > 0) & (local < size[chunk] - last) & ~self.special[ids] & chosen

    # ------------------------------------------------------------------------------------------ counts

    @property
    def _lead(self) -> int:
        return int(self.bos_id is not None)

    def _counts(self, last: int) -> np.ndarray:
        """Usable positions of every chunk, from prefix sums over the tokens alone."""
        first = self.start + (1 - self._lead)  # without BOS, the first token of the text stands at position 0
        return self._usable_before(self.start + self.length - last) - self._usable_before(first)

    def _usable_before(self, index: np.ndarray) -> np.ndarray:
        """How many tokens that are chosen and not special stand before each index into `tokens`; a stretch of them at a
        time."""
        order = np.argsort(index, kind="stable")
        found, before = np.empty(len(index), np.int64), 0
        for first in range(0, len(self.tokens) + 1, _AT_ONCE):
            usable = ~self.special[self.tokens[first : first + _AT_ONCE]]
            if self.chosen is not None:
                usable &= self.chosen[first : first + _AT_ONCE]
            sums = np.concatenate([[0], np.cumsum(usable, dtype=np.int64)])
            low, high = np.searchsorted(index, [first, first + _AT_ONCE], sorter=order)
            here = order[low:high]
            found[here] = before + sums[index[here] - first]
            before += int(sums[-1])
        return found

    @cached_property
    def rows_per_group(self) -> np.ndarray:
        """int64 [groups]: trained positions, that is activations, of each group."""
        return np.add.reduceat(self._counts(last=0), self._first[: -1 : self.batch])

    @cached_property
    def scored_per_group(self) -> np.ndarray:
        """int64 [groups]: scored tokens of each group."""
        return np.add.reduceat(self._counts(last=1), self._first[: -1 : self.batch])

    @property
    def rows(self) -> int:
        """All trained positions: the distinct training tokens of a study."""
        return int(self.rows_per_group.sum())

    # ------------------------------------------------------------------------------------------ files

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the groups."""
        sha = hashlib.sha256()
        packed = () if self.count is None else (self.count,)
        chosen = () if self.chosen is None else (self.chosen,)
        for array in (self.tokens, self.start, self.length, self.owner, self.special, *packed, *chosen):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            for part in _parts(array):
                sha.update(np.ascontiguousarray(part).data)
        how = [] if self.count is None else [self.packing]
        return digest_json([sha.hexdigest(), self.identities, self.bos_id, self.batch, self.split, *how])

    def save(self, folder: str | Path) -> None:
        """Writes all of it into the folder."""
        parts = _parts(self.tokens)
        chosen = [None] * len(parts) if self.chosen is None else _parts(self.chosen)
        for number, (part, mask) in enumerate(zip(parts, chosen, strict=True)):
            _write_shard(Path(folder), number, part, mask, np.array([len(part)]), {})
        self._save_beside(Path(folder), len(parts))

    def _save_beside(self, folder: Path, shards: int) -> None:
        """Writes everything but the shards."""
        arrays = {"start": self.start, "length": self.length, "owner": self.owner, "special": self.special}
        write_tensors(folder / "contexts.safetensors", arrays | ({} if self.count is None else {"count": self.count}))
        head = {"schema": SCHEMA, "digest": self.digest, "split": self.split, "batch": self.batch}
        head |= {"bos_id": self.bos_id, "packing": self.packing, "contexts": len(self), "tokens": len(self.tokens)}
        head |= {} if self.chosen is None else {"chosen": self.rows}
        texts = {"shards": shards, "identities": self.identities, "names": self.names}
        write_json(folder / "contexts.json", {**head, **texts}, indent=None)

    @classmethod
    def load(cls, folder: str | Path) -> Contexts:
        """Reads what `save` wrote; ArtefactError where it is missing, torn or not what it says it is."""
        folder = Path(folder)
        head = read_json(folder / "contexts.json", SCHEMA)
        arrays = read_arrays(folder / "contexts.safetensors")
        tokens = _mapped(folder, head["shards"], "tokens")
        chosen = _mapped(folder, head["shards"], "chosen") if "chosen" in head else None
        texts: Any = {name: tuple(head[name]) for name in ("identities", "names")}
        rest = {key: head[key] for key in ("bos_id", "batch", "split", "packing")}
        contexts = cls(tokens, chosen=chosen, **arrays, **texts, **rest)
        if contexts.digest != head["digest"]:
            for number in range(head["shards"]):
                read_arrays(_shard(folder, number))  # names the one that is damaged
            raise ArtefactError(
                f"{folder} holds tokens of another text: remove it, and `jumpahead run` makes it again."
            )
        return contexts


def _shard(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.safetensors"


def _write_shard(
    folder: Path, number: int, tokens: np.ndarray, chosen: np.ndarray | None, pieces: np.ndarray, info: dict[str, str]
) -> None:
    mask = {} if chosen is None else {"chosen": chosen}
    write_tensors(_shard(folder, number), {"tokens": tokens, "pieces": pieces, **mask}, info)


def _mapped(folder: Path, shards: int, key: str) -> Shards:
    return Shards([store.map_array(_shard(folder, number), key) for number in range(shards)])


def _parts(array: np.ndarray | Shards) -> list[np.ndarray]:
    return array.parts if isinstance(array, Shards) else [array]


def _ranges(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """size [k] → int64 [Σ size] each: 0 0 0 1 1 … which of the k, and 0 1 2 0 1 … how far into it."""
    number = np.repeat(np.arange(len(size)), size)
    return number, np.arange(len(number)) - (np.cumsum(size) - size)[number]


# ---------------------------------------------------------------------------------------------- tokenising


def tokenize(
    documents: Iterable[Document],
    lm: Tokenises,
    *,
    split: Split,
    held_out: float = 0.1,
    max_tokens: int | None = None,
    packing: Packing = "none",
) -> Contexts:
    """The contexts of one split of the documents, at most `max_tokens` tokens (without BOS) of them, in memory.

    Raises DataError where the split holds less than one full context of text.
    """
    side = _Side(split, lm, max_tokens)
    _read(documents, lm, {split: side}, held_out)
    return side.contexts(held_out, packing)


def tokenize_into(
    folder: Path,
    documents: Iterable[Document],
    lm: Tokenises,
    inputs: str,
    *,
    held_out: float = 0.1,
    max_tokens: int | None = None,
    packing: Packing = "none",
    ends_with_training: bool = False,
    progressed: Callable[[int], None] = lambda tokens: None,
) -> dict[Split, Contexts]:
    """Both splits in one pass, in shards below `folder`; shards of the same `inputs` (a digest) are kept.

    At most `max_tokens` of each split; with `ends_with_training` reading stops when the training text is that long.
    `progressed` is told how many tokens there are.
    """
    sides: dict[Split, _Side] = {split: _Side(split, lm, max_tokens, folder / split, inputs) for split in SPLITS}
    _read(documents, lm, sides, held_out, ends_with_training, progressed)
    found: dict[Split, Contexts] = {split: side.contexts(held_out, packing) for split, side in sides.items()}
    for split, contexts in found.items():
        contexts._save_beside(folder / split, sides[split].shards)
    return found


def _read(
    documents: Iterable[Document],
    lm: Tokenises,
    sides: Mapping[Split, _Side],
    held_out: float,
    ends_with_training: bool = False,
    progressed: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Tokenises the documents of the sides until all that matter are full, `_CHARACTERS` characters at a time."""
    batch: list[tuple[_Side, Document, str]] = []
    characters = 0
    ends = [sides["train"]] if ends_with_training else list(sides.values())

    def encode() -> None:
        made = encoded([(document, text) for _, document, text in batch], lm)
        for (side, document, _), (ids, chosen) in zip(batch, made, strict=True):
            side.add(document, ids, chosen)
        progressed(sum(side.total for side in sides.values()))

    for document in documents:
        side = sides.get("held_out" if is_held_out(document.identity, held_out) else "train")
        if side is not None and not side.is_full:
            for text in [document.text] if document.chat else stretches(document):
                if side.is_known(document):
                    continue
                batch.append((side, document, text))
                characters += len(text)
                if characters >= _CHARACTERS:
                    encode()
                    batch, characters = [], 0
        if all(one.is_full for one in ends):
            return
    encode()


def encoded(pieces: Sequence[tuple[Document, str]], lm: Tokenises) -> Sequence[tuple[np.ndarray, np.ndarray | None]]:
    """The token ids of each piece of a document, and of conversations, of which there are no pieces, what is chosen."""
    chats = [(document.chat, document.name) for document, _ in pieces if document.chat]
    if chats:
        assert len(chats) == len(pieces), "a text is all conversations or has none"
        return lm.encode_conversations(chats)
    return [(ids, None) for ids in lm.encode([text for _, text in pieces])]


class _Side:
    """One split while it is tokenised, in memory or into shards."""

    def __init__(
        self, split: Split, lm: Tokenises, limit: int | None, folder: Path | None = None, inputs: str = ""
    ) -> None:
        self.split: Split = split
        self.lm, self.limit, self.folder, self.inputs = lm, limit, folder, inputs
        self.dtype = np.dtype(np.uint16 if lm.vocabulary <= 2**16 else np.uint32)
        self.identities: list[str] = []
        self.names: list[str] = []
        self.sizes: list[int] = []
        """Tokens of each document."""
        self.total = 0
        self._document: Document | None = None
        self.shards = 0
        """How many have been written."""
        self._waiting: list[np.ndarray] = []
        """Tokens of pieces that are in no shard yet."""
        self._chosen: list[np.ndarray] = []
        """Which of them are of a role that is trained on, where the text is conversations."""
        self._has_roles = False
        self._in_shards = 0
        self._known: deque[tuple[int, str | None]] = deque()
        """Tokens of the pieces that are in shards of an earlier call, and with each shard's last what `_seen` was."""
        self._seen = hashlib.sha256()
        """Of the documents' identities."""
        if folder is not None:
            self._resume(folder)

    def _resume(self, folder: Path) -> None:
        """Takes the shards of the same inputs, and removes what else is there."""
        store.remove(folder / "contexts.json")
        for path in sorted(folder.glob("tokens-*.safetensors")):
            try:
                is_ours = path == _shard(folder, self.shards) and store.read_info(path).get("inputs") == self.inputs
                arrays = read_arrays(path) if is_ours else {}
            except ArtefactError:
                arrays = {}
            pieces = arrays["pieces"].tolist() if arrays else []
            if not pieces:
                store.remove(path)
                continue
            self._known.extend((tokens, None) for tokens in pieces[:-1])
            self._known.append((pieces[-1], store.read_info(path)["seen"]))
            self._in_shards += sum(pieces)
            self._has_roles = "chosen" in arrays
            self.shards += 1

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.total >= self.limit

    def is_known(self, document: Document) -> bool:
        """Whether the next piece of the text was tokenised by an earlier call."""
        if not self._known:
            return False
        tokens, seen = self._known.popleft()
        self._count(document, tokens)
        if seen not in (None, self._seen.hexdigest()):
            raise self._has_changed()
        return True

    def _has_changed(self) -> DataError:
        return DataError(f"the text has changed since {self.folder} was begun: remove it, and run again.")

    def add(self, document: Document, ids: np.ndarray, chosen: np.ndarray | None) -> None:
        """The tokens of the next piece of the text, as far as there is room for them."""
        if self.is_full:
            return
        if self.limit is not None:
            ids = ids[: self.limit - self.total]
        if chosen is not None:
            self._has_roles = True
            self._chosen.append(chosen[: len(ids)])
        if len(ids) and int(ids.max()) >= self.lm.vocabulary:
            raise DataError(
                f"the tokenizer of '{self.lm.name}' makes token {ids.max()} of {document.name}, but the model knows "
                f"only {self.lm.vocabulary}: they do not belong together."
            )
        self._count(document, len(ids))
        self._waiting.append(ids.astype(self.dtype))
        if self.folder is not None and self.total - self._in_shards >= SHARD:
            self._write(self.folder)

    def _count(self, document: Document, tokens: int) -> None:
        if document is not self._document:
            self._document = document
            self._seen.update(f"{document.identity}\n".encode("utf-8", "surrogatepass"))
            self.identities.append(document.identity)
            self.names.append(document.name)
            self.sizes.append(0)
        self.sizes[-1] += tokens
        self.total += tokens

    def _write(self, folder: Path) -> None:
        pieces = np.array([len(ids) for ids in self._waiting], dtype=np.int64)
        info = {"inputs": self.inputs, "seen": self._seen.hexdigest()}
        chosen = np.concatenate(self._chosen) if self._has_roles else None
        _write_shard(folder, self.shards, np.concatenate(self._waiting), chosen, pieces, info)
        self._waiting, self._chosen, self._in_shards, self.shards = [], [], self.total, self.shards + 1

    def _tokens(self) -> tuple[np.ndarray | Shards, np.ndarray | Shards | None]:
        """All tokens, and which are chosen where the text is conversations."""
        if self.folder is None:
            return np.concatenate(self._waiting), np.concatenate(self._chosen) if self._has_roles else None
        if self._waiting:
            self._write(self.folder)
        chosen = _mapped(self.folder, self.shards, "chosen") if self._has_roles else None
        return _mapped(self.folder, self.shards, "tokens"), chosen

    def contexts(self, held_out: float, packing: Packing) -> Contexts:
        """What was tokenised, cut for the model."""
        if self._known:
            raise self._has_changed()
        lm, lead = self.lm, int(self.lm.bos_id is not None)
        chunk = lm.context - lead
        start, length, owner = _chunks(self.sizes, chunk, 3 - lead)
        if self.total < chunk or not len(start):
            raise DataError(_too_short(self.split, held_out, self.names, self.total, chunk))
        tokens, chosen = self._tokens()
        whole = Contexts(
            tokens=tokens,
            start=start,
            length=length,
            owner=owner,
            identities=tuple(self.identities),
            names=tuple(self.names),
            special=lm.special,
            bos_id=lm.bos_id,
            batch=lm.batch,
            split=self.split,
            packing=packing,
            chosen=chosen,
        )
        kept = np.arange(len(start)) if chosen is None else np.flatnonzero(whole._counts(last=1))
        if not len(kept):
            raise DataError(f"the {_WHAT[self.split]} has no token by a role of text.chat to train on: give more text.")
        size = length[kept] + lead
        order, count = (shuffled(len(size), ORDER), None) if packing == "none" else _packed(size, lm.context)
        order = kept[order]
        return replace(whole, start=start[order], length=length[order], owner=owner[order], count=count)


def shuffled(n: int, *key: int) -> np.ndarray:
    """int64 [n]: a permutation that is a function of the key (non-negative integers) alone, on every machine.

    From raw Philox output and a stable sort: unlike `Generator.permutation`, both promise never to change.
    """
    entropy = (len(key), *key)  # SeedSequence takes (1, 2) and (1, 2, 0) for the same
    return np.argsort(np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n), kind="stable")


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


def _packed(size: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts chunks of these sizes into contexts of `room` tokens: the order of the chunks, and how many each has.

    The largest first, each into the fullest context that still takes it (best fit, decreasing); within a context in the
    order of the documents. int64 [chunks], int64 [contexts].
    """
    context = np.empty(len(size), np.int64)
    open_at: list[list[int]] = [[] for _ in range(room + 1)]
    """Contexts by the room that is left in them."""
    rooms, made = 0, 0
    """A bit for every room that some context has left."""
    for chunk in np.argsort(-size, kind="stable").tolist():
        need = int(size[chunk])
        fitting = rooms >> need
        if fitting:
            left = need + (fitting & -fitting).bit_length() - 1
            number = open_at[left].pop()
            if not open_at[left]:
                rooms &= ~(1 << left)
        else:
            left, number, made = room, made, made + 1
        context[chunk] = number
        if left > need:
            open_at[left - need].append(number)
            rooms |= 1 << (left - need)
    place = np.empty(made, np.int64)
    place[shuffled(made, ORDER)] = np.arange(made)
    return np.argsort(place[context], kind="stable"), np.bincount(place[context], minlength=made)


_WHAT: dict[Split, str] = {"train": "training text", "held_out": "held-out text"}


def _too_short(split: Split, held_out: float, names: list[str], total: int, needed: int) -> str:
    what = _WHAT[split]
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
