"""Tokens as text that can be shown: characters that are split over tokens, control characters, any script.

A token is bytes. Where a character is split over several tokens, it is shown at its last token, and the tokens before
show their bytes as ⟨F0⟩. Characters that are invisible or change the direction of text are shown by their code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, final

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_JOINERS = "\u200c\u200d"
"""Zero-width characters that several scripts, and emoji, need."""


@final
class TokenText:
    """Turns the token ids of a tokenizer into text, token by token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {id: str(token) for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in str(getattr(backend, "decoder", "")) or hasattr(tokenizer, "byte_decoder")
        self._bytes: dict[int, bytes] = {}

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes that a token stands for."""
        if id not in self._bytes:
            self._bytes[id] = self._find_bytes(id)
        return self._bytes[id]

    def _find_bytes(self, id: int) -> bytes:
        """Return the bytes of a token from its entry in the vocabulary."""
        if id in self._added:
            return self._added[id].encode("utf-8", "replace")
        piece = self._tokenizer.convert_ids_to_tokens(id)
        if piece is None:  # an id beyond the vocabulary, which padded embeddings have
            return f"⟨{id}⟩".encode()
        if self._is_byte_level:
            letters = byte_of_letter()
            if all(letter in letters for letter in piece):
                return bytes(letters[letter] for letter in piece)
        if found := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace("\u2581", " ").encode("utf-8", "replace")

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token of a sequence; a character stands at the token that completes it."""
        shown, pending = list[str](), b""
        for id in ids:
            pending, text = _take_characters(pending, self.token_bytes(int(id)))
            shown.append(text)
        return shown

    def text(self, id: int) -> str:
        """Return the text of a single token; bytes that are no whole character as ⟨F0⟩."""
        return show(self.token_bytes(int(id)))


def _take_characters(pending: bytes, new: bytes) -> tuple[bytes, str]:
    """Return the bytes of an unfinished character at the end, and the text to show for the token with bytes `new`.

    pending: the unfinished character before the token.
    """
    whole = pending + new
    cut = _unfinished_start(whole)
    if cut == 0 and whole:  # the character is not finished: the token shows its own bytes
        return whole, _hex(new)
    ready, rest = whole[:cut], whole[cut:]
    is_continued = pending and _is_valid_start(ready, len(pending))
    text = show(ready if is_continued or not pending else new[: len(new) - len(rest)])
    return rest, text + _hex(rest)


def _is_valid_start(ready: bytes, pending: int) -> bool:
    """Return True if the first `pending` bytes begin a valid character of `ready`."""
    length = _character_length(ready[0])
    try:
        ready[:length].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return length > pending


def _character_length(lead: int) -> int:
    """Return the number of bytes of a UTF-8 character from its first byte; 1 if it is no first byte."""
    return 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1


def _unfinished_start(data: bytes) -> int:
    """Return where an unfinished UTF-8 character at the end of `data` begins; len(data) if there is none."""
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead & 0xC0 != 0x80:  # no continuation byte
            is_unfinished = 0xC2 <= lead <= 0xF4 and back < _character_length(lead)
            return len(data) - back if is_unfinished else len(data)
    return len(data)


def _hex(data: bytes) -> str:
    """Return bytes as ⟨F0⟩⟨9F⟩."""
    return "".join(f"⟨{byte:02X}⟩" for byte in data)


def show(data: bytes) -> str:
    """Return bytes as text to show: invalid bytes as ⟨F0⟩, misleading characters as ⟨U+202E⟩."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(_shown_character(character) for character in text)


@cache
def _shown_character(character: str) -> str:
    """Return a character; its byte or code point if it is no character, or is invisible or misleading."""
    if "\udc80" <= character <= "\udcff":
        return _hex(bytes([ord(character) - 0xDC00]))
    is_plain = character in "\n\t" + _JOINERS or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return character if is_plain else f"⟨U+{ord(character):04X}⟩"


@cache
def byte_of_letter() -> dict[str, int]:
    """Return the byte of each letter of byte-level vocabularies: printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
