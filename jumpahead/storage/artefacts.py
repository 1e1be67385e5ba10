"""The error for an artefact that does not exist, which names the command that makes it."""

from __future__ import annotations

from pathlib import Path

from jumpahead.errors import ArtefactError

RUN_COMMAND = "jumpahead run"
"""The command that makes most artefacts."""


def missing_artefact_error(path: Path, made_by: str) -> ArtefactError:
    """Return the error for an artefact that does not exist. made_by: the command that writes the artefact."""
    return ArtefactError(f"{path} does not exist: `{made_by}` makes it.")
