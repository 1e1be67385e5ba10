"""Where text comes from: one kind of source, one file.

Every file in this folder but `base.py` is a kind of source and defines `SOURCE`; a new one is one new file, nothing
else is edited. At most one kind recognises a `text.source`; what none does is text in files. No torch here.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from jumpahead.lm.config import TextConfig
from jumpahead.lm.sources.base import Source, found_files


def names() -> list[str]:
    """Every kind of source: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def source_of(config: TextConfig, folder: Path | None = None) -> Source:
    """What `text.source` means. `folder` is the run's, where what can be read only once is kept."""
    kinds: dict[str, type[Source]] = {name: importlib.import_module(f"{__name__}.{name}").SOURCE for name in names()}
    files: dict[str, Path] = {}
    found = [kind for kind in kinds.values() if kind.recognises(config.source, files)]
    if not found:
        files = found_files(config)
        found = [kind for kind in kinds.values() if kind.recognises(config.source, files)] or [kinds["files"]]
    assert len(found) == 1, f"{found} all recognise text.source = '{config.source}'"
    return found[0](config, files, folder)
