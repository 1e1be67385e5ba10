"""Text source classes: one module each, which defines `SOURCE`. Adding a source class takes one new module here.

`SOURCES` lists the source classes of this and other packages without importing them (registry.py). If no source class
recognises a `text.source`, it is read as UTF-8 text files. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jumpahead.errors import StudyError
from jumpahead.registry import Registry
from jumpahead.text.config import TextConfig
from jumpahead.text.files import find_files
from jumpahead.text.source import Source

SOURCES = Registry("kind of text source", __name__, "SOURCE", "jumpahead.text_sources")


def source_of(config: TextConfig, folder: Path | None = None) -> Source:
    """Return the text source for `text.source`, an instance of the source class that recognises it.

    folder: the run's folder, where standard input is stored. Raises StudyError if several source classes recognise
    `text.source`, or if a source class of another package fails.
    """
    kinds, load_error = _load_kinds()
    files: dict[str, Path] = {}
    kind = _recognising_kind(kinds, config.source, lambda kind: kind.recognises(config.source))
    if kind is None and (files := find_files(config)):
        kind = _recognising_kind(kinds, config.source, lambda kind: kind.recognises_files(files))
    if kind is None and not files and load_error is not None:
        raise load_error  # the kind that cannot be loaded may be the one that is meant
    return (kind or kinds["files"])(config, files, folder)


def _load_kinds() -> tuple[dict[str, type[Source]], StudyError | None]:
    """Return the source classes by name, and the error of a source class that failed to load (None if all loaded).

    A broken package does not prevent the use of other source classes.
    """
    kinds: dict[str, type[Source]] = {}
    error: StudyError | None = None
    for name in SOURCES.names():
        try:
            kind = SOURCES.get(name)
        except StudyError as exc:
            error = exc
            continue
        if isinstance(kind, type) and issubclass(kind, Source):
            kinds[name] = kind
        else:
            error = StudyError(f"The kind of text source '{name}' does not extend jumpahead.text.source.Source.")
    return kinds, error


def _recognising_kind(
    kinds: dict[str, type[Source]], source: str, recognises: Callable[[type[Source]], bool]
) -> type[Source] | None:
    """Return the only source class for which `recognises` is True, or None if there is no such class.

    source: value of `text.source`, for error messages. Raises StudyError if several classes match.
    """
    found: list[str] = []
    for name, kind in kinds.items():
        try:
            if recognises(kind):
                found.append(name)
        except Exception as exc:  # of a class in another package
            raise StudyError(
                f"The kind of text source '{name}' failed on text.source = '{source}' ({type(exc).__name__}: {exc}): "
                "correct the package that defines it, or uninstall it."
            ) from exc
    if len(found) > 1:
        raise StudyError(
            f"text.source = '{source}' is recognised by several kinds of text source, {' and '.join(found)}: uninstall "
            "the packages of all but one."
        )
    return kinds[found[0]] if found else None
