"""JSON Lines, plain or gzipped: one JSON object per line, its text or messages in `text.column`. A blank line is none.

A text may hold U+0000: in JSON somebody wrote it as an escape, it is no sign of a binary file.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from jumpahead.errors import DataError
from jumpahead.text.source import Document, RowFiles, no_column

_WAY_OUT = "remove the line, or leave the file out with text.pattern."


class JSONLines(RowFiles):
    """A document is a line."""

    suffixes = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

    def rows(self, name: str, path: Path) -> Iterator[Document]:
        column = self.config.column
        for number, line in enumerate(self._lines(path), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            record = _object(line, path, number)
            if column not in record:
                raise no_column(column, record, f"{path}, line {number},")
            document = self.row(record[column], f"{name}, line {number}")
            if document is not None:
                yield document

    def _lines(self, path: Path) -> Iterator[bytes]:
        before, is_packed = self.done, path.name.lower().endswith(".gz")
        try:
            with open(path, "rb") as raw:
                file = gzip.GzipFile(fileobj=raw) if is_packed else raw
                for line in file:
                    if is_packed:
                        self.done = before + raw.tell()
                    else:
                        self.done += len(line)
                    yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise DataError(f"{path} is torn or is not gzip: {exc}.") from exc
        except OSError as exc:
            raise DataError(f"{path} cannot be read: {exc.strerror}.") from exc


def _object(line: bytes, path: Path, number: int) -> dict[str, object]:
    if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16: convert it to UTF-8.")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as exc:
        raise DataError(
            f"line {number} of {path} is not UTF-8 (byte 0x{line[exc.start]:02x} at {exc.start} in it): {_WAY_OUT}"
        ) from exc
    except (ValueError, RecursionError) as exc:
        what = f" ({exc.msg.lower()} at {exc.pos + 1})" if isinstance(exc, json.JSONDecodeError) else ""
        raise DataError(f"line {number} of {path} is not JSON{what}: {_WAY_OUT}") from exc
    if not isinstance(record, dict):
        raise DataError(f"line {number} of {path} is a JSON {type(record).__name__}, not an object: {_WAY_OUT}")
    return record


SOURCE = JSONLines
