"""Tokenising: splits, limits, errors; shards that an interrupted call continues; the same contexts as ever."""

import itertools

import numpy as np
import pytest

from jumpahead.errors import DataError
from jumpahead.storage.tensors import read_arrays
from jumpahead.text import contexts as contexts_module
from jumpahead.text import tokenize as tokenize_module
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import Contexts
from jumpahead.text.documents import documents, is_held_out
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize, tokenize_splits
from tests.texts import bytes_lm, hex_words, letters_lm, split_docs


def test_the_splits_share_no_document():
    texts = {f"doc {i}": "abcdefgh" + chr(ord("a") + i % 26) * (1 + i) for i in range(60)}
    documents = [Document(name, text) for name, text in texts.items()]
    train = tokenize(documents, letters_lm(), split="train", held_out=0.3)
    held_out = tokenize(documents, letters_lm(), split="held_out", held_out=0.3)
    assert not set(train.document_ids) & set(held_out.document_ids)
    assert set(train.document_ids) | set(held_out.document_ids) == set(texts)
    assert all(is_held_out(name, 0.3) for name in held_out.document_ids)
    for group in range(held_out.num_groups):  # every context's text is the named document's
        for row, document in zip(held_out.ids(group), held_out.chunk_documents(group), strict=True):
            text = "".join(chr(ord("a") + i - 2) for i in row if i)
            assert text in texts[held_out.document_ids[document]]


def test_max_tokens_cuts_the_text_short():
    documents = split_docs("abcdefghijkl", "mnopqrstuvwx", "abcdefghijkl")
    contexts = tokenize(documents, letters_lm(), split="train", max_tokens=17)
    assert len(contexts.tokens) == 17
    assert "".join(chr(ord("a") + i - 2) for i in contexts.tokens) == "abcdefghijklmnopq"
    assert len(contexts.document_ids) == 2


def test_large_vocabularies_take_four_bytes():
    assert tokenize(split_docs("abcdefgh"), letters_lm(), split="train").tokens.dtype == np.uint16
    big = letters_lm(vocab_size=70_000)
    big.encode = lambda texts: [np.array([69_999, 65_536, 2, 3, 4, 5]) for _ in texts]
    contexts = tokenize(split_docs("x"), big, split="train")
    assert contexts.tokens.dtype == np.uint32
    assert 69_999 in contexts.ids(0)


@pytest.mark.parametrize(
    ("documents", "split", "says"),
    [
        (
            split_docs("abcd"),
            "train",
            r"training text is too short: 4 tokens \(0\), but one full context needs 5",
        ),
        (
            split_docs("a", "b", "c"),
            "train",
            r"3 tokens \(3 documents, among them 0\), but one full",
        ),
        (split_docs(*"abcdef"), "train", r"6 tokens \(6 documents"),
        (
            split_docs("abcdefgh"),
            "held_out",
            r"held-out text is empty: text\.held_out = 0\.1 leaves no document",
        ),
        ([], "train", r"training text is empty"),
    ],
)
def test_too_little_text_says_how_much_is_needed(documents, split, says):
    with pytest.raises(DataError, match=says):
        tokenize(documents, letters_lm(), split=split)


def test_token_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(DataError, match=r"tokenizer of 'letters' gives token 27 for 0, but the model has only 20"):
        tokenize(split_docs("abcdefghz"), letters_lm(vocab_size=20), split="train")


# Digests of the contexts of the text below: (BOS, pattern or separator, max_tokens) → train, held out.
GOLDEN_DIGESTS = {
    (0, "pattern", None): ("c8135097f89366ab", "5cbcd05792e030d5"),
    (0, "pattern", 700): ("d1557c917525fe43", "7b4d28a510c912d6"),
    (0, "separator", None): ("1119ea33875acf04", "afab3c91f6bfff4e"),
    (0, "separator", 700): ("f169e24d3141da53", "81454bf01a6ca844"),
    (None, "pattern", None): ("5c8b66e4e0b7a399", "c7f138aad4eea9b1"),
    (None, "pattern", 700): ("6b981064a8cf1888", "6bb1d7e3df8ae502"),
    (None, "separator", None): ("1fcc7027e2b9832e", "6807887708eb5b35"),
    (None, "separator", 700): ("d36f015c2bd93400", "55d0066c9a4a4256"),
}


@pytest.fixture(scope="module")
def fixed_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    (folder / "sub").mkdir()
    for n in range(40):
        content = ("\ufeff" if n == 4 else "") + hex_words(n, 5 + 7 * n % 90) + ("\r\n" if n % 2 else "\n")
        (folder / ("sub" if n % 3 else ".") / f"{n}.txt").write_bytes(content.encode())
    parts = [hex_words(f"p{n % 50}", 3 + 5 * (n % 50) % 70) for n in range(60)]
    (folder / "parts.txt").write_text("\n<|x|>\n".join(parts))
    return {
        "pattern": TextConfig(source=str(folder), pattern="[0-9]*.txt", held_out=0.3),
        "separator": TextConfig(source=str(folder / "parts.txt"), separator="<|x|>", held_out=0.3),
    }


