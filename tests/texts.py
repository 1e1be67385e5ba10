"""Text for tests: few words, so that a random language model has something to tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def random_words(folder: Path, files: int) -> Path:
    """A new folder of as many text files, 80 words each out of 60."""
    random = np.random.default_rng(4)
    words = ["".join(random.choice(list("abcdefghij"), random.integers(2, 6))) for _ in range(60)]
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:02}.txt").write_text(" ".join(random.choice(words, 80)))
    return folder
