"""The errors for an artefact that is missing or damaged, which name the command that makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from jumpahead.errors import ArtefactError, DamagedError, JumpaheadError

RUN_COMMAND = "jumpahead run"
"""The command that makes most artefacts."""


def missing_artefact_error(path: Path, made_by: str) -> ArtefactError:
    """Return the error for an artefact that does not exist. made_by: the command that writes the artefact."""
    return ArtefactError(f"{path} does not exist: `{made_by}` makes it.")


def damaged_artefact_error(path: Path, what: str, made_by: str) -> DamagedError:
    """Return the error for a damaged artefact. what: follows the path. made_by: the command that writes it."""
    return DamagedError(path, what, f"remove it, and `{made_by}` makes it again")


@contextlib.contextmanager
def translate_foreign_content(path: Path, made_by: str = RUN_COMMAND) -> Iterator[None]:
    """Raise DamagedError if showing the content of a JSON file fails in this context.

    A file from elsewhere may have a valid checksum and any content: fields of another type, lists of another length.
    """
    try:
        yield
    except (JumpaheadError, OSError, MemoryError):
        raise
    except Exception as exc:
        raise damaged_artefact_error(path, f"is not what this version writes ({type(exc).__name__})", made_by) from exc
