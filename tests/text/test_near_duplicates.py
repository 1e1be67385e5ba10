"""Held-out documents that are nearly copies of training text are left out; other documents, and training, stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jumpahead.errors import DataError
from jumpahead.text import near_duplicates as module
from jumpahead.text.contexts import Contexts
from jumpahead.text.near_duplicates import (
    SEGMENT_SHINGLES,
    SEGMENTS,
    covered_tokens,
    near_duplicates,
    shingle_hashes,
    shingle_length,
)
from jumpahead.text.source import Document
from jumpahead.text.token_files import ShardedArray
from jumpahead.text.tokenize import tokenize_splits
from tests.texts import bytes_lm, hex_words, split_docs


def licence(owner: str) -> str:
    return f"# This file belongs to {owner}, who permits its use under the conditions of the licence of {owner}.\n"


def both_splits(train: list[str], held_out: list[str]) -> list[Document]:
    """Return documents of both splits, in turns, with identities that put them there."""
    ours, theirs = split_docs(*train), split_docs(*held_out, split="held_out")
    return [document for pair in zip(theirs, ours[: len(theirs)], strict=True) for document in pair] + ours[
        len(theirs) :
    ]


def splits(folder: Path, documents: list[Document]) -> dict:
    return tokenize_splits(folder, documents, bytes_lm(0), "inputs", held_out=0.1)


TRAIN = [licence("Ada") + hex_words(n, 150) for n in range(6)]
OTHERS = [licence("Bob") + hex_words(f"new {n}", 150) for n in range(4)]


def test_a_copy_with_another_licence_header_is_left_out_and_ordinary_documents_are_not(tmp_path):
    copy = licence("Carol") + TRAIN[2].removeprefix(licence("Ada"))
    plain = splits(tmp_path / "plain", both_splits(TRAIN, OTHERS))
    made = splits(tmp_path / "copy", both_splits(TRAIN, [OTHERS[0], copy, *OTHERS[1:]]))
    assert plain["held_out"].near_duplicates == 0
    assert len(plain["held_out"].document_ids) == 4
    held_out = made["held_out"]
    assert held_out.near_duplicates == 1
    assert len(held_out.document_ids) == len(held_out.document_names) == 4
    shown = text_of(held_out)
    assert b"Bob" in shown
    assert b"Carol" not in shown
    assert Contexts.load(tmp_path / "copy" / "held_out").near_duplicates == 1
    assert Contexts.load(tmp_path / "copy" / "held_out").digest == held_out.digest


def text_of(contexts: Contexts) -> bytes:
    """Return the text of all contexts, one after the other."""
    rows = [row for group in range(contexts.num_groups) for row in contexts.ids(group)]
    return b"".join(bytes((row[row > 1] - 2).astype(np.uint8)) for row in rows)


def test_every_context_is_the_text_of_the_document_that_it_names(tmp_path):
    texts = [OTHERS[0], licence("Carol") + TRAIN[2].removeprefix(licence("Ada")), *OTHERS[1:]]
    documents = both_splits(TRAIN, texts)
    held_out = splits(tmp_path, documents)["held_out"]
    text = {document.identity: document.text.encode() for document in documents}
    for group in range(held_out.num_groups):
        for row, number in zip(held_out.ids(group), held_out.chunk_documents(group), strict=True):
            assert bytes((row[row > 1] - 2).astype(np.uint8)) in text[held_out.document_ids[number]]


def test_the_training_text_is_the_same_with_and_without_near_duplicates(tmp_path):
    copy = TRAIN[2] + "x"
    plain = splits(tmp_path / "plain", both_splits(TRAIN, OTHERS))["train"]
    made = splits(tmp_path / "copy", both_splits(TRAIN, [*OTHERS, copy]))["train"]
    assert made.digest == plain.digest
    assert made.near_duplicates == 0


def test_training_text_that_comes_later_counts_too(tmp_path):
    documents = [*split_docs(TRAIN[5] + "x", *OTHERS, split="held_out"), *split_docs(*TRAIN)]
    assert splits(tmp_path, documents)["held_out"].near_duplicates == 1


def test_held_out_text_of_near_duplicates_alone_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"2 held-out documents were left out as near-duplicates of training text"):
        splits(tmp_path, both_splits(TRAIN, [TRAIN[0] + "x", TRAIN[1] + "y"]))


def test_an_interrupted_call_leaves_out_the_same_documents(tmp_path, monkeypatch):
    from jumpahead.text import tokenize as tokenize_module

    monkeypatch.setattr(tokenize_module, "TOKENS_PER_SHARD", 300)
    monkeypatch.setattr(tokenize_module, "_CHARACTERS_AT_ONCE", 500)
    documents = both_splits(TRAIN, [*OTHERS, TRAIN[2] + "x"])
    first = splits(tmp_path, documents)
    for split in ("train", "held_out"):
        (tmp_path / split / "contexts.json").unlink()
    again = splits(tmp_path, documents)
    assert again["held_out"].near_duplicates == first["held_out"].near_duplicates == 1
    assert again["held_out"].digest == first["held_out"].digest


# ---------------------------------------------------------------------------------------------- shingles


@pytest.mark.parametrize("length", [1, 2, 3, 7, 13, 16, 31])
def test_equal_sequences_have_equal_hashes_and_others_do_not(length):
    tokens = np.random.default_rng(length).integers(0, 3, 2_000)
    hashes = shingle_hashes(tokens, length)
    sequences = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    assert len(hashes) == len(sequences)
    assert len(set(hashes.tolist())) == len(set(sequences)) == len(set(zip(hashes.tolist(), sequences, strict=True)))
    assert len(shingle_hashes(tokens[: length - 1], length)) == 0


def test_a_shingle_carries_256_bits():
    assert [shingle_length(size) for size in (100, 512, 4096, 32_000, 50_257, 256_000)] == [39, 29, 22, 18, 17, 15]


@pytest.mark.parametrize(("shared", "expected"), [(0.7, []), (0.76, []), (0.84, [1]), (0.9, [1]), (1.0, [1])])
@pytest.mark.parametrize("size", [900, 5_000])
def test_documents_that_share_more_than_eighty_percent_are_found(size, shared, expected):
    rng = np.random.default_rng(3)
    train, other = rng.integers(0, 5_000, 50_000), rng.integers(0, 5_000, 2 * size)
    part = round(shared * size)
    document = np.concatenate([train[777 : 777 + part], other[: size - part]])
    assert near_duplicates(train, np.concatenate([other[size:], document]), [size, size], 13) == expected


def test_a_short_file_with_one_changed_word_is_a_near_duplicate():
    """As sre_compile.py and sre_parse.py of Python's library: 64 of 65 tokens are the same, 32 of 49 shingles."""
    rng = np.random.default_rng(4)
    train = rng.integers(0, 4_000, 10_000)
    copy = train[5_000:5_065].copy()
    copy[30] = 4_001
    assert near_duplicates(train, np.concatenate([copy, rng.integers(0, 4_000, 65)]), [65, 65], 17) == [0]


