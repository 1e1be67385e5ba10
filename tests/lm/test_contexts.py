"""Contexts: which token stands where, which are trained on and scored, and that both splits stay apart."""

import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpahead import store
from jumpahead.errors import ArtefactError, DataError
from jumpahead.text import contexts as module
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import Contexts, Shards, _packed, shuffled, tokenize, tokenize_into
from jumpahead.text.documents import documents, is_held_out
from jumpahead.text.source import Document


def letters(bos_id=0, context=6, batch=2, vocabulary=40):
    """An LM as `tokenize` sees it: a = 2, b = 3, …; `!` is the special id 1."""

    def encode(texts):
        return [np.array([1 if c == "!" else ord(c) - ord("a") + 2 for c in text], dtype=np.int64) for text in texts]

    special = np.arange(vocabulary) < 2
    return SimpleNamespace(
        bos_id=bos_id,
        context=context,
        batch=batch,
        vocabulary=vocabulary,
        name="letters",
        special=special,
        encode=encode,
    )


def docs(*texts, split="train", share=0.1):
    """Documents that all fall on one side of the split."""
    found, number = [], 0
    for text in texts:
        while is_held_out(f"{number}", share) != (split == "held_out"):
            number += 1
        found.append(Document(f"{number}", text))
        number += 1
    return found


def by_text(contexts):
    """Every context as text → (its trained letters, its scored letters), whatever the order."""
    found = {}
    for group in range(contexts.groups):
        ids, trained, scored = contexts.ids(group), contexts.trained(group), contexts.scored(group)
        assert ids.dtype == np.int64
        assert trained.shape == scored.shape == ids.shape
        for row, is_trained, is_scored in zip(ids, trained, scored, strict=True):
            text = "".join("^!"[i] if i < 2 else chr(ord("a") + i - 2) for i in row)
            pick = [text[t] for t in np.flatnonzero(is_trained)], [text[t] for t in np.flatnonzero(is_scored)]
            found[text.rstrip("^")] = tuple("".join(letters) for letters in pick)
    return found


def test_every_context_is_bos_and_a_chunk_of_one_document():
    contexts = tokenize(docs("abcdefghijklm", "nop", "q"), letters(), split="train")
    assert by_text(contexts) == {
        "^abcde": ("abcde", "abcd"),
        "^fghij": ("fghij", "fghi"),
        "^klm": ("klm", "kl"),
        "^nop": ("nop", "no"),  # never joined with another document; `q` alone has nothing to score
    }
    assert contexts.groups == 2
    assert contexts.rows == 16


def test_without_bos_the_first_position_is_text_that_is_not_trained_on():
    contexts = tokenize(docs("abcdefghij", "kl"), letters(bos_id=None), split="train")
    found = by_text(contexts)
    assert found == {"abcdef": ("bcdef", "bcde"), "ghij": ("hij", "hi")}


def test_special_tokens_inside_the_text_are_kept_but_not_trained_on():
    contexts = tokenize(docs("ab!cd"), letters(), split="train")
    assert by_text(contexts) == {"^ab!cd": ("abcd", "abc")}  # b is scored although its target is special; ! is not


