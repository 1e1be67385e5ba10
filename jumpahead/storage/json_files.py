"""JSON files and JSONL files (one JSON object per line): written atomically, checked when they are read.

The last key of a JSON file that this package reads again is `checksum`: the SHA-256 of all bytes before it. A file
whose bytes changed is refused, not used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jumpahead.storage.artefacts import RUN_COMMAND, damaged_artefact_error, missing_artefact_error
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.plain_files import read_plain

CHECKSUM_KEY = "checksum"
"""The last key of a JSON file: the SHA-256 of all bytes before it, in hexadecimal."""


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2, has_checksum: bool = True) -> Path:
    """Write an object as JSON, converted by `to_json`, atomically; return the path.

    has_checksum: add the key `checksum`, which `read_json` requires; False for files that other programs read.
    """
    text = to_json(value, indent)
    return write_atomic(path, _with_checksum(text, indent) if has_checksum else text + "\n")


def _with_checksum(text: str, indent: int | None) -> bytes:
    """Return the text of a JSON object with the checksum as its last key."""
    assert text.endswith("}"), "only an object has a checksum"
    start = text[:-1].rstrip()
    start += "" if start == "{" else ","
    start += f'"{CHECKSUM_KEY}":' if indent is None else f'\n{" " * indent}"{CHECKSUM_KEY}": '
    return start.encode() + _checksum_value(start.encode(), is_compact=indent is None)


def _checksum_value(start: bytes, *, is_compact: bool) -> bytes:
    """Return the end of a JSON file whose other bytes are `start`: the checksum and what closes the object."""
    digest = hashlib.sha256(start).hexdigest()
    return f'"{digest}"}}\n'.encode() if is_compact else f'"{digest}"\n}}\n'.encode()


def _is_intact(content: bytes) -> bool:
    """Return True if the bytes of a JSON file end in the checksum of all that precede it."""
    start = content[: content.rfind(b'"', 0, max(0, content.rfind(b'"')))]
    return content[len(start) :] in (_checksum_value(start, is_compact=True), _checksum_value(start, is_compact=False))


def parse_json(content: bytes | str) -> Any:
    """Return the value in JSON text. Raises ValueError if it is not JSON, or nested too deep to be read."""
    try:
        return json.loads(content)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text. Arrays and tensors become lists or numbers; NaN and ±inf become null."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(
            value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False, default=json_default
        )
    except ValueError:
        value = _nan_to_null(json.loads(json.dumps(value, default=json_default)))
        return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)


def json_default(value: Any) -> Any:
    """Convert an array, a tensor, an object with a `to_json` method, or a relative path to a JSON value."""
    if hasattr(value, "tolist"):  # numpy arrays and numbers, torch tensors
        return value.tolist()
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, PurePosixPath | Path):
        assert not value.is_absolute(), f"an absolute path in a JSON file: {value}"
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _nan_to_null(value: Any) -> Any:
    """Return a copy of a JSON value in which every NaN or ±inf is replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_null(item) for item in value]
    return value


def read_json(
    path: str | os.PathLike[str],
    schema: str | None = None,
    *,
    made_by: str = RUN_COMMAND,
    has_checksum: bool | None = True,
) -> dict[str, Any]:
    """Return the object in a JSON file, without its checksum.

    Raises DamagedError if the bytes are not those that were written, and ArtefactError if the file is missing, is not a
    JSON object, or its "schema" is not `schema` (if given).
    made_by: the command that writes the file; error messages name the command. has_checksum: as for `write_json`; None
    verifies the checksum if there is one, for files that are only shown and that people also put together.
    """
    path = Path(path)
    try:
        content = read_plain(path)
        value = parse_json(content)
    except FileNotFoundError as exc:
        raise missing_artefact_error(path, made_by) from exc
    except ValueError as exc:  # JSONDecodeError, UnicodeDecodeError
        raise damaged_artefact_error(path, "is torn or is not JSON", made_by) from exc
    if not isinstance(value, dict):
        raise damaged_artefact_error(path, f"holds a {type(value).__name__}, not an object", made_by)
    if schema is not None and value.get("schema") != schema:
        found = value.get("schema")
        what = f"says that it is {found!r:.60}" if found else "does not say what it is"
        raise damaged_artefact_error(path, f"{what}, this version reads {schema!r}", made_by)
    is_checked = has_checksum or (has_checksum is None and CHECKSUM_KEY in value)
    if is_checked and not _is_intact(content):
        what = "is damaged: it does not match its checksum" if CHECKSUM_KEY in value else "has no checksum"
        raise damaged_artefact_error(path, what, made_by)
    value.pop(CHECKSUM_KEY, None)
    return value


def read_json_lines(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> list[dict[str, Any]]:
    """Return the records of a JSONL file. An incomplete last line (no newline) is skipped.

    Raises ArtefactError if the file is missing, DamagedError if another line is not valid JSON.
    """
    path = Path(path)
    try:
        text = read_plain(path).decode("utf-8", "replace")
    except FileNotFoundError as exc:
        raise missing_artefact_error(path, made_by) from exc
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # text after the last newline is an incomplete record
        try:
            records.append(parse_json(line))
        except ValueError as exc:
            raise damaged_artefact_error(path, f"is torn in line {number}", made_by) from exc
    return records


def write_json_lines(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> Path:
    """Write records as a JSONL file, atomically, replacing an existing file; return the path."""
    return write_atomic(path, "".join(to_json(record) + "\n" for record in records))