def test_covered_tokens_by_hand():
    found = np.array([False, True, False, False, False, True])
    assert covered_tokens(found, 3).astype(int).tolist() == [0, 1, 1, 1, 0, 1, 1, 1]
    assert covered_tokens(found, 1).tolist() == found.tolist()


def test_it_does_not_depend_on_files_or_blocks_and_memory_is_bounded(monkeypatch):
    rng = np.random.default_rng(5)
    train = rng.integers(0, 5_000, 20_000)
    held_out = np.concatenate([train[5_000:8_000], rng.integers(0, 5_000, 3_000), train[19_000:], train[:12]])
    sizes = [3_000, 3_000, 1_000, 12]  # the last is shorter than a shingle
    assert near_duplicates(train, held_out, sizes, 13) == [0, 2]
    parts = ShardedArray([train[:6_001], train[6_001:6_010], train[6_010:]])
    segments = list(module._segments(held_out, sizes, 13, None))
    assert [segment.document for segment in segments] == [0] * SEGMENTS + [1] * SEGMENTS + [2]
    assert [len(segment.hashes) for segment in segments] == [SEGMENT_SHINGLES] * 2 * SEGMENTS + [988]
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 100)
    asked: list[int] = []
    hashes = module.shingle_hashes
    monkeypatch.setattr(module, "shingle_hashes", lambda tokens, n: asked.append(len(tokens)) or hashes(tokens, n))
    assert near_duplicates(parts, held_out, sizes, 13) == [0, 2]
    assert max(asked[len(segments) :]) <= 100 + 12


def test_a_prompt_that_conversations_share_does_not_make_them_near_duplicates():
    rng = np.random.default_rng(6)
    prompt, answers = rng.integers(0, 5_000, 500), rng.integers(0, 5_000, (5, 60))
    talks = [np.concatenate([prompt, answer]) for answer in answers]
    copy = np.concatenate([rng.integers(0, 5_000, 500), answers[0]])  # another prompt, the same answer
    train, held_out = np.concatenate(talks[:3]), np.concatenate([talks[3], copy, talks[4]])
    is_answer = np.tile(np.arange(560) >= 500, 3)
    assert near_duplicates(train, held_out, [560] * 3, 10) == [0, 2]
    assert near_duplicates(train, held_out, [560] * 3, 10, is_answer) == [1]


def test_no_held_out_text_has_no_near_duplicates():
    assert near_duplicates(np.arange(500), np.empty(0, np.int64), [], 13) == []