@pytest.mark.parametrize("bos_id", [0, 1, None])
@given(texts=st.lists(st.text("abcdefgh!", max_size=30), min_size=1, max_size=12), batch=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_rows_are_known_from_the_ids_alone(texts, batch, bos_id):
    texts = [*texts, "abcdefghi"]  # one full context at least
    contexts = tokenize(docs(*texts), letters(bos_id=bos_id, batch=batch), split="train")
    trained = [contexts.trained(group).sum() for group in range(contexts.groups)]
    scored = [contexts.scored(group).sum() for group in range(contexts.groups)]
    assert contexts.rows_per_group.tolist() == trained
    assert contexts.scored_per_group.tolist() == scored
    for group in range(contexts.groups):
        ids, mask = contexts.ids(group), contexts.trained(group)
        assert not contexts.special[ids[mask]].any()
        assert not mask[:, 0].any()
        assert not (contexts.scored(group) & ~mask).any()
        assert len(contexts.document(group)) == len(ids)
        labels = contexts.labels(group)
        assert labels["token"].tolist() == ids[mask].tolist()
        assert labels["position"].tolist() == np.nonzero(mask)[1].tolist()
        assert labels["document"].tolist() == contexts.document(group)[np.nonzero(mask)[0]].tolist()
    assert all(contexts.length + (bos_id is not None) <= 6)


def test_the_splits_share_no_document():
    texts = {f"doc {i}": "abcdefgh" + chr(ord("a") + i % 26) * (1 + i) for i in range(60)}
    documents = [Document(name, text) for name, text in texts.items()]
    train = tokenize(documents, letters(), split="train", held_out=0.3)
    held_out = tokenize(documents, letters(), split="held_out", held_out=0.3)
    assert not set(train.identities) & set(held_out.identities)
    assert set(train.identities) | set(held_out.identities) == set(texts)
    assert all(is_held_out(name, 0.3) for name in held_out.identities)
    for group in range(held_out.groups):  # every context's text is the named document's
        for row, document in zip(held_out.ids(group), held_out.document(group), strict=True):
            text = "".join(chr(ord("a") + i - 2) for i in row if i)
            assert text in texts[held_out.identities[document]]


def test_the_order_is_fixed_and_mixes_documents():
    documents = docs(*("abcdefghij" * 4 for _ in range(30)))
    one, two = (tokenize(documents, letters(batch=batch), split="train") for batch in (2, 7))
    assert one.start.tolist() == two.start.tolist()
    assert one.digest != two.digest
    assert one.owner.tolist() != sorted(one.owner.tolist())
    assert one.digest == tokenize(documents, letters(), split="train").digest
    other = [*documents[:-1], Document(documents[-1].identity, "abcdefghij" * 3 + "abcdefghik")]
    assert one.digest != tokenize(other, letters(), split="train").digest


def test_permutations_never_change():
    assert shuffled(8, 3, 5).tolist() == [3, 2, 7, 5, 6, 0, 1, 4]
    assert sorted(shuffled(1000, 7).tolist()) == list(range(1000))
    assert shuffled(50, 1, 2).tolist() != shuffled(50, 1, 2, 0).tolist()


def test_max_tokens_cuts_the_text_short():
    documents = docs("abcdefghijkl", "mnopqrstuvwx", "abcdefghijkl")
    contexts = tokenize(documents, letters(), split="train", max_tokens=17)
    assert len(contexts.tokens) == 17
    assert "".join(chr(ord("a") + i - 2) for i in contexts.tokens) == "abcdefghijklmnopq"
    assert len(contexts.identities) == 2


def test_large_vocabularies_take_four_bytes():
    assert tokenize(docs("abcdefgh"), letters(), split="train").tokens.dtype == np.uint16
    big = letters(vocabulary=70_000)
    big.encode = lambda texts: [np.array([69_999, 65_536, 2, 3, 4, 5]) for _ in texts]
    contexts = tokenize(docs("x"), big, split="train")
    assert contexts.tokens.dtype == np.uint32
    assert 69_999 in contexts.ids(0)


@pytest.mark.parametrize(
    ("documents", "split", "says"),
    [
        (docs("abcd"), "train", r"training text is too short, 4 tokens \(0\) where at least 5 are needed"),
        (docs("a", "b", "c"), "train", r"3 tokens \(3 documents, 0 among them\) where at least 5 are needed"),
        (docs(*"abcdef"), "train", r"6 tokens \(6 documents"),
        (docs("abcdefgh"), "held_out", r"held-out text is empty: none of the documents .* text\.held_out = 0\.1"),
        ([], "train", r"training text is empty"),
    ],
)
def test_too_little_text_says_how_much_is_needed(documents, split, says):
    with pytest.raises(DataError, match=says):
        tokenize(documents, letters(), split=split)


def test_a_tokenizer_that_is_not_the_models_is_named():
    with pytest.raises(DataError, match=r"tokenizer of 'letters' makes token 27 of 0, but the model knows only 20"):
        tokenize(docs("abcdefghz"), letters(vocabulary=20), split="train")


# ---------------------------------------------------------------------------------------------- what was before

# Digests that contexts had before text came from anywhere but files, on the same documents: (BOS, pattern or separator,
# max_tokens) → train, held out.
BEFORE = {
    (0, "pattern", None): ("c8135097f89366ab", "5cbcd05792e030d5"),
    (0, "pattern", 700): ("d1557c917525fe43", "7b4d28a510c912d6"),
    (0, "separator", None): ("1119ea33875acf04", "afab3c91f6bfff4e"),
    (0, "separator", 700): ("f169e24d3141da53", "81454bf01a6ca844"),
    (None, "pattern", None): ("5c8b66e4e0b7a399", "c7f138aad4eea9b1"),
    (None, "pattern", 700): ("6b981064a8cf1888", "6bb1d7e3df8ae502"),
    (None, "separator", None): ("1fcc7027e2b9832e", "6807887708eb5b35"),
    (None, "separator", 700): ("d36f015c2bd93400", "55d0066c9a4a4256"),
}


def words(name, count):
    return " ".join(hashlib.sha256(f"{name}/{i}".encode()).hexdigest()[: 1 + i % 7] for i in range(count))


def octets(bos_id):
    """An LM of bytes: a byte's token is 2 more."""
    lm = letters(bos_id=bos_id, context=24, batch=3, vocabulary=300)
    lm.encode = lambda texts: [np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 2 for text in texts]
    return lm


@pytest.fixture(scope="module")
def fixed_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    (folder / "sub").mkdir()
    for n in range(40):
        content = ("\ufeff" if n == 4 else "") + words(n, 5 + 7 * n % 90) + ("\r\n" if n % 2 else "\n")
        (folder / ("sub" if n % 3 else ".") / f"{n}.txt").write_bytes(content.encode())
    parts = [words(f"p{n % 50}", 3 + 5 * (n % 50) % 70) for n in range(60)]
    (folder / "parts.txt").write_text("\n<|x|>\n".join(parts))
    return {
        "pattern": TextConfig(source=str(folder), pattern="[0-9]*.txt", held_out=0.3),
        "separator": TextConfig(source=str(folder / "parts.txt"), separator="<|x|>", held_out=0.3),
    }


@pytest.mark.parametrize("case", BEFORE, ids=str)
def test_files_give_the_contexts_that_they_always_gave(fixed_text, case, tmp_path, monkeypatch):
    bos_id, how, most = case
    text, lm = fixed_text[how], octets(bos_id)
    both = [
        tokenize(documents(text), lm, split=split, held_out=0.3, max_tokens=most) for split in ("train", "held_out")
    ]
    assert tuple(contexts.digest[:16] for contexts in both) == BEFORE[case]
    monkeypatch.setattr(module, "SHARD", 300)  # in one pass, into shards, and read back
    monkeypatch.setattr(module, "_AT_ONCE", 113)
    monkeypatch.setattr(module, "_CHARACTERS", 500)
    made = tokenize_into(tmp_path, documents(text), lm, "inputs", held_out=0.3, max_tokens=most)
    for split, contexts in zip(("train", "held_out"), both, strict=True):
        loaded = Contexts.load(tmp_path / split)
        assert loaded.digest == made[split].digest == contexts.digest
        assert len(loaded.tokens.parts) == len(list((tmp_path / split).glob("tokens-*"))) > 1
        assert loaded.rows_per_group.tolist() == contexts.rows_per_group.tolist()
        for group in range(contexts.groups):
            assert (loaded.ids(group) == contexts.ids(group)).all()
            assert (loaded.trained(group) == contexts.trained(group)).all()


# ---------------------------------------------------------------------------------------------- shards


def test_shards_are_one_array():
    whole = np.arange(100, 187, dtype=np.uint16)
    shards = Shards([whole[:30], whole[30:31], whole[31:]])
    assert (len(shards), shards.shape, shards.dtype) == (87, (87,), np.uint16)
    index = np.array([[86, 0, 30], [29, 31, 30]])
    assert (shards[index] == whole[index]).all()
    for some in (slice(0, 87), slice(28, 33), slice(80, 200), slice(5, 5)):
        assert shards[some].tolist() == whole[some].tolist()


class Stopped(Exception):
    pass


def test_a_killed_call_goes_on_after_the_last_shard(fixed_text, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 300)
    monkeypatch.setattr(module, "_CHARACTERS", 200)
    text, lm = fixed_text["pattern"], octets(0)
    whole = tokenize_into(tmp_path / "whole", documents(text), lm, "inputs", held_out=0.3)
    encoded, left = [], 9

    def encode(texts):
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped
        encoded.extend(texts)
        return octets(0).encode(texts)

    lm.encode = encode
    with pytest.raises(Stopped):
        tokenize_into(tmp_path / "cut", documents(text), lm, "inputs", held_out=0.3)
    shards = sorted((tmp_path / "cut").rglob("tokens-*"))
    kept = sum(len(store.read_arrays(path)["tokens"]) for path in shards)
    assert len(shards) > 2
    assert not list((tmp_path / "cut").rglob("contexts.json"))
    before, encoded, left = stamps(shards), [], 10**6
    again = tokenize_into(tmp_path / "cut", documents(text), lm, "inputs", held_out=0.3)
    assert stamps(shards) == before
    assert {split: contexts.digest for split, contexts in again.items()} == {s: c.digest for s, c in whole.items()}
    assert sum(len(text.encode()) for text in encoded) == sum(len(c.tokens) for c in whole.values()) - kept
    # Shards of something else, torn ones and those after them are not gone on from.
    other = tokenize_into(tmp_path / "cut", documents(text), lm, "other inputs", held_out=0.3)
    assert other["train"].digest == whole["train"].digest
    assert all(stamp != before[path] for path, stamp in stamps(shards).items())
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    mended = tokenize_into(tmp_path / "cut", documents(text), lm, "other inputs", held_out=0.3)
    assert {split: contexts.digest for split, contexts in mended.items()} == {s: c.digest for s, c in whole.items()}


def test_text_that_changes_in_between_is_noticed(fixed_text, tmp_path, monkeypatch):
    """As a stream may, whose fingerprint is its name."""
    monkeypatch.setattr(module, "SHARD", 300)
    monkeypatch.setattr(module, "_CHARACTERS", 200)
    found, lm = list(documents(fixed_text["pattern"])), octets(0)
    tokenize_into(tmp_path, found, lm, "inputs", held_out=0.3)
    moved = [found[0]._replace(identity=found[0].identity + " moved"), *found[1:]]
    while is_held_out(moved[0].identity, 0.3) != is_held_out(found[0].identity, 0.3):
        moved[0] = moved[0]._replace(identity=moved[0].identity + "!")
    for changed in (moved, found[:-20]):
        with pytest.raises(DataError, match=r"the text has changed since .* was begun: remove it"):
            tokenize_into(tmp_path, changed, lm, "inputs", held_out=0.3)


def stamps(paths):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def test_a_damaged_shard_is_named(fixed_text, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 300)
    tokenize_into(tmp_path, documents(fixed_text["pattern"]), octets(0), "inputs", held_out=0.3)
    path = tmp_path / "train" / "tokens-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"tokens-00001\.safetensors is damaged: 'tokens'"):
        Contexts.load(tmp_path / "train")
    path.write_bytes(content[:-9])
    with pytest.raises(ArtefactError, match=r"tokens-00001\.safetensors is torn"):
        Contexts.load(tmp_path / "train")
    path.unlink()
    with pytest.raises(ArtefactError, match=r"tokens-00001\.safetensors does not exist"):
        Contexts.load(tmp_path / "train")


def test_a_stream_is_left_when_there_is_enough_to_train_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHARACTERS", 500)

    def endless():
        for number in itertools.count():
            seen.append(number)
            yield Document(f"{number}", words(number, 40))

    seen: list[int] = []
    made = tokenize_into(tmp_path, endless(), octets(0), "i", held_out=0.3, max_tokens=4_000, ends_with_training=True)
    assert len(made["train"].tokens) == 4_000
    assert 300 < len(made["held_out"].tokens) < 4_000
    assert len(seen) < 100
    told = []
    texts = [Document(f"{number}", words(number, 40)) for number in range(40)]
    both = tokenize_into(tmp_path / "all", texts, octets(0), "i", held_out=0.3, progressed=told.append)
    assert told == sorted(told)
    assert told[-1] == sum(len(contexts.tokens) for contexts in both.values())


def test_a_long_document_is_tokenised_in_stretches(tmp_path, monkeypatch):
    text = "\n".join(words(number, 6) for number in range(300))
    lm = octets(0)
    whole = tokenize([Document(docs("")[0].identity, text)], lm, split="train")
    lengths = []
    lm.encode = lambda texts: [lengths.append(len(text)) or octets(0).encode([text])[0] for text in texts]
    monkeypatch.setattr("jumpahead.text.documents.STRETCH", 500)
    cut = tokenize([Document(docs("")[0].identity, text[:700], rest=(text[700:705], text[705:]))], lm, split="train")
    assert cut.digest == whole.digest  # for a tokenizer that never looks across a line break
    assert max(lengths) <= 500 < min(sum(lengths[i : i + 2]) for i in range(len(lengths) - 2))


# ---------------------------------------------------------------------------------------------- packing


def test_short_documents_share_a_context_by_hand():
    """Contexts of 10: 1 + 9 of the first document; then, largest first, 1 + 5, 1 + 5, 1 + 4, 1 + 3 into rooms of 10."""
    lm = letters(context=10, batch=2)
    contexts = tokenize(docs("abcdefghijklmn", "opqr", "stu!v", "wxy"), lm, split="train", packing="isolated")
    found = {}
    for group in range(contexts.groups):
        ids, positions = contexts.ids(group), contexts.positions(group)
        trained, scored = contexts.trained(group), contexts.scored(group)
        for i, row in enumerate(ids):
            text = "".join("^!"[token] if token < 2 else chr(ord("a") + token - 2) for token in row)
            marks = ["".join("x" if mark else "." for mark in marks[i]) for marks in (trained, scored)]
            found[text.rstrip("^")] = [line[: len(text.rstrip("^"))] for line in marks], positions[i].tolist()
    # 6 + 4 fill one context, the later of the two that a 6 has opened; 6 leaves 4, where 5 does not go.
    assert {text: marks for text, (marks, _) in found.items()} == {
        "^abcdefghi": [".xxxxxxxxx", ".xxxxxxxx."],
        "^stu!v^wxy": [".xxx.x.xxx", ".xxx...xx."],
        "^jklmn": [".xxxxx", ".xxxx."],
        "^opqr": [".xxxx", ".xxx."],
    }
    assert found["^stu!v^wxy"][1] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize("packing", ["isolated", "plain"])
@pytest.mark.parametrize("bos_id", [0, 1, None])
@given(texts=st.lists(st.text("abcdefgh!", max_size=30), min_size=1, max_size=25), batch=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_packing_moves_chunks_and_changes_none(texts, batch, bos_id, packing):
    texts = [*texts, "abcdefghi"]
    lm = letters(bos_id=bos_id, context=8, batch=batch)
    packed = tokenize(docs(*texts), lm, split="train", packing=packing)
    single = tokenize(docs(*texts), lm, split="train")
    assert sorted(zip(packed.start, packed.length, packed.owner, strict=True)) == sorted(
        zip(single.start, single.length, single.owner, strict=True)
    )
    assert packed.rows == single.rows
    assert packed.scored_per_group.sum() == single.scored_per_group.sum()
    assert len(packed) <= len(single)
    lead, first = int(bos_id is not None), 0
    for group in range(packed.groups):
        ids, chunk, positions = packed.ids(group), packed.chunk(group), packed.positions(group)
        trained, scored = packed.trained(group), packed.scored(group)
        assert trained.sum() == packed.rows_per_group[group]
        assert scored.sum() == packed.scored_per_group[group]
        assert ids.shape[1] <= 8
        assert (positions is None) == (packing == "plain")
        for number, document in enumerate(packed.document(group)):
            (row,), column = np.unique(np.nonzero(chunk == number)[0]), np.nonzero(chunk == number)[1]
            start, length = packed.start[first + number], packed.length[first + number]
            assert column.tolist() == list(range(column[0], column[0] + lead + length))
            own = [*[bos_id][:lead], *packed.tokens[start : start + length]]
            assert ids[row, column].tolist() == own
            usable = [k > 0 and not lm.special[token] for k, token in enumerate(own)]
            assert trained[row, column].tolist() == usable
            assert scored[row, column].tolist() == [*usable[:-1], False]
            assert document == packed.owner[first + number]
            if positions is not None:
                assert positions[row, column].tolist() == list(range(len(own)))
        first += len(packed.document(group))
        assert not (trained | scored)[chunk < 0].any()
        owners = [packed.document(group)[np.unique(row[row >= 0])].tolist() for row in chunk]
        assert all(len(set(row)) == len(row) for row in owners)  # no document twice in one context
        labels, where = packed.labels(group), np.argwhere(trained)
        assert list(zip(*(labels[key].tolist() for key in ("token", "document", "position")), strict=True)) == [
            (ids[c, t], packed.document(group)[chunk[c, t]], t) for c, t in where
        ]


def test_packing_wastes_little_and_keeps_the_order_of_documents():
    random = np.random.default_rng(3)
    size = random.integers(3, 120, 3000)
    order, count = _packed(size, 128)
    assert sorted(order.tolist()) == list(range(3000))
    filled = np.add.reduceat(size[order], np.cumsum(count) - count)
    assert filled.max() <= 128
    assert len(count) <= 1.02 * -(-size.sum() // 128)
    for chunks in np.split(order, np.cumsum(count)[:-1]):
        assert chunks.tolist() == sorted(chunks.tolist())
    assert _packed(np.array([5, 6, 2, 3]), 8)[1].tolist() == [2, 2]  # 6 + 2 and 5 + 3


def test_packed_contexts_are_saved_with_what_they_are(tmp_path):
    contexts = tokenize(docs("abcdefghijklm", "nop!qrs", "tu", "vwx"), letters(), split="train", packing="isolated")
    contexts.save(tmp_path)
    loaded = Contexts.load(tmp_path)
    assert (loaded.packing, loaded.digest) == ("isolated", contexts.digest)
    assert loaded.count.tolist() == contexts.count.tolist()
    assert loaded.positions(0).tolist() == contexts.positions(0).tolist()


# ---------------------------------------------------------------------------------------------- files


def test_saved_contexts_are_the_same(tmp_path):
    contexts = tokenize(docs("abcdefghijklm", "nop!qrs"), letters(), split="train")
    contexts.save(tmp_path)
    loaded = Contexts.load(tmp_path)
    assert loaded.digest == contexts.digest
    assert by_text(loaded) == by_text(contexts)
    assert loaded.names == contexts.names
    other = tokenize(docs("abcdefghijklm", "nop!qrt"), letters(), split="train")
    other.save(tmp_path / "other")
    (tmp_path / "other" / "tokens-00000.safetensors").replace(tmp_path / "tokens-00000.safetensors")
    with pytest.raises(ArtefactError, match="tokens of another text"):
        Contexts.load(tmp_path)
    (tmp_path / "contexts.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtefactError, match=r"contexts\.safetensors is torn"):
        Contexts.load(tmp_path)


def test_a_real_tokenizer_takes_special_tokens_and_long_documents_without_a_word(lm_of, recwarn, caplog):
    lm = lm_of("llama")
    text = "Beginning <bos> middle <eos> and a long end. " + "ä\u2028\U0001f600 words " * 2000
    contexts = tokenize(docs(text), lm, split="train")
    assert lm.tokenizer.decode(contexts.tokens.tolist()) == text
    assert (contexts.tokens < 2).sum() == 2
    assert contexts.rows == len(contexts.tokens) - 2 - (len(contexts.tokens) % 31 == 1)
    assert not recwarn.list
    assert not caplog.records


def test_the_shared_model_scores_stories_as_its_author_reports(shared):
    """Karpathy reports 1.2968 nats per token on TinyStories' validation set; we score no token after BOS alone."""
    torch = pytest.importorskip("torch")
    from jumpahead.lm.config import LMConfig
    from jumpahead.lm.model import LM, nats
    from jumpahead.text.config import TextConfig
    from jumpahead.text.documents import documents

    lm = LM.load(LMConfig(model=str(shared / "models" / "stories260K")))
    text = TextConfig(source=str(shared / "text" / "tinystories_a.txt"), separator="<|endoftext|>")
    contexts = tokenize(documents(text), lm, split="held_out", max_tokens=20_000)
    total = 0.0
    for group in range(contexts.groups):
        ids = torch.from_numpy(contexts.ids(group))
        total += float(nats(lm.logits(ids), ids)[torch.from_numpy(contexts.scored(group))[:, :-1]].double().sum())
    assert 1.2 < total / contexts.scored_per_group.sum() < 1.4
