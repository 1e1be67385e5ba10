"""Say that a frontier is of another study than its run now has: the study was changed and did not run to its end."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from jumpahead.formatting import sanitize

SHOWN = 3
"""Differences that the sentence lists."""


def other_study_note(measured: str, current: str) -> str:
    """Return a sentence if two studies, as TOML, differ in more than form; else an empty string.

    measured: the study that the numbers are of. current: the one that the run was last started with.
    """
    try:
        tables = tomllib.loads(measured), tomllib.loads(current)
    except (tomllib.TOMLDecodeError, RecursionError):
        return "These numbers are of another study than the one in study.toml, which cannot be read."
    differences = list(_differences(*tables))
    if not differences:
        return ""
    more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return (
        f"These numbers are of an earlier study of this run, with {', '.join(differences[:SHOWN])}{more}. "
        "`jumpahead run` makes those of the present one."
    )


def _differences(measured: Any, current: Any, key: str = "") -> Iterator[str]:
    """Yield a clause for every key whose value differs: `train.tokens = 1000000 (now 20480)`."""
    if isinstance(measured, Mapping) and isinstance(current, Mapping):
        for name in sorted({*measured, *current}):
            yield from _differences(measured.get(name), current.get(name), f"{key}.{name}" if key else name)
    elif measured != current and any(isinstance(value, Mapping | list) for value in (measured, current)):
        yield f"another {key}"
    elif measured != current:
        yield sanitize(f"{key} = {measured} (now {current})")
