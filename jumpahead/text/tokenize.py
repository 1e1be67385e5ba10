"""Tokenise the documents of a study, in memory or into shards (token files of bounded size). No torch here.

Shards are written while the text is read. After an interruption, the next call continues after the last stored shard.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from jumpahead.errors import ArtefactError, DataError
from jumpahead.storage.folders import remove_path
from jumpahead.storage.tensors import read_arrays, read_tensors_info
from jumpahead.text.chat import Conversation
from jumpahead.text.chat_template import EncodedConversation
from jumpahead.text.contexts import SPLITS, Contexts, Packing, Split
from jumpahead.text.documents import is_held_out, split_pieces
from jumpahead.text.near_duplicates import near_duplicates, shingle_length
from jumpahead.text.packing import ORDER_SEED, cut_documents, drop_leading_bos, pack_best_fit
from jumpahead.text.permutation import fixed_permutation
from jumpahead.text.source import Document
from jumpahead.text.token_files import TOKENS_PER_SHARD, ShardedArray, map_shards, shard_path, write_shard

_CHARACTERS_AT_ONCE = 2_000_000
"""Minimum number of characters per call of the tokenizer; large enough to use every core."""
_SPLIT_TITLES: dict[Split, str] = {"train": "training text", "held_out": "held-out text"}


class TokenizingLM(Protocol):
    """Interface of a language model that tokenising needs; `lm.model.LM` implements it."""

    bos_id: int | None
    context: int
    batch: int
    vocab_size: int
    name: str

    @property
    def is_special(self) -> np.ndarray:
        """Return the mask of special token ids, bool [V]."""
        ...

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the token ids of each text, int64 [tokens], without BOS or EOS."""
        ...

    def encode_conversations(self, conversations: Sequence[tuple[Conversation, str]]) -> list[EncodedConversation]:
        """Return the tokens of each conversation, without a leading BOS.

        conversations: pairs of a conversation and the document name to use in error messages.
        """
        ...


def tokenize(
    documents: Iterable[Document],
    lm: TokenizingLM,
    *,
    split: Split,
    held_out: float = 0.1,
    max_tokens: int | None = None,
    packing: Packing = "none",
) -> Contexts:
    """Tokenise one split of the documents in memory; return its contexts, from at most `max_tokens` tokens without BOS.

    held_out: fraction of the documents in the held-out split. Raises DataError if the split has less text than one full
    context.
    """
    builder = _SplitBuilder(split, lm, max_tokens)
    _tokenize_documents(documents, lm, {split: builder}, held_out)
    return builder.contexts(held_out, packing)


