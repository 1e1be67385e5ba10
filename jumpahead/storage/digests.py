"""SHA-256 digests of bytes, JSON and files, which identify the inputs that an artefact was made from."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jumpahead.errors import ArtefactError
from jumpahead.storage.artefacts import RUN_COMMAND, missing_artefact_error
from jumpahead.storage.json_files import json_default, read_json
from jumpahead.storage.plain_files import open_plain


def digest_bytes(content: bytes | str) -> str:
    """Return the SHA-256 of bytes, or of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a value as compact JSON with sorted keys. Raises ValueError if a number is not finite."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=json_default
    )
    return digest_bytes(text)


def digest_file(path: str | os.PathLike[str], *, made_by: str = RUN_COMMAND) -> str:
    """Return the SHA-256 of a file. Raises ArtefactError, which names the command `made_by`, if the file is missing."""
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as exc:
        raise missing_artefact_error(Path(path), made_by) from exc


def has_inputs(path: str | os.PathLike[str], inputs: str) -> bool:
    """Return True if the "inputs" of a JSON file are this digest; False if the file is missing or is not valid JSON."""
    try:
        return read_json(path).get("inputs") == inputs
    except ArtefactError:
        return False
