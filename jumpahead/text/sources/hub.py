"""`hf:owner/name`, `hf:owner/name:configuration`, `hf:./folder`: a Hugging Face dataset, read as a stream.

Nothing is downloaded beyond what is read, and reading stops once there are `text.max_tokens` tokens of training text.
The split is `text.split`, the text stands in `text.column`. A dataset of the hub is known by its name, not by what is
in it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jumpahead.errors import DataError, JumpaheadError, StudyError
from jumpahead.text.config import TextConfig
from jumpahead.text.source import Document, Source, found_files, lacks, no_column, stamps

_PREFIX = "hf:"


class Hub(Source):
    """A document is a row. Needs datasets."""

    ends_with_training = True
    has_rows = True

    def __init__(self, config: TextConfig, files: Mapping[str, Path], folder: Path | None) -> None:
        super().__init__(config, files, folder)
        self.path, _, self.configuration = config.source.removeprefix(_PREFIX).partition(":")

    @classmethod
    def recognises(cls, source: str, files: Mapping[str, Path]) -> bool:
        return source.startswith(_PREFIX)

    def objection(self) -> str | None:
        is_local = self.path.startswith(("/", ".", "~"))
        if is_local and not Path(self.path).expanduser().is_dir():
            return "which does not exist (seen from the current folder)"
        if not is_local and (not self.path or self.path.count("/") > 1):
            return "which is no dataset's name: write hf:owner/name, or hf:owner/name:configuration"
        return lacks("datasets")

    @property
    def total(self) -> None:
        return None

    def documents(self) -> Iterator[Document]:
        if objection := self.objection():
            raise StudyError(f"text.source = '{self.config.source}', {objection}.")
        column = self.config.column
        with self._translated():
            rows = iter(self._opened())
        for number in itertools.count(1):
            with self._translated():
                record = next(rows, None)
            if record is None:
                return
            if column not in record:
                raise no_column(column, record, f"{self.config.source}, row {number},")
            document = self.row(record[column], f"{self.config.source}, row {number}")
            if document is not None:
                yield document._replace(label=f"row {number}")  # its source is the study's

    def _opened(self) -> Any:
        import datasets

        path = str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path
        name = self.configuration or None
        found: Any = datasets.load_dataset(path, name, split=self.config.split, streaming=True)
        if self.config.column in (found.column_names or ()):
            found = found.select_columns([self.config.column])
        return found

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns what datasets raises, which may be anything, into one sentence."""
        try:
            yield
        except JumpaheadError:
            raise
        except Exception as exc:
            lines = [line.strip().rstrip(".") for line in str(exc).splitlines() if line.strip()]
            reason = "; ".join(lines[:2]) or type(exc).__name__  # the second line often lists what there is
            raise DataError(f"text.source = '{self.config.source}' cannot be read: {reason}.") from exc

    def fingerprint(self) -> Any:
        """The files of a folder; nothing of a dataset on the hub, whose name is in the study."""
        return stamps(found_files(TextConfig(source=self.path)))


SOURCE = Hub
