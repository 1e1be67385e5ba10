"""Contexts: the token ids of a study's text, cut into the sequences that the language model runs. No torch here.

    n, t      contexts in a group, positions (of the longest context in the group)

A context is [BOS] and one chunk of ONE document; with packing, several: [BOS] chunk [BOS] chunk …, each of another
document. The order of contexts is fixed: it looks random and depends on no seed of a study. A group is `batch`
consecutive contexts, which the language model runs in one forward pass. Padding is on the right, where a causal model
cannot see it.

    position      0      1   2   3   4   5      6   7   8
    token         BOS    a   b   ◆   c   BOS    d   e   pad     ◆ is a special token inside the text
    trained              ×   ×       ×          ×   ×           the activation is trained on, spliced, counted
    scored               ×   ×                  ×               and its chunk has a next token (here: b, ◆, e)
    position_ids  0      1   2   3   4   0      1   2   3       passed to the model with isolated packing

In conversations (`text.chat`) only tokens of the chosen roles are trained and scored: `role_mask`. A chunk in which
nothing could be scored is dropped. lm/isolation.py checks that a model isolates documents.

    tokens-00000.safetensors     token ids in shards (token_files.py)
    contexts.safetensors         chunk_start, chunk_length, chunk_document; is_special; chunks_per_context if packed
    contexts.json                written last: the remaining fields, and the digest of everything
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jumpahead.errors import ArtefactError
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.tensors import read_arrays, write_tensors
from jumpahead.text.token_files import ShardedArray, array_parts, map_shards, shard_path, write_shard

Split = Literal["train", "held_out"]
Packing = Literal["none", "isolated", "plain"]
SPLITS: tuple[Split, Split] = ("train", "held_out")
SCHEMA = "jumpahead.contexts/3"
_TOKENS_AT_ONCE = 2**22
"""Tokens per step of a count, so that its temporaries stay small."""


class _Layout(NamedTuple):
    """The grid of a group: which token of which chunk stands at each position."""

    ids: np.ndarray
    """int64 [n, t]"""
    chunk: np.ndarray
    """int64 [n, t]: index of the chunk within the group, its BOS included; −1 for padding."""
    role_mask: np.ndarray
    """bool [n, t]: the token is by a role that is trained on."""
    local: np.ndarray
    """int64 [n, t]: position within the chunk, BOS included; padding continues the chunk before it."""
    size: np.ndarray
    """int64 [chunks]: tokens of each chunk, BOS included."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """All contexts of one split, in their fixed order."""

    tokens: np.ndarray | ShardedArray
    """uint16 or uint32 [tokens]: the token ids of all documents, concatenated, without BOS."""
    chunk_start: np.ndarray
    """int64 [chunks]: index of each chunk's first token in `tokens`, in the order of contexts."""
    chunk_length: np.ndarray
    """int64 [chunks]: tokens in each chunk, without BOS."""
    chunk_document: np.ndarray
    """int32 [chunks]: the document that each chunk is a part of, an index into `document_ids`."""
    document_ids: tuple[str, ...]
    """Identity of each document (documents.py)."""
    document_names: tuple[str, ...]
    """Name of each document in messages."""
    is_special: np.ndarray
    """bool [V]: token ids that are neither trained on nor spliced."""
    bos_id: int | None
    batch: int
    """Contexts per group."""
    split: Split
    packing: Packing = "none"
    chunks_per_context: np.ndarray | None = None
    """int64 [contexts]: chunks in each context; None without packing, when every context is one chunk."""
    role_mask: np.ndarray | ShardedArray | None = None
    """bool [tokens]: the token is by a role that is trained on; None if the text is not conversations."""

    # ------------------------------------------------------------------------------------------ groups

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.chunk_start if self.chunks_per_context is None else self.chunks_per_context)

    @cached_property
    def _first_chunk(self) -> np.ndarray:
        """Return the index of each context's first chunk, followed by the number of chunks: int64 [contexts + 1]."""
        if self.chunks_per_context is None:
            return np.arange(len(self.chunk_start) + 1)
        return np.concatenate([[0], np.cumsum(self.chunks_per_context)])

    @property
    def num_groups(self) -> int:
        """Return the number of groups; the last one may hold fewer than `batch` contexts."""
        return -(-len(self) // self.batch)

    def contexts_in(self, group: int) -> slice:
        """Return the indices of a group's contexts as a slice."""
        assert 0 <= group < self.num_groups, f"group {group} of {self.num_groups}"
        return slice(group * self.batch, min((group + 1) * self.batch, len(self)))

    def _chunks_in(self, group: int) -> slice:
        """Return the indices of a group's chunks as a slice."""
        contexts = self.contexts_in(group)
        return slice(self._first_chunk[contexts.start], self._first_chunk[contexts.stop])

    def _chunk_origins(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the first column of each chunk in the group's grid: int64 [chunks] each."""
        contexts, chunks = self.contexts_in(group), self._chunks_in(group)
        size = self.chunk_length[chunks] + self._bos_tokens
        first = np.cumsum(size) - size  # of each chunk, if all contexts of the group were concatenated
        row = np.repeat(
            np.arange(contexts.stop - contexts.start), np.diff(self._first_chunk[contexts.start : contexts.stop + 1])
        )
        return row, first - first[self._first_chunk[contexts] - chunks.start][row]

    def _layout(self, group: int) -> _Layout:
        """Return the grid of a group."""
        contexts, chunks = self.contexts_in(group), self._chunks_in(group)
        size = self.chunk_length[chunks] + self._bos_tokens
        row, column = self._chunk_origins(group)
        shape = (contexts.stop - contexts.start, int((column + size).max()))
        number, local = _ranges(size)
        at = (row * shape[1] + column)[number] + local
        is_text = local >= self._bos_tokens
        ids, chunk = np.full(shape, self.bos_id or 0), np.full(shape, -1)
        token = ((self.chunk_start[chunks] - self._bos_tokens)[number] + local)[is_text]
        ids.flat[at[is_text]] = self.tokens[token]
        chunk.flat[at] = number
        role_mask = np.full(shape, self.role_mask is None)
        if self.role_mask is not None:
            role_mask.flat[at[is_text]] = self.role_mask[token]
        last = np.maximum.accumulate(chunk, axis=1)  # padding continues the chunk before it
        return _Layout(ids, chunk, role_mask, np.arange(shape[1]) - column[last], size)

    def ids(self, group: int) -> np.ndarray:
        """Return the token ids of a group, int64 [n, t], padded on the right with BOS (or 0)."""
        return self._layout(group).ids

    def position_ids(self, group: int) -> np.ndarray | None:
        """Return the positions to pass to the model, int64 [n, t], or None if the model counts them itself.

        They start at 0 in every chunk, which isolates the documents of one context.
        """
        return self._layout(group).local if self.packing == "isolated" else None

    def trained_mask(self, group: int) -> np.ndarray:
        """Return the mask of positions that are trained on, spliced and counted, bool [n, t].

        Excludes the first position of every chunk, special tokens, padding, and tokens of other roles.
        """
        return self._usable(group, last=0)

    def scored_mask(self, group: int) -> np.ndarray:
        """Return the mask of trained positions t whose token t + 1 belongs to the same chunk, bool [n, t]."""
        return self._usable(group, last=1)

    def chunk_index(self, group: int) -> np.ndarray:
        """Return the index within the group of the chunk at each position, int64 [n, t]; −1 for padding."""
        return self._layout(group).chunk

    def chunk_documents(self, group: int) -> np.ndarray:
        """Return the document of each chunk of a group, int32 [chunks]: indices into `document_ids`."""
        return self.chunk_document[self._chunks_in(group)]

    def token_labels(self, group: int) -> dict[str, np.ndarray]:
        """Return `token`, `document` and `position` (in the context) of a group's trained positions, int32 [rows] each.

        Equal to what `ids`, `chunk_documents` and `trained_mask` say, but computed without the padded grid.
        """
        chunks, skipped = self._chunks_in(group), 1 - self._bos_tokens  # the first position of a chunk is not trained
        size = self.chunk_length[chunks] - skipped
        number, local = _ranges(size)
        token = (self.chunk_start[chunks] + skipped)[number] + local
        ids = self.tokens[token]
        usable = ~self.is_special[ids]
        if self.role_mask is not None:
            usable &= self.role_mask[token]
        number, position = number[usable], (self._chunk_origins(group)[1] + 1)[number] + local
        found = {"token": ids[usable], "document": self.chunk_documents(group)[number], "position": position[usable]}
        return {name: value.astype(np.int32) for name, value in found.items()}

    def _usable(self, group: int, last: int) -> np.ndarray:
        """Return the mask of trained positions without the `last` final positions of every chunk, bool [n, t]."""
        ids, chunk, role_mask, local, size = self._layout(group)
        return (chunk >= 0) & (local > 0) & (local < size[chunk] - last) & ~self.is_special[ids] & role_mask

    # ------------------------------------------------------------------------------------------ counts

    @property
    def _bos_tokens(self) -> int:
        """Return the number of BOS tokens before each chunk: 1, or 0 if contexts begin with text."""
        return int(self.bos_id is not None)

    def usable_per_chunk(self, last: int) -> np.ndarray:
        """Return the usable positions of each chunk without its `last` final ones, int64 [chunks], from prefix sums."""
        first = self.chunk_start + (1 - self._bos_tokens)  # without BOS, the first token stands at position 0
        return self._usable_before(self.chunk_start + self.chunk_length - last) - self._usable_before(first)

    def _usable_before(self, index: np.ndarray) -> np.ndarray:
        """Return the number of trainable tokens before each index into `tokens`, int64 like `index`.

        Trainable means not special and of a chosen role. Reads `_TOKENS_AT_ONCE` tokens at a time.
        """
        order = np.argsort(index, kind="stable")
        found, before = np.empty(len(index), np.int64), 0
        for first in range(0, len(self.tokens) + 1, _TOKENS_AT_ONCE):
            usable = ~self.is_special[self.tokens[first : first + _TOKENS_AT_ONCE]]
            if self.role_mask is not None:
                usable &= self.role_mask[first : first + _TOKENS_AT_ONCE]
            sums = np.concatenate([[0], np.cumsum(usable, dtype=np.int64)])
            low, high = np.searchsorted(index, [first, first + _TOKENS_AT_ONCE], sorter=order)
            here = order[low:high]
            found[here] = before + sums[index[here] - first]
            before += int(sums[-1])
        return found

    @cached_property
    def rows_per_group(self) -> np.ndarray:
        """Return the number of trained positions, that is of activation vectors, of each group: int64 [groups]."""
        return np.add.reduceat(self.usable_per_chunk(last=0), self._first_chunk[: -1 : self.batch])

    @cached_property
    def scored_per_group(self) -> np.ndarray:
        """Return the number of scored tokens of each group: int64 [groups]."""
        return np.add.reduceat(self.usable_per_chunk(last=1), self._first_chunk[: -1 : self.batch])

    @property
    def rows(self) -> int:
        """Return the number of trained positions in all: the distinct training tokens of a study."""
        return int(self.rows_per_group.sum())

    # ------------------------------------------------------------------------------------------ files

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of everything that decides the groups."""
        sha = hashlib.sha256()
        packed = () if self.chunks_per_context is None else (self.chunks_per_context,)
        roles = () if self.role_mask is None else (self.role_mask,)
        chunks = (self.chunk_start, self.chunk_length, self.chunk_document)
        for array in (self.tokens, *chunks, self.is_special, *packed, *roles):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            for part in array_parts(array):
                sha.update(np.ascontiguousarray(part).data)
        how = [] if self.chunks_per_context is None else [self.packing]
        return digest_json([sha.hexdigest(), self.document_ids, self.bos_id, self.batch, self.split, *how])

    def save(self, folder: str | Path) -> None:
        """Write the contexts into a folder, their tokens included."""
        parts = array_parts(self.tokens)
        masks = [None] * len(parts) if self.role_mask is None else array_parts(self.role_mask)
        for number, (part, mask) in enumerate(zip(parts, masks, strict=True)):
            write_shard(Path(folder), number, part, mask, np.array([len(part)]), {})
        self.save_without_tokens(Path(folder), len(parts))

    def save_without_tokens(self, folder: Path, shards: int) -> None:
        """Write everything except the tokens, which stand in `shards` files of the folder already."""
        arrays = {"chunk_start": self.chunk_start, "chunk_length": self.chunk_length}
        arrays |= {"chunk_document": self.chunk_document, "is_special": self.is_special}
        packed = {} if self.chunks_per_context is None else {"chunks_per_context": self.chunks_per_context}
        write_tensors(folder / "contexts.safetensors", arrays | packed)
        head = {"schema": SCHEMA, "digest": self.digest, "split": self.split, "batch": self.batch}
        head |= {"bos_id": self.bos_id, "packing": self.packing, "contexts": len(self), "tokens": len(self.tokens)}
        head |= {} if self.role_mask is None else {"role_tokens": self.rows}
        texts = {"shards": shards, "document_ids": self.document_ids, "document_names": self.document_names}
        write_json(folder / "contexts.json", {**head, **texts}, indent=None)

    @classmethod
    def load(cls, folder: str | Path) -> Contexts:
        """Return the contexts of a folder, their tokens memory-mapped.

        Raises ArtefactError if a file is missing or damaged, or if its content does not match its digest.
        """
        folder = Path(folder)
        head = read_json(folder / "contexts.json", SCHEMA)
        arrays = read_arrays(folder / "contexts.safetensors")
        tokens = map_shards(folder, head["shards"], "tokens")
        role_mask = map_shards(folder, head["shards"], "role_mask") if "role_tokens" in head else None
        texts: Any = {name: tuple(head[name]) for name in ("document_ids", "document_names")}
        rest = {key: head[key] for key in ("bos_id", "batch", "split", "packing")}
        contexts = cls(tokens, role_mask=role_mask, **arrays, **texts, **rest)
        if contexts.digest != head["digest"]:
            for number in range(head["shards"]):
                read_arrays(shard_path(folder, number))  # raises an error that names the damaged file, if one is
            raise ArtefactError(
                f"{folder} holds tokens of another text: remove it, then `jumpahead run` makes it again."
            )
        return contexts


def _ranges(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate range(size[k]) for all k; return each element's k and its value, int64 [Σ size] each.

    For sizes 3 and 2: 0 0 0 1 1 and 0 1 2 0 1.
    """
    number = np.repeat(np.arange(len(size)), size)
    return number, np.arange(len(number)) - (np.cumsum(size) - size)[number]
