"""A Parquet file, or a folder of Parquet files, with text or messages in `text.column`. Rows are read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jumpahead.errors import DataError, StudyError
from jumpahead.text.rows import RowFiles, messages_error, missing_package_clause, unknown_column_error
from jumpahead.text.source import Document

_ROWS_AT_ONCE = 256


class Parquet(RowFiles):
    """Parquet files: a document is a row. Requires the package `pyarrow`."""

    suffixes = (".parquet",)

    def problem(self) -> str | None:
        return super().problem() or missing_package_clause("pyarrow")

    def file_documents(self, name: str, path: Path) -> Iterator[Document]:
        if missing := missing_package_clause("pyarrow"):
            raise StudyError(f"text.source = '{self.config.source}' is Parquet, {missing}.")
        import pyarrow

        before, size = self.bytes_read, path.stat().st_size
        try:
            file = self._open(path)
            number, rows = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[self.config.column]):
                for value in batch.column(0):
                    number += 1
                    self.bytes_read = before + size * number // rows
                    document = self.row_document(value.as_py(), f"{name}, row {number}")
                    if document is not None:
                        yield document
        except UnicodeDecodeError as exc:
            raise DataError(f"{path} holds text that is not UTF-8 in its column '{self.config.column}'.") from exc
        except (pyarrow.ArrowException, OSError) as exc:
            reason = str(exc).strip().partition("\n")[0].rstrip(".")
            raise DataError(f"{path} is torn or is not Parquet: {reason}.") from exc

    def _open(self, path: Path) -> Any:
        """Open a Parquet file and return the reader. Raises DataError if `text.column` is missing or of the wrong type.

        The column must hold text, or with `text.chat` lists of messages.
        """
        import pyarrow.parquet

        file, column = pyarrow.parquet.ParquetFile(path), self.config.column
        if column not in file.schema_arrow.names:
            raise unknown_column_error(column, file.schema_arrow.names, str(path))
        kind: Any = file.schema_arrow.field(column).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
        subject = f"{path}: the column '{column}' (text.column) holds {kind}"
        if self.config.chat and not is_list:
            raise DataError(f"{subject}, not the lists of messages that text.chat needs.")
        if is_list and not self.config.chat:
            raise messages_error(subject)
        if not (is_text or is_list):
            raise DataError(f"{subject}, not text.")
        return file


SOURCE = Parquet
