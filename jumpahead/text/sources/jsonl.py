"""JSON Lines, plain or gzipped: one JSON object per line, with text or messages in `text.column`. Skips blank lines.

A text may contain U+0000: JSON writes this character as an escape, so it does not indicate a binary file.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.rows import RowFiles, unknown_column_error
from jumpahead.text.source import Document

_ADVICE = "remove the line, or leave the file out with text.pattern."


class JSONLines(RowFiles):
    """JSON Lines files: a document is a line."""

    suffixes = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

    def file_documents(self, name: str, path: Path) -> Iterator[Document]:
        """Yield one document per line that is not blank. Raises DataError, naming the line, if a line is unusable."""
        column = self.config.column
        for number, line in enumerate(self._lines(path), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            record = _parse_object(line, path, number)
            if column not in record:
                raise unknown_column_error(column, record, f"{path}, line {number},")
            document = self.row_document(record[column], f"{name}, line {number}")
            if document is not None:
                yield document

    def _lines(self, path: Path) -> Iterator[bytes]:
        """Yield the lines of a file and update `bytes_read`. Raises DataError if the file is unreadable."""
        before, is_gzipped = self.bytes_read, path.name.lower().endswith(".gz")
        try:
            with open(path, "rb") as raw:
                file = gzip.GzipFile(fileobj=raw) if is_gzipped else raw
                for line in file:
                    if is_gzipped:
                        self.bytes_read = before + raw.tell()
                    else:
                        self.bytes_read += len(line)
                    yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise DataError(f"{path} is torn or is not gzip: {exc}.") from exc
        except OSError as exc:
            raise DataError(f"{path} cannot be read: {exc.strerror}.") from exc


def _parse_object(line: bytes, path: Path, number: int) -> dict[str, object]:
    """Return the JSON object of a line. Raises DataError, naming the line, if the line is not a JSON object."""
    if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: convert it to UTF-8.")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as exc:
        raise DataError(
            f"line {number} of {path} is not UTF-8 (byte 0x{line[exc.start]:02x} at {exc.start} in it): {_ADVICE}"
        ) from exc
    except (ValueError, RecursionError) as exc:
        what = f" ({exc.msg.lower()} at {exc.pos + 1})" if isinstance(exc, json.JSONDecodeError) else ""
        raise DataError(f"line {number} of {path} is not JSON{what}: {_ADVICE}") from exc
    if not isinstance(record, dict):
        raise DataError(f"line {number} of {path} is a JSON {type(record).__name__}, not an object: {_ADVICE}")
    return record


SOURCE = JSONLines
