"""JSON files of other libraries, read as untrusted data: bounded in size, each value checked when it is taken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, final

from jumpahead.errors import ArtefactError

MAX_BYTES = 16 * 2**20
"""Largest configuration file that is read."""
_REQUIRED: Any = object()


@final
class ConfigFile:
    """A JSON object in a file. Every method that takes a value raises ArtefactError, naming file and key.

    `default` is returned where the key is missing or null; without it the key is required.
    """

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path, self.values, self._prefix = path, values, prefix

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Return the JSON object in a file. Raises ArtefactError if it is missing, too large or not a JSON object."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ArtefactError(
                    f"{path} is larger than {MAX_BYTES >> 20} MiB: it is not the configuration of an SAE."
                )
            values = json.loads(path.read_bytes())
        except FileNotFoundError as exc:
            raise ArtefactError(f"{path} does not exist: the SAE's configuration belongs beside its weights.") from exc
        except (ValueError, RecursionError, IsADirectoryError) as exc:
            raise ArtefactError(f"{path} is torn or is not JSON: get it again from where the SAE is from.") from exc
        if not isinstance(values, dict):
            raise ArtefactError(f"{path} holds a {type(values).__name__}, not the configuration of an SAE.")
        return cls(path, values)

    def error(self, key: str, problem: str) -> ArtefactError:
        """Return the error for a key: the file, the key and what is wrong."""
        return ArtefactError(f"{self.path}: '{self._prefix}{key}' {problem}.")

    def has(self, key: str) -> bool:
        """Return True if the key is there and not null."""
        return self.values.get(key) is not None

    def _take(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        """Return the value of a key if it has one of the types, or the default."""
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, "is missing")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(key, f"must be {what}, not {_shown(value)}")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a string."""
        return self._take(key, default, (str,), "text")

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a bool."""
        return self._take(key, default, (bool,), "true or false")

    def count(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a whole number that is at least 1."""
        value = self._take(key, default, (int, float), "a whole number")
        if value is not None and value is not default and (value != value or value < 1 or value % 1):
            raise self.error(key, f"must be a whole number from 1, not {_shown(value)}")
        return int(value) if isinstance(value, float) and math.isfinite(value) else value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a finite number."""
        value = self._take(key, default, (int, float), "a number")
        if isinstance(value, int | float) and not math.isfinite(value):
            raise self.error(key, f"must be a finite number, not {_shown(value)}")
        return value

    def table(self, key: str, default: Any = _REQUIRED) -> ConfigFile:
        """Return an object within the object."""
        value = self._take(key, default, (dict,), "an object")
        return ConfigFile(self.path, value, f"{self._prefix}{key}.")

    def choice(self, key: str, choices: tuple[str, ...], default: Any = _REQUIRED) -> str:
        """Return a string that is one of `choices`."""
        value = self.text(key, default)
        if value not in choices:
            raise self.error(key, f"is {_shown(value)}, which cannot be read: only {', '.join(choices)} can")
        return value

    def refuse(self, key: str, why: str) -> None:
        """Raise ArtefactError if the value of a key is anything but false, null, zero or empty."""
        if self.values.get(key):
            raise self.error(key, f"is {_shown(self.values[key])}: {why}")

    def must_equal(self, key: str, wanted: int, what: str) -> None:
        """Raise ArtefactError if a whole number is given and differs from what the weights say."""
        if (found := self.count(key, wanted)) != wanted:
            raise self.error(key, f"is {found}, but {what} {wanted}")


def _shown(value: Any) -> str:
    """Return a value as it is shown in errors, at most 60 characters."""
    text = ascii(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
