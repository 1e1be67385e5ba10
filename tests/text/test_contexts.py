"""Contexts: which token is at which position, which positions are trained on and scored, saving and loading."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpahead.errors import ArtefactError
from jumpahead.text.contexts import Contexts
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize
from tests.texts import letters_lm, split_docs


def by_text(contexts):
    """Return the trained and the scored letters of every context, by its text."""
    found = {}
    for group in range(contexts.num_groups):
        ids, trained, scored = contexts.ids(group), contexts.trained_mask(group), contexts.scored_mask(group)
        assert ids.dtype == np.int64
        assert trained.shape == scored.shape == ids.shape
        for row, is_trained, is_scored in zip(ids, trained, scored, strict=True):
            text = "".join("^!"[i] if i < 2 else chr(ord("a") + i - 2) for i in row)
            pick = [text[t] for t in np.flatnonzero(is_trained)], [text[t] for t in np.flatnonzero(is_scored)]
            found[text.rstrip("^")] = tuple("".join(letters) for letters in pick)
    return found


def test_every_context_is_bos_and_a_chunk_of_one_document():
    contexts = tokenize(split_docs("abcdefghijklm", "nop", "q"), letters_lm(), split="train")
    assert by_text(contexts) == {
        "^abcde": ("abcde", "abcd"),
        "^fghij": ("fghij", "fghi"),
        "^klm": ("klm", "kl"),
        "^nop": ("nop", "no"),  # never joined with another document; `q` alone has nothing to score
    }
    assert contexts.num_groups == 2
    assert contexts.rows == 16


def test_without_bos_the_first_position_is_text_that_is_not_trained_on():
    contexts = tokenize(split_docs("abcdefghij", "kl"), letters_lm(bos_id=None), split="train")
    found = by_text(contexts)
    assert found == {"abcdef": ("bcdef", "bcde"), "ghij": ("hij", "hi")}


def test_a_text_that_begins_with_bos_gets_no_second_one():
    """`!` is BOS here: one at the start of a document, one where a context of a long document begins."""
    contexts = tokenize(split_docs("!abcd", "efghi!jkl"), letters_lm(bos_id=1), split="train")
    rows = [row for group in range(contexts.num_groups) for row in contexts.ids(group).tolist()]
    texts = {"".join("^!"[id] if id < 2 else chr(ord("a") + id - 2) for id in row).rstrip("!") for row in rows}
    assert texts == {"!abcd", "!efghi", "!jkl"}  # without what fills the rest of a row


def test_special_tokens_inside_the_text_are_kept_but_not_trained_on():
    contexts = tokenize(split_docs("ab!cd"), letters_lm(), split="train")
    assert by_text(contexts) == {"^ab!cd": ("abcd", "abc")}  # b is scored although its target is special; ! is not


@pytest.mark.parametrize("bos_id", [0, 1, None])
@given(texts=st.lists(st.text("abcdefgh!", max_size=30), min_size=1, max_size=12), batch=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_counts_per_group_equal_the_masks(texts, batch, bos_id):
    texts = [*texts, "abcdefghi"]  # at least one full context
    contexts = tokenize(split_docs(*texts), letters_lm(bos_id=bos_id, batch=batch), split="train")
    trained = [contexts.trained_mask(group).sum() for group in range(contexts.num_groups)]
    scored = [contexts.scored_mask(group).sum() for group in range(contexts.num_groups)]
    assert contexts.rows_per_group.tolist() == trained
    assert contexts.scored_per_group.tolist() == scored
    for group in range(contexts.num_groups):
        ids, mask = contexts.ids(group), contexts.trained_mask(group)
        assert not contexts.is_special[ids[mask]].any()
        assert not mask[:, 0].any()
        assert not (contexts.scored_mask(group) & ~mask).any()
        assert len(contexts.chunk_documents(group)) == len(ids)
        labels = contexts.token_labels(group)
        assert labels["token"].tolist() == ids[mask].tolist()
        assert labels["position"].tolist() == np.nonzero(mask)[1].tolist()
        assert labels["document"].tolist() == contexts.chunk_documents(group)[np.nonzero(mask)[0]].tolist()
    assert all(contexts.chunk_length + (bos_id is not None) <= 6)


def test_the_order_is_fixed_and_mixes_documents():
    documents = split_docs(*("abcdefghij" * 4 for _ in range(30)))
    one, two = (tokenize(documents, letters_lm(batch=batch), split="train") for batch in (2, 7))
    assert one.chunk_start.tolist() == two.chunk_start.tolist()
    assert one.digest != two.digest
    assert one.chunk_document.tolist() != sorted(one.chunk_document.tolist())
    assert one.digest == tokenize(documents, letters_lm(), split="train").digest
    other = [*documents[:-1], Document(documents[-1].identity, "abcdefghij" * 3 + "abcdefghik")]
    assert one.digest != tokenize(other, letters_lm(), split="train").digest


def test_saved_contexts_are_the_same(tmp_path):
    contexts = tokenize(split_docs("abcdefghijklm", "nop!qrs"), letters_lm(), split="train")
    contexts.save(tmp_path)
    loaded = Contexts.load(tmp_path)
    assert loaded.digest == contexts.digest
    assert by_text(loaded) == by_text(contexts)
    assert loaded.document_names == contexts.document_names
    other = tokenize(split_docs("abcdefghijklm", "nop!qrt"), letters_lm(), split="train")
    other.save(tmp_path / "other")
    (tmp_path / "other" / "tokens-00000.safetensors").replace(tmp_path / "tokens-00000.safetensors")
    with pytest.raises(ArtefactError, match="tokens of another text"):
        Contexts.load(tmp_path)
    (tmp_path / "contexts.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtefactError, match=r"contexts\.safetensors is torn"):
        Contexts.load(tmp_path)


def test_a_real_tokenizer_takes_special_tokens_and_long_documents_without_warnings(lm_of, recwarn, caplog):
    lm = lm_of("llama")
    text = "Beginning <bos> middle <eos> and a long end. " + "ä\u2028\U0001f600 words " * 2000
    contexts = tokenize(split_docs(text), lm, split="train")
    assert lm.tokenizer.decode(contexts.tokens.tolist()) == text
    assert (contexts.tokens < 2).sum() == 2
    assert contexts.rows == len(contexts.tokens) - 2 - (len(contexts.tokens) % 31 == 1)
    assert not recwarn.list
    assert not caplog.records


def test_the_shared_model_scores_stories_as_its_author_reports(shared):
    """Karpathy reports 1.2968 nats per token on TinyStories validation; here tokens after BOS alone are not scored."""
    torch = pytest.importorskip("torch")
    from jumpahead.lm.config import LMConfig
    from jumpahead.lm.losses import next_token_nats
    from jumpahead.lm.model import LM
    from jumpahead.text.config import TextConfig
    from jumpahead.text.documents import documents

    lm = LM.load(LMConfig(model=str(shared / "models" / "stories260K")))
    text = TextConfig(source=str(shared / "text" / "tinystories_a.txt"), separator="<|endoftext|>")
    contexts = tokenize(documents(text), lm, split="held_out", max_tokens=20_000)
    total = 0.0
    for group in range(contexts.num_groups):
        ids = torch.from_numpy(contexts.ids(group))
        total += float(
            next_token_nats(lm.logits(ids), ids)[torch.from_numpy(contexts.scored_mask(group))[:, :-1]].double().sum()
        )
    assert 1.2 < total / contexts.scored_per_group.sum() < 1.4
