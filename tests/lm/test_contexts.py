"""Contexts: which token stands where, which are trained on and scored, and that both splits stay apart."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpahead.errors import ArtefactError, DataError
from jumpahead.lm.contexts import Contexts, shuffled, tokenize
from jumpahead.lm.sources.base import Document
from jumpahead.lm.text import is_held_out


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
    from jumpahead.lm.config import LMConfig, TextConfig
    from jumpahead.lm.model import LM, nats
    from jumpahead.lm.text import documents

    lm = LM.load(LMConfig(model=str(shared / "models" / "stories260K")))
    text = TextConfig(source=str(shared / "text" / "tinystories_a.txt"), separator="<|endoftext|>")
    contexts = tokenize(documents(text), lm, split="held_out", max_tokens=20_000)
    total = 0.0
    for group in range(contexts.groups):
        ids = torch.from_numpy(contexts.ids(group))
        total += float(nats(lm.logits(ids), ids)[torch.from_numpy(contexts.scored(group))[:, :-1]].double().sum())
    assert 1.2 < total / contexts.scored_per_group.sum() < 1.4
