"""Documents: where text comes from, and which documents are held out.

A document is a file, a part of a file between separators, or a dataset row. Whether it is held out is decided by a
hash of its identity alone (the relative path for files), so that the split never depends on order, on the machine or
on which other documents exist.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Neither prose nor program: generated tables, the test suite, and what pip put there.
STDLIB_WITHOUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)


class Document(NamedTuple):
    """One text."""

    identity: str
    """What decides the split and names the document in messages: a relative path, or a path and a number."""
    text: str


def is_held_out(identity: str, share: float) -> bool:
    """True for a `share` of all identities, decided by the SHA-256 of `jumpahead/<identity>` alone."""
    digest = hashlib.sha256(f"jumpahead/{identity}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def stdlib_documents(root: Path | None = None) -> Iterator[Document]:
    """The running Python's own library: one document per `.py` file, in the order of relative paths.

    Without the test suite, `encodings`, `lib2to3` and `site-packages`. Files that are not UTF-8 are passed over.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_WITHOUT]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    for path in sorted(found, key=lambda p: p.relative_to(root).as_posix()):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)
