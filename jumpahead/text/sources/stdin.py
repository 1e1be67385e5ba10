"""`-`: UTF-8 text from standard input, as one document. The run's folder stores the text.

A continued run reads the stored text and needs no new input. New input replaces the stored text.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jumpahead.errors import DataError
from jumpahead.progress import Progress
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.digests import digest_file
from jumpahead.storage.layout import RunPaths
from jumpahead.text.source import Document, Source
from jumpahead.text.utf8 import read_document


class Stdin(Source):
    """Text from standard input."""

    @classmethod
    def recognises(cls, source: str) -> bool:
        return source == "-"

    @property
    def _stored(self) -> Path | None:
        """Return the path of the stored text, or None if no text is stored yet."""
        path = RunPaths(self.folder).stdin if self.folder else None
        return path if path and path.is_file() else None

    def prepare(self, progress: Progress) -> None:
        """Store standard input in the run's folder; keep the stored text if the input is empty or a terminal."""
        assert self.folder is not None, "standard input is stored in a run's folder"
        if sys.stdin is None or sys.stdin.isatty():
            return
        progress.say("text: reading standard input")
        target = RunPaths(self.folder).stdin
        new = write_atomic(target.with_suffix(".new"), _copy_stdin)
        if new.stat().st_size and digest_file(new) != self.fingerprint():
            new.replace(target)
        else:  # empty, or the text that is stored already
            new.unlink()

    @property
    def total_bytes(self) -> int | None:
        return self._stored.stat().st_size if self._stored else None

    def documents(self) -> Iterator[Document]:
        if self._stored is None:
            raise DataError("text.source = '-', but standard input was empty: pipe text into `jumpahead run`.")
        self.bytes_read = 0
        yield read_document("stdin", self._stored, self._add_bytes_read)

    def _add_bytes_read(self, num_bytes: int) -> None:
        """Increase `bytes_read` by `num_bytes`."""
        self.bytes_read += num_bytes

    def fingerprint(self) -> Any:
        """Return the SHA-256 of the stored text, or None if no text is stored yet."""
        return digest_file(self._stored) if self._stored else None


def _copy_stdin(path: Path) -> None:
    """Copy standard input to a file."""
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


SOURCE = Stdin
