"""Packing: several short documents in one context."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpahead.text.contexts import Contexts
from jumpahead.text.packing import pack_best_fit
from jumpahead.text.tokenize import tokenize
from tests.texts import letters_lm, split_docs


def test_short_documents_share_a_context_by_hand():
    """Chunks of 1 + 9, and, largest first, 1 + 5, 1 + 5, 1 + 4 and 1 + 3 tokens go into contexts of 10."""
    lm = letters_lm(context=10, batch=2)
    contexts = tokenize(split_docs("abcdefghijklmn", "opqr", "stu!v", "wxy"), lm, split="train", packing="isolated")
    found = {}
    for group in range(contexts.num_groups):
        ids, positions = contexts.ids(group), contexts.position_ids(group)
        trained, scored = contexts.trained_mask(group), contexts.scored_mask(group)
        for i, row in enumerate(ids):
            text = "".join("^!"[token] if token < 2 else chr(ord("a") + token - 2) for token in row)
            marks = ["".join("x" if mark else "." for mark in marks[i]) for marks in (trained, scored)]
            found[text.rstrip("^")] = [line[: len(text.rstrip("^"))] for line in marks], positions[i].tolist()
    # 6 + 4 fill one context, the later of the two that begin with a 6; the other has 4 left, too few for a 5.
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
def test_packing_only_moves_chunks(texts, batch, bos_id, packing):
    texts = [*texts, "abcdefghi"]
    lm = letters_lm(bos_id=bos_id, context=8, batch=batch)
    packed = tokenize(split_docs(*texts), lm, split="train", packing=packing)
    single = tokenize(split_docs(*texts), lm, split="train")
    assert sorted(zip(packed.chunk_start, packed.chunk_length, packed.chunk_document, strict=True)) == sorted(
        zip(single.chunk_start, single.chunk_length, single.chunk_document, strict=True)
    )
    assert packed.rows == single.rows
    assert packed.scored_per_group.sum() == single.scored_per_group.sum()
    assert len(packed) <= len(single)
    bos_tokens, first = int(bos_id is not None), 0
    for group in range(packed.num_groups):
        ids, chunk, positions = packed.ids(group), packed.chunk_index(group), packed.position_ids(group)
        trained, scored = packed.trained_mask(group), packed.scored_mask(group)
        assert trained.sum() == packed.rows_per_group[group]
        assert scored.sum() == packed.scored_per_group[group]
        assert ids.shape[1] <= 8
        assert (positions is None) == (packing == "plain")
        for number, document in enumerate(packed.chunk_documents(group)):
            (row,), column = np.unique(np.nonzero(chunk == number)[0]), np.nonzero(chunk == number)[1]
            start, length = packed.chunk_start[first + number], packed.chunk_length[first + number]
            assert column.tolist() == list(range(column[0], column[0] + bos_tokens + length))
            own = [*[bos_id][:bos_tokens], *packed.tokens[start : start + length]]
            assert ids[row, column].tolist() == own
            usable = [k > 0 and not lm.is_special[token] for k, token in enumerate(own)]
            assert trained[row, column].tolist() == usable
            assert scored[row, column].tolist() == [*usable[:-1], False]
            assert document == packed.chunk_document[first + number]
            if positions is not None:
                assert positions[row, column].tolist() == list(range(len(own)))
        first += len(packed.chunk_documents(group))
        assert not (trained | scored)[chunk < 0].any()
        owners = [packed.chunk_documents(group)[np.unique(row[row >= 0])].tolist() for row in chunk]
        assert all(len(set(row)) == len(row) for row in owners)  # no document twice in one context
        labels, where = packed.token_labels(group), np.argwhere(trained)
        assert list(zip(*(labels[key].tolist() for key in ("token", "document", "position")), strict=True)) == [
            (ids[c, t], packed.chunk_documents(group)[chunk[c, t]], t) for c, t in where
        ]


def test_packing_fills_contexts_and_keeps_the_order_of_documents():
    random = np.random.default_rng(3)
    size = random.integers(3, 120, 3000)
    order, count = pack_best_fit(size, 128)
    assert sorted(order.tolist()) == list(range(3000))
    filled = np.add.reduceat(size[order], np.cumsum(count) - count)
    assert filled.max() <= 128
    assert len(count) <= 1.02 * -(-size.sum() // 128)
    for chunks in np.split(order, np.cumsum(count)[:-1]):
        assert chunks.tolist() == sorted(chunks.tolist())
    assert pack_best_fit(np.array([5, 6, 2, 3]), 8)[1].tolist() == [2, 2]  # 6 + 2 and 5 + 3


def test_packed_contexts_survive_saving(tmp_path):
    contexts = tokenize(
        split_docs("abcdefghijklm", "nop!qrs", "tu", "vwx"), letters_lm(), split="train", packing="isolated"
    )
    contexts.save(tmp_path)
    loaded = Contexts.load(tmp_path)
    assert (loaded.packing, loaded.digest) == ("isolated", contexts.digest)
    assert loaded.chunks_per_context.tolist() == contexts.chunks_per_context.tolist()
    assert loaded.position_ids(0).tolist() == contexts.position_ids(0).tolist()
