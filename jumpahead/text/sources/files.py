"""A UTF-8 text file, or a folder of text files: a document is a file, identified by its path within the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.files import order_key
from jumpahead.text.source import Document, Source
from jumpahead.text.utf8 import read_document


class Files(Source):
    """UTF-8 text files. This class reads every `text.source` that no other source class recognises."""

    def problem(self) -> str | None:
        exists = self.files or Path(self.config.source).expanduser().exists()
        return super().problem() if exists else "which does not exist (seen from the current folder)"

    def documents(self) -> Iterator[Document]:
        source = self.config.source
        if not self.files:
            if Path(source).expanduser().is_dir():
                raise DataError(f"text.source = '{source}' is a folder without files named {self.config.pattern}.")
            raise DataError(f"text.source = '{source}' does not exist: give a text file, a folder, or 'stdlib'.")
        self.bytes_read = 0
        for identity in sorted(self.files, key=order_key):
            yield read_document(identity, self.files[identity], self._add_bytes_read)

    def _add_bytes_read(self, num_bytes: int) -> None:
        """Increase `bytes_read` by `num_bytes`."""
        self.bytes_read += num_bytes


SOURCE = Files
