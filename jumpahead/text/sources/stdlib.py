"""`stdlib`: the standard library of the running Python, one document per `.py` file, identified by relative path.

Excludes the test suite, `encodings`, `lib2to3` and `site-packages`. Skips files that are not UTF-8.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jumpahead.text.files import order_key
from jumpahead.text.source import Document, Source

EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)
"""Names of folders to skip: generated tables, the test suite, and installed packages."""


class Stdlib(Source):
    """Python's standard library, a text that is available on every machine with Python."""

    @classmethod
    def recognises(cls, source: str) -> bool:
        return source == "stdlib"

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in stdlib_files(stdlib_root()))

    def documents(self) -> Iterator[Document]:
        self.bytes_read = 0
        for document in sorted(stdlib_documents(), key=lambda document: order_key(document.identity)):
            self.bytes_read += len(document.text.encode())
            yield document

    def fingerprint(self) -> Any:
        """Return names and sizes of the files, without modification times, which differ between installations."""
        root = stdlib_root()
        return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in stdlib_files(root)]


def stdlib_root() -> Path:
    """Return the folder of the standard library of the running Python."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_files(root: Path) -> list[Path]:
    """Return the `.py` files of the library outside `EXCLUDED_FOLDERS`, sorted by relative path."""
    paths: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def stdlib_documents(root: Path | None = None) -> Iterator[Document]:
    """Yield one document per readable file that is not blank, sorted by relative path.

    root: folder of the library; None for the library of the running Python.
    """
    root = root or stdlib_root()
    for path in stdlib_files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)


SOURCE = Stdlib