@pytest.mark.parametrize("case", GOLDEN_DIGESTS, ids=str)
def test_contexts_have_their_golden_digests(fixed_text, case, tmp_path, monkeypatch):
    bos_id, how, most = case
    text, lm = fixed_text[how], bytes_lm(bos_id)
    both = [
        tokenize(documents(text), lm, split=split, held_out=0.3, max_tokens=most) for split in ("train", "held_out")
    ]
    assert tuple(contexts.digest[:16] for contexts in both) == GOLDEN_DIGESTS[case]
    monkeypatch.setattr(tokenize_module, "TOKENS_PER_SHARD", 300)  # in one pass, into shards, and read back
    monkeypatch.setattr(contexts_module, "_TOKENS_AT_ONCE", 113)
    monkeypatch.setattr(tokenize_module, "_CHARACTERS_AT_ONCE", 500)
    made = tokenize_splits(tmp_path, documents(text), lm, "inputs", held_out=0.3, max_tokens=most)
    for split, contexts in zip(("train", "held_out"), both, strict=True):
        loaded = Contexts.load(tmp_path / split)
        assert loaded.digest == made[split].digest == contexts.digest
        assert len(loaded.tokens.parts) == len(list((tmp_path / split).glob("tokens-*"))) > 1
        assert loaded.rows_per_group.tolist() == contexts.rows_per_group.tolist()
        for group in range(contexts.num_groups):
            assert (loaded.ids(group) == contexts.ids(group)).all()
            assert (loaded.trained_mask(group) == contexts.trained_mask(group)).all()


class Interrupted(Exception):
    pass


def test_an_interrupted_call_continues_after_the_last_shard(fixed_text, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_module, "TOKENS_PER_SHARD", 300)
    monkeypatch.setattr(tokenize_module, "_CHARACTERS_AT_ONCE", 200)
    text, lm = fixed_text["pattern"], bytes_lm(0)
    whole = tokenize_splits(tmp_path / "whole", documents(text), lm, "inputs", held_out=0.3)
    encoded, left = [], 9

    def encode(texts):
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted
        encoded.extend(texts)
        return bytes_lm(0).encode(texts)

    lm.encode = encode
    with pytest.raises(Interrupted):
        tokenize_splits(tmp_path / "cut", documents(text), lm, "inputs", held_out=0.3)
    shards = sorted((tmp_path / "cut").rglob("tokens-*"))
    kept = sum(len(read_arrays(path)["tokens"]) for path in shards)
    assert len(shards) > 2
    assert not list((tmp_path / "cut").rglob("contexts.json"))
    before, encoded, left = file_times(shards), [], 10**6
    again = tokenize_splits(tmp_path / "cut", documents(text), lm, "inputs", held_out=0.3)
    assert file_times(shards) == before
    assert {split: contexts.digest for split, contexts in again.items()} == {s: c.digest for s, c in whole.items()}
    assert sum(len(text.encode()) for text in encoded) == sum(len(c.tokens) for c in whole.values()) - kept
    # Shards of other inputs, damaged shards and those after them are written again.
    other = tokenize_splits(tmp_path / "cut", documents(text), lm, "other inputs", held_out=0.3)
    assert other["train"].digest == whole["train"].digest
    assert all(stamp != before[path] for path, stamp in file_times(shards).items())
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    repaired = tokenize_splits(tmp_path / "cut", documents(text), lm, "other inputs", held_out=0.3)
    assert {split: contexts.digest for split, contexts in repaired.items()} == {s: c.digest for s, c in whole.items()}


def test_text_that_changed_since_an_interrupted_call_is_refused(fixed_text, tmp_path, monkeypatch):
    """A stream may change, because its fingerprint is its name."""
    monkeypatch.setattr(tokenize_module, "TOKENS_PER_SHARD", 300)
    monkeypatch.setattr(tokenize_module, "_CHARACTERS_AT_ONCE", 200)
    found, lm = list(documents(fixed_text["pattern"])), bytes_lm(0)
    tokenize_splits(tmp_path, found, lm, "inputs", held_out=0.3)
    moved = [found[0]._replace(identity=found[0].identity + " moved"), *found[1:]]
    while is_held_out(moved[0].identity, 0.3) != is_held_out(found[0].identity, 0.3):
        moved[0] = moved[0]._replace(identity=moved[0].identity + "!")
    for changed in (moved, found[:-20]):
        with pytest.raises(DataError, match=r"The text has changed since .* was begun: remove that"):
            tokenize_splits(tmp_path, changed, lm, "inputs", held_out=0.3)


def file_times(paths):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def test_streamed_text_is_read_until_the_training_split_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_module, "_CHARACTERS_AT_ONCE", 500)

    def endless():
        for number in itertools.count():
            seen.append(number)
            yield Document(f"{number}", hex_words(number, 40))

    seen: list[int] = []
    made = tokenize_splits(tmp_path, endless(), bytes_lm(0), "i", held_out=0.3, max_tokens=4_000, is_streamed=True)
    assert len(made["train"].tokens) == 4_000
    assert 300 < len(made["held_out"].tokens) < 4_000
    assert len(seen) < 100
    told = []
    texts = [Document(f"{number}", hex_words(number, 40)) for number in range(40)]
    both = tokenize_splits(tmp_path / "all", texts, bytes_lm(0), "i", held_out=0.3, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == sum(len(contexts.tokens) for contexts in both.values())


def test_long_documents_are_tokenised_in_pieces(tmp_path, monkeypatch):
    text = "\n".join(hex_words(number, 6) for number in range(300))
    lm = bytes_lm(0)
    whole = tokenize([Document(split_docs("")[0].identity, text)], lm, split="train")
    lengths = []
    lm.encode = lambda texts: [lengths.append(len(text)) or bytes_lm(0).encode([text])[0] for text in texts]
    monkeypatch.setattr("jumpahead.text.documents.MAX_PIECE_CHARACTERS", 500)
    cut = tokenize(
        [Document(split_docs("")[0].identity, text[:700], continuation=(text[700:705], text[705:]))],
        lm,
        split="train",
    )
    assert cut.digest == whole.digest  # for a tokenizer that never looks across a line break
    assert max(lengths) <= 500 < min(sum(lengths[i : i + 2]) for i in range(len(lengths) - 2))
