"""Tokens as text: characters split over tokens, invisible characters, any script."""

from __future__ import annotations

import pytest

from jumpahead.features.token_text import TokenText, byte_of_letter, show
from tests.conftest import byte_tokenizer


@pytest.fixture(scope="module")
def texts():
    return TokenText(byte_tokenizer())


def ids(text):
    """Return one token per byte."""
    data = text if isinstance(text, bytes) else text.encode()
    return byte_tokenizer().convert_tokens_to_ids([letter_of(byte) for byte in data])


def letter_of(byte):
    return next(letter for letter, value in byte_of_letter().items() if value == byte)


@pytest.mark.parametrize("text", ["plain", "naïve", "日本語", "עברית", "हिन्दी", "🎉", "👩‍👩‍👧", "a🎉é"])
def test_a_character_stands_at_the_token_that_completes_it(texts, text):
    shown = texts.texts(ids(text))
    assert len(shown) == len(text.encode())
    assert "".join(one for one in shown if not one.startswith("⟨")) == text
    unfinished = [one for one in shown if one.startswith("⟨")]
    assert len(unfinished) == len(text.encode()) - len(text)


def test_bytes_before_a_character_are_named(texts):
    assert texts.texts(ids("🎉")) == ["⟨F0⟩", "⟨9F⟩", "⟨8E⟩", "🎉"]
    assert texts.text(ids("🎉")[0]) == "⟨F0⟩"


def test_bytes_that_are_no_text_are_named_each_once(texts):
    assert texts.texts(ids(b"\xf0\x9fA\xff\xc3\xa9")) == ["⟨F0⟩", "⟨9F⟩", "A", "⟨FF⟩", "⟨C3⟩", "é"]


def test_what_would_mislead_is_shown_by_its_code_point():
    assert show("a\u202eb\u0000\ufeff".encode()) == "a⟨U+202E⟩b⟨U+0000⟩⟨U+FEFF⟩"
    assert show("\n\t\u200d".encode()) == "\n\t\u200d"
    assert show(b"<script>&amp;") == "<script>&amp;"


def test_tokens_of_several_bytes():
    from jumpahead.lm.model import LM

    lm = LM.load("tiny")
    texts, text = TokenText(lm.tokenizer), "def café():\n    return '🎉 ok'  # ok\n"
    tokens = lm.encode([text])[0].tolist()
    shown = texts.texts(tokens)
    assert len(shown) == len(tokens) < len(text.encode())
    assert "".join(texts.token_bytes(id).decode("latin-1") for id in tokens).encode("latin-1").decode() == text
    for character in "é🎉":
        assert sum(character in one for one in shown) == 1
    assert texts.text(lm.bos_id or 0) == "<|endoftext|>"


def test_sentencepiece_tokens_have_spaces_and_bytes():
    class SentencePiece:
        def convert_ids_to_tokens(self, id):
            return ["▁the", "re", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "Ġ", None][id]

    texts = TokenText(SentencePiece())
    assert texts.texts(range(7)) == [" the", "re", "⟨F0⟩", "⟨9F⟩", "⟨8E⟩", "🎉", "Ġ"]
    assert texts.text(7) == "⟨7⟩"
