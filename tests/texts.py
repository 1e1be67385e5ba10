"""Text, documents and stand-ins for language models, for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document


def random_words(folder: Path, files: int) -> Path:
    """Make a folder of text files, 80 words each from a vocabulary of 60; return it.

    With so few words a random language model gives activations that differ between tokens.
    """
    random = np.random.default_rng(4)
    words = ["".join(random.choice(list("abcdefghij"), random.integers(2, 6))) for _ in range(60)]
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:02}.txt").write_text(" ".join(random.choice(words, 80)))
    return folder


def hex_words(name: object, count: int) -> str:
    """Return `count` words of one to seven hexadecimal digits that depend on `name` alone."""
    return " ".join(hashlib.sha256(f"{name}/{i}".encode()).hexdigest()[: 1 + i % 7] for i in range(count))


def split_docs(*texts: str, split: str = "train", share: float = 0.1) -> list[Document]:
    """Return a document for each text, with identities that all fall into one split."""
    found, number = [], 0
    for text in texts:
        while is_held_out(f"{number}", share) != (split == "held_out"):
            number += 1
        found.append(Document(f"{number}", text))
        number += 1
    return found


def letters_lm(bos_id: int | None = 0, context: int = 6, batch: int = 2, vocab_size: int = 40) -> Any:
    """Return what `tokenize` needs of an LM; its tokens are letters: a = 2, b = 3, …; `!` is the special id 1."""

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array([1 if c == "!" else ord(c) - ord("a") + 2 for c in text], dtype=np.int64) for text in texts]

    return SimpleNamespace(
        bos_id=bos_id,
        context=context,
        batch=batch,
        vocab_size=vocab_size,
        name="letters",
        is_special=np.arange(vocab_size) < 2,
        encode=encode,
    )


def bytes_lm(bos_id: int | None) -> Any:
    """Return what `tokenize` needs of an LM; its tokens are bytes: a byte's token is 2 more."""
    lm = letters_lm(bos_id=bos_id, context=24, batch=3, vocab_size=300)
    lm.encode = lambda texts: [np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 2 for text in texts]
    return lm
