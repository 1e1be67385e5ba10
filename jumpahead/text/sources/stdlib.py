"""`stdlib`: the running Python's own library, one document per `.py` file, known by its relative path.

Without the test suite, `encodings`, `lib2to3` and `site-packages`. Files that are not UTF-8 are passed over.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jumpahead.text.source import Document, Source, rank

# Neither prose nor program: generated tables, the test suite, and what pip put there.
STDLIB_WITHOUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)


class Stdlib(Source):
    """Text that is on every machine which can run this program."""

    @classmethod
    def recognises(cls, source: str, files: Mapping[str, Path]) -> bool:
        return source == "stdlib"

    @property
    def total(self) -> int:
        return sum(path.stat().st_size for path in stdlib_sources(stdlib_root()))

    def documents(self) -> Iterator[Document]:
        self.done = 0
        for document in sorted(stdlib_documents(), key=lambda document: rank(document.identity)):
            self.done += len(document.text.encode())
            yield document

    def fingerprint(self) -> Any:
        """Names and sizes alone: the library is installed, not edited."""
        root = stdlib_root()
        return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in stdlib_sources(root)]


def stdlib_root() -> Path:
    """Where the running Python's own library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_sources(root: Path) -> list[Path]:
    """Its `.py` files, in the order of relative paths, without the test suite and the like."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_WITHOUT]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def stdlib_documents(root: Path | None = None) -> Iterator[Document]:
    """One document per file, in the order of relative paths."""
    root = root or stdlib_root()
    for path in stdlib_sources(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)


SOURCE = Stdlib
