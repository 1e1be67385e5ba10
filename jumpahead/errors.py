"""The exception hierarchy of the package. The command line prints the message without traceback and exits non-zero.

    JumpaheadError
    ├─ StudyError      the study is invalid or impossible           message: file, key, nearest valid name
    ├─ SiteError       the model has no such site                   message: the closest sites
    ├─ ArtefactError   a file is missing, torn, stale or unknown    message: path, command that writes the file
    │  └─ DamagedError a file's bytes are not those that were written; `run` sets it aside and makes it again
    ├─ DataError       text or activations cannot be used           message: document, batch, value
    └─ DivergedError   the loss or a gradient is not finite         message: SAE, step, last valid checkpoint

`lm/`, `text/` and `storage/` convert exceptions of other libraries to these classes with `raise … from exc`.
`assert` statements check for programming errors in the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class JumpaheadError(Exception):
    """Base class of errors that users can cause and fix; `str(error)` states the cause and what to do."""


class StudyError(JumpaheadError):
    """The study file or a command-line option is invalid, or cannot be carried out."""


class SiteError(JumpaheadError):
    """The language model has no activation site of this name."""


class ArtefactError(JumpaheadError):
    """A file is missing, incomplete, out of date, or of the wrong type or version."""


class DamagedError(ArtefactError):
    """The bytes of a file are not those that were written."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        """Describe the damage. what: follows the path in the sentence. remedy: what to do."""
        super().__init__(f"{path} {what}: {remedy}.")
        self.path, self.what = path, what


class DataError(JumpaheadError):
    """Text or activations cannot be used."""


class DivergedError(JumpaheadError):
    """The loss or a gradient is not finite."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a suggestion to append to an error message about the unknown name `word`, with a leading space.

    ` Did you mean 'x'?` if one of `names` is similar to `word`, else ` Valid names: a, b, c.`
    """
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" Valid names: {', '.join(names)}."
