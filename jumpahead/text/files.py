"""Files of a text source: find files, order documents by hash, and list file metadata. No torch here."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from jumpahead.text.config import TextConfig


def find_files(config: TextConfig) -> dict[str, Path]:
    """Return the paths of the files of `text.source` by relative path.

    A folder gives its files that match `text.pattern`, except hidden files and folders. The result is empty if
    `text.source` is neither a file nor a folder.
    """
    source = Path(config.source).expanduser()
    if source.is_file():
        return {source.name: source}
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in fnmatch.filter(names, config.pattern):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                files[path.relative_to(source).as_posix()] = path
    return files


def file_stats(files: Mapping[str, Path]) -> list[tuple[str, int, int]]:
    """Return (name, size in bytes, modification time in ns) of each file, sorted by name."""
    stats = {name: path.stat() for name, path in files.items()}
    return [(name, stats[name].st_size, stats[name].st_mtime_ns) for name in sorted(stats)]


def order_key(identity: str) -> bytes:
    """Return the SHA-256 by which documents are sorted; it is independent of the held-out selection."""
    return hashlib.sha256(f"jumpahead order/{identity}".encode("utf-8", "surrogatepass")).digest()
