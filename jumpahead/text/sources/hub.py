"""`hf:owner/name`, `hf:owner/name:configuration`, `hf:./folder`: a Hugging Face dataset, read as a stream.

Rows are downloaded while they are read, and reading stops once there are `text.max_tokens` tokens of training text.
`text.split` selects the split and `text.column` the column. The digest of a dataset on the hub depends on the name of
the dataset, not on its content.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jumpahead.errors import DataError, JumpaheadError, StudyError
from jumpahead.text.config import TextConfig
from jumpahead.text.files import file_stats, find_files
from jumpahead.text.rows import RowSource, missing_package_clause, unknown_column_error
from jumpahead.text.source import Document

_PREFIX = "hf:"


class Hub(RowSource):
    """A Hugging Face dataset: a document is a row. Requires the package `datasets`."""

    is_streamed = True

    def __init__(self, config: TextConfig, files: Mapping[str, Path], folder: Path | None) -> None:
        super().__init__(config, files, folder)
        self.path, _, self.configuration = config.source.removeprefix(_PREFIX).partition(":")

    @classmethod
    def recognises(cls, source: str) -> bool:
        return source.startswith(_PREFIX)

    def problem(self) -> str | None:
        is_local = self.path.startswith(("/", ".", "~"))
        if is_local and not Path(self.path).expanduser().is_dir():
            return "which does not exist (seen from the current folder)"
        if not is_local and (not self.path or self.path.count("/") > 1):
            return "which is not the name of a dataset: write hf:owner/name, or hf:owner/name:configuration"
        return missing_package_clause("datasets")

    @property
    def total_bytes(self) -> None:
        return None

    def documents(self) -> Iterator[Document]:
        if problem := self.problem():
            raise StudyError(f"text.source = '{self.config.source}', {problem}.")
        column = self.config.column
        with self._translate_errors():
            rows = iter(self._open())
        for number in itertools.count(1):
            with self._translate_errors():
                record = next(rows, None)
            if record is None:
                return
            if column not in record:
                raise unknown_column_error(column, record, f"{self.config.source}, row {number},")
            document = self.row_document(record[column], f"{self.config.source}, row {number}")
            if document is not None:
                yield document._replace(label=f"row {number}")  # the study names the dataset already

    def _open(self) -> Any:
        """Return the rows of the split as an iterable dataset, reduced to the text column if column names are known."""
        import datasets

        path = str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path
        name = self.configuration or None
        dataset: Any = datasets.load_dataset(path, name, split=self.config.split, streaming=True)
        if self.config.column in (dataset.column_names or ()):
            dataset = dataset.select_columns([self.config.column])
        return dataset

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Convert any exception of the package `datasets` into a DataError of one sentence."""
        try:
            yield
        except JumpaheadError:
            raise
        except Exception as exc:
            lines = [line.strip().rstrip(".") for line in str(exc).splitlines() if line.strip()]
            reason = "; ".join(lines[:2]) or type(exc).__name__  # the second line often lists the valid names
            raise DataError(f"text.source = '{self.config.source}' cannot be read: {reason}.") from exc

    def fingerprint(self) -> Any:
        """Return names, sizes and modification times of a local folder's files; empty for a dataset on the hub."""
        return file_stats(find_files(TextConfig(source=self.path)))


SOURCE = Hub
