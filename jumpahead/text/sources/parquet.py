"""Parquet: a file or a folder of them, the text or the messages in `text.column`. Rows are read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jumpahead.errors import DataError, StudyError
from jumpahead.text.source import Document, RowFiles, holds_messages, lacks, no_column

_ROWS = 256
"""Read at once."""


class Parquet(RowFiles):
    """A document is a row. Needs pyarrow."""

    suffixes = (".parquet",)

    def objection(self) -> str | None:
        return super().objection() or lacks("pyarrow")

    def rows(self, name: str, path: Path) -> Iterator[Document]:
        if lacking := lacks("pyarrow"):
            raise StudyError(f"text.source = '{self.config.source}' is Parquet, {lacking}.")
        import pyarrow

        before, size = self.done, path.stat().st_size
        try:
            file = self._open(path)
            number, rows = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[self.config.column]):
                for value in batch.column(0):
                    number += 1
                    self.done = before + size * number // rows
                    document = self.row(value.as_py(), f"{name}, row {number}")
                    if document is not None:
                        yield document
        except UnicodeDecodeError as exc:
            raise DataError(f"{path} holds text that is not UTF-8 in its column '{self.config.column}'.") from exc
        except (pyarrow.ArrowException, OSError) as exc:
            reason = str(exc).strip().partition("\n")[0].rstrip(".")
            raise DataError(f"{path} is torn or is not Parquet: {reason}.") from exc

    def _open(self, path: Path) -> Any:
        """The file, in which the column is and holds text, or lists where the study asks for conversations."""
        import pyarrow.parquet

        file, column = pyarrow.parquet.ParquetFile(path), self.config.column
        if column not in file.schema_arrow.names:
            raise no_column(column, file.schema_arrow.names, str(path))
        kind: Any = file.schema_arrow.field(column).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
        what = f"{path}: the column '{column}' (text.column) holds {kind}"
        if self.config.chat and not is_list:
            raise DataError(f"{what}, not the lists of messages that text.chat asks for.")
        if is_list and not self.config.chat:
            raise holds_messages(what)
        if not (is_text or is_list):
            raise DataError(f"{what}, not text.")
        return file


SOURCE = Parquet
