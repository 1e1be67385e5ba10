"""JSON files and JSONL files (one JSON object per line): written atomically, checked when they are read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jumpahead.errors import ArtefactError
from jumpahead.storage.artefacts import RUN_COMMAND, missing_artefact_error
from jumpahead.storage.atomic import write_atomic


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> Path:
    """Write a value as JSON, converted by `to_json`, atomically; return the path."""
    return write_atomic(path, to_json(value, indent) + "\n")


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


def read_json(path: str | os.PathLike[str], schema: str | None = None, *, made_by: str = RUN_COMMAND) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises ArtefactError if the file is missing, is not a JSON object, or its "schema" is not `schema` (if given).
    made_by: the command that writes the file; error messages name the command.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise missing_artefact_error(path, made_by) from exc
    except IsADirectoryError as exc:
        raise ArtefactError(f"{path} is a folder, not a JSON file.") from exc
    except ValueError as exc:  # JSONDecodeError, UnicodeDecodeError
        raise ArtefactError(f"{path} is torn or is not JSON: remove it, and `{made_by}` makes it again.") from exc
    if not isinstance(value, dict):
        raise ArtefactError(
            f"{path} holds a {type(value).__name__}, not an object: `{made_by}` makes it again once removed."
        )
    if schema is not None and value.get("schema") != schema:
        found = value.get("schema")
        what = f"says that it is {found!r}" if found else "does not say what it is"
        raise ArtefactError(f"{path} {what}, this version reads {schema!r}: remove it, and `{made_by}` makes it again.")
    return value


def read_json_lines(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> list[dict[str, Any]]:
    """Return the records of a JSONL file. An incomplete last line (no newline) is skipped.

    Raises ArtefactError if the file is missing or another line is not valid JSON.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError as exc:
        raise missing_artefact_error(path, made_by) from exc
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # text after the last newline is an incomplete record
        try:
            records.append(json.loads(line))
        except ValueError as exc:
            raise ArtefactError(
                f"line {number} of {path} is torn: remove the file, and `{made_by}` makes it again."
            ) from exc
    return records


def write_json_lines(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> Path:
    """Write records as a JSONL file, atomically, replacing an existing file; return the path."""
    return write_atomic(path, "".join(to_json(record) + "\n" for record in records))
