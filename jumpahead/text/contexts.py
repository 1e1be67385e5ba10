"""Contexts: the token sequences that the language model runs, cut from a study's text. No torch here.

    n, t      contexts in a group, positions (of the longest context in the group)

A chunk is a token sequence from ONE document. A context is [BOS] chunk; with packing, [BOS] chunk [BOS] chunk …, each
chunk from a different document. The order of contexts is a fixed permutation that no seed of a study changes. A group
is `batch` consecutive contexts, which the language model runs in one forward pass. Padding is on the right, where a
causal model does not attend to it.

    position      0      1   2   3   4   5      6   7   8
    token         BOS    a   b   ◆   c   BOS    d   e   pad     ◆ is a special token inside the text
    trained              ×   ×       ×          ×   ×           the activation is trained on, spliced, counted
    scored               ×   ×                  ×               and its chunk has a next token (here: b, ◆, e)
    position_ids  0      1   2   3   4   0      1   2   3       passed to the model with isolated packing

In conversations (`text.chat`) only tokens of trained roles are trained and scored: `role_mask`. Chunks without a scored
token are dropped. lm/isolation.py checks that a model isolates documents.

    tokens-00000.safetensors     token ids in shards (token_files.py)
    contexts.safetensors         chunk_start, chunk_length, chunk_document; is_special; chunks_per_context if packed
    contexts.json                written last: the remaining fields, and the digest of all data
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jumpahead.errors import ArtefactError
from jumpahead.storage.artefacts import RUN_COMMAND, damaged_artefact_error
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.tensors import read_arrays, write_tensors
from jumpahead.text.token_files import ShardedArray, array_parts, map_shards, shard_path, write_shard

Split = Literal["train", "held_out"]
Packing = Literal["none", "isolated", "plain"]
SPLITS: tuple[Split, Split] = ("train", "held_out")
SCHEMA = "jumpahead.contexts/3"
_ARRAYS = "contexts.safetensors"
_TOKENS_AT_ONCE = 2**22
"""Number of tokens counted at a time, which bounds the memory of temporary arrays."""


class _Layout(NamedTuple):
    """The padded grid of a group of contexts: the token and chunk at each position."""

    ids: np.ndarray
    """int64 [n, t]"""
    chunk: np.ndarray
    """int64 [n, t]: index within the group of the chunk (with BOS) at each position; −1 for padding."""
    role_mask: np.ndarray
    """bool [n, t]: True for tokens of trained roles; True everywhere if the text is not conversations."""
    local: np.ndarray
    """int64 [n, t]: position within the chunk, counted from BOS; padding continues the count of the preceding chunk."""
    size: np.ndarray
    """int64 [chunks]: number of tokens of each chunk, with BOS."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """All contexts of one split (training or held-out), in a fixed order."""

    tokens: np.ndarray | ShardedArray
    """uint16 or uint32 [tokens]: the token ids of all documents, concatenated, without BOS."""
    chunk_start: np.ndarray
    """int64 [chunks]: index of each chunk's first token in `tokens`, in the order of contexts."""
    chunk_length: np.ndarray
    """int64 [chunks]: number of tokens of each chunk, without BOS."""
    chunk_document: np.ndarray
    """int32 [chunks]: the document of each chunk, as an index into `document_ids`."""
    document_ids: tuple[str, ...]
    """Identity of each document (documents.py)."""
    document_names: tuple[str, ...]
    """Name of each document, for error messages."""
    is_special: np.ndarray
    """bool [V]: token ids that are neither trained on nor spliced."""
    bos_id: int | None
    batch: int
    """Contexts per group."""
    split: Split
    packing: Packing = "none"
    chunks_per_context: np.ndarray | None = None
    """int64 [contexts]: number of chunks of each context; None without packing (one chunk per context)."""
    role_mask: np.ndarray | ShardedArray | None = None
    """bool [tokens]: True for tokens of trained roles; None if the text is not conversations."""
    near_duplicates: int = 0
    """Number of held-out documents that were left out because they are nearly copies of training text."""

    # ------------------------------------------------------------------------------------------ groups

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.chunk_start if self.chunks_per_context is None else self.chunks_per_context)

    @cached_property
    def _chunk_offsets(self) -> np.ndarray:
        """Return the index of each context's first chunk, followed by the number of chunks: int64 [contexts + 1]."""
        if self.chunks_per_context is None:
            return np.arange(len(self.chunk_start) + 1)
        return np.concatenate([[0], np.cumsum(self.chunks_per_context)])

    @property
    def num_groups(self) -> int:
        """Return the number of groups of contexts; the last group may hold fewer than `batch` contexts."""
        return -(-len(self) // self.batch)

    def context_slice(self, group: int) -> slice:
        """Return the slice of context indices in a group."""
        assert 0 <= group < self.num_groups, f"group {group} of {self.num_groups}"
        return slice(group * self.batch, min((group + 1) * self.batch, len(self)))

    def _chunks_in(self, group: int) -> slice:
        """Return the slice of chunk indices in a group."""
        contexts = self.context_slice(group)
        return slice(self._chunk_offsets[contexts.start], self._chunk_offsets[contexts.stop])

    def _chunk_origins(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the first column of each chunk in the grid of a group, two arrays int64 [chunks]."""
        contexts, chunks = self.context_slice(group), self._chunks_in(group)
        size = self.chunk_length[chunks] + self._bos_tokens
        first = np.cumsum(size) - size  # of each chunk, if all contexts of the group were concatenated
        row = np.repeat(
            np.arange(contexts.stop - contexts.start), np.diff(self._chunk_offsets[contexts.start : contexts.stop + 1])
        )
        return row, first - first[self._chunk_offsets[contexts] - chunks.start][row]

    def _layout(self, group: int) -> _Layout:
        """Return the padded grid of a group of contexts."""
        contexts, chunks = self.context_slice(group), self._chunks_in(group)
        size = self.chunk_length[chunks] + self._bos_tokens
        row, column = self._chunk_origins(group)
        shape = (contexts.stop - contexts.start, int((column + size).max()))
        number, local = _concatenate_ranges(size)
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
        """Return the token ids of a group, int64 [n, t], padded on the right with BOS (0 if there is no BOS)."""
        return self._layout(group).ids

    def position_ids(self, group: int) -> np.ndarray | None:
        """Return the position ids to pass to the model, int64 [n, t]; None unless packing is `isolated`.

        Position ids start at 0 in every chunk, which isolates the documents of one context.
        """
        return self._layout(group).local if self.packing == "isolated" else None

    def trained_mask(self, group: int) -> np.ndarray:
        """Return the mask of positions that are trained on, spliced and counted, bool [n, t].

        Excludes the first position of every chunk, special tokens, padding, and tokens of other roles.
        """
        return self._usable(group, excluded_end=0)

    def scored_mask(self, group: int) -> np.ndarray:
        """Return the mask of trained positions that have a next token in the same chunk, bool [n, t]."""
        return self._usable(group, excluded_end=1)

    def chunk_index(self, group: int) -> np.ndarray:
        """Return the index within the group of the chunk at each position, int64 [n, t]; −1 for padding."""
        return self._layout(group).chunk

    def chunk_documents(self, group: int) -> np.ndarray:
        """Return the document of each chunk of a group as an index into `document_ids`, int32 [chunks]."""
        return self.chunk_document[self._chunks_in(group)]

    def token_labels(self, group: int) -> dict[str, np.ndarray]:
        """Return a dict with `token`, `document` and `position` (in the context) of each trained position of a group.

        Each array is int32 [rows] and agrees with `ids`, `chunk_documents` and `trained_mask`. The computation avoids
        the padded grid.
        """
        chunks, skipped = self._chunks_in(group), 1 - self._bos_tokens  # the first position of a chunk is not trained
        size = self.chunk_length[chunks] - skipped
        number, local = _concatenate_ranges(size)
        token = (self.chunk_start[chunks] + skipped)[number] + local
        ids = self.tokens[token]
        usable = ~self.is_special[ids]
        if self.role_mask is not None:
            usable &= self.role_mask[token]
        number, position = number[usable], (self._chunk_origins(group)[1] + 1)[number] + local
        labels = {"token": ids[usable], "document": self.chunk_documents(group)[number], "position": position[usable]}
        return {name: value.astype(np.int32) for name, value in labels.items()}

    def _usable(self, group: int, excluded_end: int) -> np.ndarray:
        """Return the mask of trained positions, except the last `excluded_end` positions of each chunk, bool [n, t]."""
        ids, chunk, role_mask, local, size = self._layout(group)
        return (chunk >= 0) & (local > 0) & (local < size[chunk] - excluded_end) & ~self.is_special[ids] & role_mask

    # ------------------------------------------------------------------------------------------ counts

    @property
    def _bos_tokens(self) -> int:
        """Return the number of BOS tokens before each chunk: 1, or 0 if contexts begin with text."""
        return int(self.bos_id is not None)

    def usable_per_chunk(self, excluded_end: int) -> np.ndarray:
        """Return the number of trained positions per chunk, without the last `excluded_end`, int64 [chunks]."""
        first = self.chunk_start + (1 - self._bos_tokens)  # without BOS, the first token stands at position 0
        return self._usable_before(self.chunk_start + self.chunk_length - excluded_end) - self._usable_before(first)

    def _usable_before(self, index: np.ndarray) -> np.ndarray:
        """Return the number of trainable tokens before each index into `tokens`, int64 of the shape of `index`.

        A token is trainable if it is not special and its role is trained. Reads `_TOKENS_AT_ONCE` tokens at a time.
        """
        order = np.argsort(index, kind="stable")
        counts, before = np.empty(len(index), np.int64), 0
        for first in range(0, len(self.tokens) + 1, _TOKENS_AT_ONCE):
            usable = ~self.is_special[self.tokens[first : first + _TOKENS_AT_ONCE]]
            if self.role_mask is not None:
                usable &= self.role_mask[first : first + _TOKENS_AT_ONCE]
            sums = np.concatenate([[0], np.cumsum(usable, dtype=np.int64)])
            low, high = np.searchsorted(index, [first, first + _TOKENS_AT_ONCE], sorter=order)
            here = order[low:high]
            counts[here] = before + sums[index[here] - first]
            before += int(sums[-1])
        return counts

    @cached_property
    def rows_per_group(self) -> np.ndarray:
        """Return the number of trained positions (activation vectors) in each group, int64 [groups]."""
        return np.add.reduceat(self.usable_per_chunk(excluded_end=0), self._chunk_offsets[: -1 : self.batch])

    @cached_property
    def scored_per_group(self) -> np.ndarray:
        """Return the number of scored tokens in each group, int64 [groups]."""
        return np.add.reduceat(self.usable_per_chunk(excluded_end=1), self._chunk_offsets[: -1 : self.batch])

    @property
    def rows(self) -> int:
        """Return the total number of trained positions, that is the number of distinct activation vectors."""
        return int(self.rows_per_group.sum())

    # ------------------------------------------------------------------------------------------ files

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of all data that determines the tokens and order of the groups."""
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
        """Write the contexts, including their tokens, to a folder."""
        parts = array_parts(self.tokens)
        masks = [None] * len(parts) if self.role_mask is None else array_parts(self.role_mask)
        for number, (part, mask) in enumerate(zip(parts, masks, strict=True)):
            write_shard(Path(folder), number, part, mask, np.array([len(part)]), {})
        self.save_without_tokens(Path(folder), len(parts))

    def save_without_tokens(self, folder: Path, shards: int) -> None:
        """Write all data except the tokens, which the folder already holds in `shards` files."""
        arrays = {"chunk_start": self.chunk_start, "chunk_length": self.chunk_length}
        arrays |= {"chunk_document": self.chunk_document, "is_special": self.is_special}
        packed = {} if self.chunks_per_context is None else {"chunks_per_context": self.chunks_per_context}
        write_tensors(folder / _ARRAYS, arrays | packed)
        head = {"schema": SCHEMA, "digest": self.digest, "split": self.split, "batch": self.batch}
        head |= {"bos_id": self.bos_id, "packing": self.packing, "contexts": len(self), "tokens": len(self.tokens)}
        head |= {} if self.role_mask is None else {"role_tokens": self.rows}
        head |= {"near_duplicates": self.near_duplicates} if self.near_duplicates else {}
        texts = {"shards": shards, "document_ids": self.document_ids, "document_names": self.document_names}
        write_json(folder / "contexts.json", {**head, **texts}, indent=None)

    @staticmethod
    def has_files(folder: Path) -> bool:
        """Return True if contexts.json of a folder is intact and the other files are there, whatever they hold."""
        try:
            shards = int(read_json(folder / "contexts.json", SCHEMA)["shards"])
        except ArtefactError:
            return False
        return all(path.is_file() for path in (folder / _ARRAYS, *(shard_path(folder, i) for i in range(shards))))

    @classmethod
    def load(cls, folder: str | Path) -> Contexts:
        """Load contexts from a folder, with memory-mapped tokens.

        Raises ArtefactError if a file is missing, DamagedError if one is damaged or does not match the stored digest.
        """
        folder = Path(folder)
        head = read_json(folder / "contexts.json", SCHEMA)
        arrays = read_arrays(folder / _ARRAYS)
        tokens = map_shards(folder, head["shards"], "tokens")
        role_mask = map_shards(folder, head["shards"], "role_mask") if "role_tokens" in head else None
        texts: Any = {name: tuple(head[name]) for name in ("document_ids", "document_names")}
        rest = {key: head[key] for key in ("bos_id", "batch", "split", "packing")}
        rest["near_duplicates"] = head.get("near_duplicates", 0)
        contexts = cls(tokens, role_mask=role_mask, **arrays, **texts, **rest)
        if contexts.digest != head["digest"]:
            for number in range(head["shards"]):
                read_arrays(shard_path(folder, number))  # raises an error that names the damaged file, if one is
            raise damaged_artefact_error(folder / "contexts.json", "belongs to tokens of another text", RUN_COMMAND)
        return contexts


def _concatenate_ranges(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate range(size[k]) for all k; return k and the value of each element, two arrays int64 [Σ size].

    Sizes 3 and 2 give [0 0 0 1 1] and [0 1 2 0 1].
    """
    number = np.repeat(np.arange(len(size)), size)
    return number, np.arange(len(number)) - (np.cumsum(size) - size)[number]
