"""Kinds of text source: one file each, which defines `SOURCE`. A new one is one new file here and nothing else.

`SOURCES` lists them without importing them, with those of other packages (registry.py). At most one kind recognises a
`text.source`; what none recognises is read as text files. No torch here.
"""

from __future__ import annotations

from pathlib import Path

from jumpahead.registry import Registry
from jumpahead.text.config import TextConfig
from jumpahead.text.source import Source, found_files

SOURCES = Registry("kind of text source", __name__, "SOURCE", "jumpahead.text_sources")


def source_of(config: TextConfig, folder: Path | None = None) -> Source:
    """Return the source that `text.source` means.

    folder: the run's, where text that can be read only once is kept.
    """
    kinds: dict[str, type[Source]] = {name: SOURCES.get(name) for name in SOURCES.names()}
    files: dict[str, Path] = {}
    found = [kind for kind in kinds.values() if kind.recognises(config.source, files)]
    if not found:
        files = found_files(config)
        found = [kind for kind in kinds.values() if kind.recognises(config.source, files)] or [kinds["files"]]
    assert len(found) == 1, f"{found} all recognise text.source = '{config.source}'"
    return found[0](config, files, folder)
