"""The exceptions of the package, as one tree. The command line prints the sentence, no traceback, and exits non-zero.

    JumpaheadError
    ├─ StudyError      the study asks for something impossible      names file, key, nearest valid name
    ├─ SiteError       the model has no such site                    lists the closest ones
    ├─ ArtefactError   a file is missing, torn, of another kind, stale  names the path and the verb that makes it
    ├─ DataError       text or activations unusable                  names the document, the batch, the value
    └─ DivergedError   loss or gradient not finite                   names SAE, step, last good checkpoint

Third-party exceptions are translated where they arise (`lm/`, `formats/`, `storage/`) with `raise … from exc`.
`assert` is for mistakes of the package itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JumpaheadError(Exception):
    """Any error that a user can cause; `str(error)` is a sentence that names the cause and what to do."""


class StudyError(JumpaheadError):
    """The study asks for something impossible."""


class SiteError(JumpaheadError):
    """The model has no such site."""


class ArtefactError(JumpaheadError):
    """A file is missing, torn, of another kind, or stale."""


class DataError(JumpaheadError):
    """Text or activations cannot be used."""


class DivergedError(JumpaheadError):
    """The loss or a gradient is not finite."""


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, or ` Valid names: a, b, c.` if no name is near, to append to a sentence."""
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" Valid names: {', '.join(names)}."
