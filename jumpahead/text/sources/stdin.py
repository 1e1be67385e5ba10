"""`-`: UTF-8 text from standard input, as if it were a file. It is kept in the run's folder, so that the run can go on.

Whoever starts the same run again may leave the input away; another input is another text.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jumpahead import store
from jumpahead.errors import DataError
from jumpahead.progress import Progress
from jumpahead.text.source import Document, Source
from jumpahead.text.sources.files import Files


class Stdin(Source):
    """A pipe."""

    @classmethod
    def recognises(cls, source: str, files: Mapping[str, Path]) -> bool:
        return source == "-"

    @property
    def _kept(self) -> Path | None:
        """Where the text lies once it was read."""
        path = store.Run(self.folder).stdin if self.folder else None
        return path if path and path.is_file() else None

    def prepare(self, progress: Progress) -> None:
        assert self.folder is not None, "standard input is kept in a run's folder"
        if sys.stdin is None or sys.stdin.isatty():
            return
        progress.say("text: reading standard input")
        target = store.Run(self.folder).stdin
        new = store.write_atomic(target.with_suffix(".new"), _copy)
        if new.stat().st_size and store.digest_file(new) != self.fingerprint():
            new.replace(target)
        else:  # nothing, or the same again
            new.unlink()

    @property
    def total(self) -> int | None:
        return self._kept.stat().st_size if self._kept else None

    def documents(self) -> Iterator[Document]:
        if self._kept is None:
            raise DataError("text.source = '-' and nothing came from standard input: pipe text into `jumpahead run`.")
        file = Files(self.config, {"stdin": self._kept}, None)
        for document in file.documents():
            self.done = file.done
            yield document

    def fingerprint(self) -> Any:
        """SHA-256 of the text; None before it was read."""
        return store.digest_file(self._kept) if self._kept else None


def _copy(path: Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


SOURCE = Stdin