def tokenize_splits(
    folder: Path,
    documents: Iterable[Document],
    lm: TokenizingLM,
    inputs: str,
    *,
    held_out: float = 0.1,
    max_tokens: int | None = None,
    packing: Packing = "none",
    is_streamed: bool = False,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> dict[Split, Contexts]:
    """Tokenise both splits into shards below `folder` in one pass over the documents; return the contexts by split.

    Held-out documents that are nearly copies of training text are left out of the contexts (near_duplicates.py), and
    counted in `Contexts.near_duplicates`; the training split does not depend on them.

    inputs: digest of all inputs; shards of an interrupted call with an equal digest are reused.
    held_out: fraction of the documents in the held-out split.
    max_tokens: maximum number of tokens per split.
    is_streamed: stop as soon as the training split has `max_tokens` tokens.
    on_progress: called with the number of tokens so far.
    """
    builders: dict[Split, _SplitBuilder] = {
        split: _SplitBuilder(split, lm, max_tokens, folder / split, inputs) for split in SPLITS
    }
    _tokenize_documents(documents, lm, builders, held_out, is_streamed, on_progress)
    train = builders["train"].contexts(held_out, packing)
    length = shingle_length(lm.vocab_size)
    dropped = builders["held_out"].find_near_duplicates(train.tokens, length)
    contexts_by_split: dict[Split, Contexts] = {
        "train": train,
        "held_out": builders["held_out"].contexts(held_out, packing, dropped),
    }
    for split, contexts in contexts_by_split.items():
        contexts.save_without_tokens(folder / split, builders[split].shards)
    return contexts_by_split


def _tokenize_documents(
    documents: Iterable[Document],
    lm: TokenizingLM,
    builders: Mapping[Split, _SplitBuilder],
    held_out: float,
    is_streamed: bool = False,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Add the tokens of each document to the builder of its split, until the builders are full.

    is_streamed: stop as soon as the builder of the training split is full.
    """
    batch: list[tuple[_SplitBuilder, Document, str]] = []
    characters = 0
    until_full = [builders["train"]] if is_streamed else list(builders.values())

    def encode() -> None:
        encoded = encode_pieces([(document, text) for _, document, text in batch], lm)
        for (builder, document, _), (ids, role_mask) in zip(batch, encoded, strict=True):
            builder.add(document, ids, role_mask)
        on_progress(sum(builder.total_tokens for builder in builders.values()))

    for document in documents:
        builder = builders.get("held_out" if is_held_out(document.identity, held_out) else "train")
        if builder is not None and not builder.is_full:
            for text in [document.text] if document.conversation else split_pieces(document):
                if builder.skip_if_stored(document):
                    continue
                batch.append((builder, document, text))
                characters += len(text)
                if characters >= _CHARACTERS_AT_ONCE:
                    encode()
                    batch, characters = [], 0
        if all(builder.is_full for builder in until_full):
            return
    encode()


def encode_pieces(
    pieces: Sequence[tuple[Document, str]], lm: TokenizingLM
) -> Sequence[tuple[np.ndarray, np.ndarray | None]]:
    """Return the token ids, int64 [tokens], and role mask, bool [tokens], of each piece of text.

    pieces: pairs of a document and a piece of its text; a conversation is a single piece. The role mask marks tokens of
    trained roles (`text.chat`), and is None for text that is not a conversation.
    """
    conversations = [(document.conversation, document.name) for document, _ in pieces if document.conversation]
    if conversations:
        assert len(conversations) == len(pieces), "either all documents of a text are conversations, or none"
        return lm.encode_conversations(conversations)
    return [(ids, None) for ids in lm.encode([text for _, text in pieces])]


class _SplitBuilder:
    """Collects the tokens of one split, in memory or in shards."""

    def __init__(
        self, split: Split, lm: TokenizingLM, limit: int | None, folder: Path | None = None, inputs: str = ""
    ) -> None:
        """Start an empty split, or continue after the shards in `folder` that match `inputs`.

        limit: maximum number of tokens. folder: of the shards; None collects in memory. inputs: digest of all inputs.
        """
        self.split: Split = split
        self.lm, self.limit, self.folder, self.inputs = lm, limit, folder, inputs
        self.dtype = np.dtype(np.uint16 if lm.vocab_size <= 2**16 else np.uint32)
        self.document_ids: list[str] = []
        self.document_names: list[str] = []
        self.document_tokens: list[int] = []
        """Number of tokens of each document."""
        self.total_tokens = 0
        self._document: Document | None = None
        self.shards = 0
        """Number of shards written."""
        self._buffer: list[np.ndarray] = []
        """Token ids of each piece of text that is not written to a shard yet."""
        self._mask_buffer: list[np.ndarray] = []
        """Role mask of each piece in `_buffer`; empty if the text is not conversations."""
        self._has_roles = False
        self._tokens_in_shards = 0
        self._stored_pieces: deque[tuple[int, str | None]] = deque()
        """For each piece in shards of an earlier call: its number of tokens, and `_ids_hash` if it ends a shard."""
        self._ids_hash = hashlib.sha256()
        """Hash of the identities of the documents so far."""
        if folder is not None:
            self._register_stored_shards(folder)

    def _register_stored_shards(self, folder: Path) -> None:
        """Register the consecutive shards whose stored digest equals `inputs`; remove all other shards."""
        remove_path(folder / "contexts.json")
        for path in sorted(folder.glob("tokens-*.safetensors")):
            try:
                is_next = path == shard_path(folder, self.shards)
                is_usable = is_next and read_tensors_info(path).get("inputs") == self.inputs
                arrays = read_arrays(path) if is_usable else {}
            except ArtefactError:
                arrays = {}
            pieces = arrays["piece_lengths"].tolist() if arrays else []
            if not pieces:
                remove_path(path)
                continue
            self._stored_pieces.extend((tokens, None) for tokens in pieces[:-1])
            self._stored_pieces.append((pieces[-1], read_tensors_info(path)["document_ids_hash"]))
            self._tokens_in_shards += sum(pieces)
            self._has_roles = "role_mask" in arrays
            self.shards += 1

    @property
    def is_full(self) -> bool:
        """Return True if the split holds the maximum number of tokens."""
        return self.limit is not None and self.total_tokens >= self.limit

    def skip_if_stored(self, document: Document) -> bool:
        """Return True, and count the tokens, if an earlier call stored the tokens of the next piece; else return False.

        Raises DataError if the documents so far differ from the documents of the earlier call.
        """
        if not self._stored_pieces:
            return False
        tokens, ids_hash = self._stored_pieces.popleft()
        self._add_to_counts(document, tokens)
        if ids_hash not in (None, self._ids_hash.hexdigest()):
            raise self._text_changed_error()
        return True

    def _text_changed_error(self) -> DataError:
        """Return the DataError for stored shards of a different version of the text."""
        return DataError(f"The text has changed since {self.folder} was begun: remove that folder, then run again.")

    def add(self, document: Document, ids: np.ndarray, role_mask: np.ndarray | None) -> None:
        """Add the tokens of the next piece of text up to the limit; write a shard once the buffer is large enough.

        Raises DataError if a token id is not below the model's vocabulary size.
        """
        if self.is_full:
            return
        if self.limit is not None:
            ids = ids[: self.limit - self.total_tokens]
        if role_mask is not None:
            self._has_roles = True
            self._mask_buffer.append(role_mask[: len(ids)])
        if len(ids) and int(ids.max()) >= self.lm.vocab_size:
            raise DataError(
                f"The tokenizer of '{self.lm.name}' gives token {ids.max()} for {document.name}, but the model has "
                f"only {self.lm.vocab_size} tokens: use the tokenizer that belongs to the model."
            )
        self._add_to_counts(document, len(ids))
        self._buffer.append(ids.astype(self.dtype))
        if self.folder is not None and self.total_tokens - self._tokens_in_shards >= TOKENS_PER_SHARD:
            self._write_shard(self.folder)

    def _add_to_counts(self, document: Document, tokens: int) -> None:
        """Add the number of tokens of a piece to the counts of its document and of the split."""
        if document is not self._document:
            self._document = document
            self._ids_hash.update(f"{document.identity}\n".encode("utf-8", "surrogatepass"))
            self.document_ids.append(document.identity)
            self.document_names.append(document.name)
            self.document_tokens.append(0)
        self.document_tokens[-1] += tokens
        self.total_tokens += tokens

    def _write_shard(self, folder: Path) -> None:
        """Write the buffered tokens as the next shard and empty the buffers."""
        piece_lengths = np.array([len(ids) for ids in self._buffer], dtype=np.int64)
        info = {"inputs": self.inputs, "document_ids_hash": self._ids_hash.hexdigest()}
        role_mask = np.concatenate(self._mask_buffer) if self._has_roles else None
        write_shard(folder, self.shards, np.concatenate(self._buffer), role_mask, piece_lengths, info)
        self._buffer, self._mask_buffer = [], []
        self._tokens_in_shards, self.shards = self.total_tokens, self.shards + 1

    def _finish_tokens(self) -> tuple[np.ndarray | ShardedArray, np.ndarray | ShardedArray | None]:
        """Write the last shard; return all token ids, and the role mask if the text is conversations, else None."""
        if self.folder is None:
            return np.concatenate(self._buffer), np.concatenate(self._mask_buffer) if self._has_roles else None
        if self._buffer:
            self._write_shard(self.folder)
        role_mask = map_shards(self.folder, self.shards, "role_mask") if self._has_roles else None
        return map_shards(self.folder, self.shards, "tokens"), role_mask

    def find_near_duplicates(self, train: np.ndarray | ShardedArray, length: int) -> list[int]:
        """Return the indices of the documents that are nearly copies of the training tokens (near_duplicates.py).

        length: number of tokens of a shingle.
        """
        if not self.total_tokens:
            return []
        tokens, role_mask = self._finish_tokens()
        return near_duplicates(train, tokens, self.document_tokens, length, role_mask)

    def contexts(self, held_out: float, packing: Packing, dropped: Sequence[int] = ()) -> Contexts:
        """Return the contexts of the split, in a fixed order. Raises DataError if the split has too few tokens.

        dropped: indices of documents to leave out.
        """
        if self._stored_pieces:
            raise self._text_changed_error()
        lm, bos_tokens = self.lm, int(self.lm.bos_id is not None)
        chunk = lm.context - bos_tokens
        start, length, document = cut_documents(self.document_tokens, chunk, 3 - bos_tokens)
        is_kept = np.ones(len(self.document_tokens), bool)
        is_kept[list(dropped)] = False
        start, length, document = (array[is_kept[document]] for array in (start, length, document))
        document = (np.cumsum(is_kept, dtype=np.int32) - 1)[document]
        ids, names = (tuple(itertools.compress(whole, is_kept)) for whole in (self.document_ids, self.document_names))
        total = int(np.asarray(self.document_tokens, np.int64)[is_kept].sum())
        if total < chunk or not len(start):
            raise DataError(_too_short_message(self.split, held_out, names, total, chunk, len(dropped)))
        tokens, role_mask = self._finish_tokens()
        if lm.bos_id is not None:
            start, length = drop_leading_bos(tokens, start, length, lm.bos_id)
            start, length, document = (array[length >= 3 - bos_tokens] for array in (start, length, document))
        whole = Contexts(
            tokens=tokens,
            chunk_start=start,
            chunk_length=length,
            chunk_document=document,
            document_ids=ids,
            document_names=names,
            is_special=lm.is_special,
            bos_id=lm.bos_id,
            batch=lm.batch,
            split=self.split,
            packing=packing,
            role_mask=role_mask,
            near_duplicates=len(dropped),
        )
        kept = np.arange(len(start)) if role_mask is None else np.flatnonzero(whole.usable_per_chunk(excluded_end=1))
        if not len(kept):
            raise DataError(
                f"The {_SPLIT_TITLES[self.split]} has no token by a role of text.chat to train on: give more text."
            )
        size = length[kept] + bos_tokens
        if packing == "none":
            order, per_context = fixed_permutation(len(size), ORDER_SEED), None
        else:
            order, per_context = pack_best_fit(size, lm.context)
        order = kept[order]
        return replace(
            whole,
            chunk_start=start[order],
            chunk_length=length[order],
            chunk_document=document[order],
            chunks_per_context=per_context,
        )


def _too_short_message(
    split: Split, held_out: float, names: Sequence[str], total: int, needed: int, dropped: int
) -> str:
    """Return the error message for a split that has `total` tokens but needs `needed`.

    names: of its documents. dropped: number of documents left out because they are nearly copies of training text.
    """
    title = _SPLIT_TITLES[split]
    if dropped:
        return (
            f"The {title} is too short: {total} tokens, but one full context needs {needed}. {dropped} held-out "
            "documents were left out as near-duplicates of training text: give text that repeats itself less."
        )
    if not names:
        return (
            f"The {title} is empty: text.held_out = {held_out:g} leaves no document for it. Give more documents "
            "(a folder, or text.separator to divide a file), or another share."
        )
    where = names[0] if len(names) == 1 else f"{len(names)} documents, among them {names[0]}"
    return (
        f"The {title} is too short: {total} tokens ({where}), but one full context needs {needed}. Give more text, or "
        "a smaller lm.context."
    )
