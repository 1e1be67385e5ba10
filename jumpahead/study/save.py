"""The resolved study as TOML, which is saved with its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tomli_w

from jumpahead.study.schema import Study


def to_toml(study: Study) -> str:
    """Return the resolved study as TOML, a table per section; `load` of it gives the same study."""
    tables = _without_empty(study.model_dump(by_alias=True))
    tables["series"] = tables.pop("series")  # the curves stand last
    text = tomli_w.dumps(tables)
    # One line per array. Strings are written with escaped line breaks, so that these are breaks between elements.
    text = re.sub(r",\n\s*", ", ", re.sub(r",\n\s*\]", "]", re.sub(r"\[\n\s*", "[", text)))
    return f"# The resolved study: every default is filled in.\n\n{text}"


def _without_empty(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table without keys that are None or empty, which are the defaults of such keys; so for its tables."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            value = _without_empty(value)
        elif isinstance(value, tuple) and value and all(isinstance(item, Mapping) for item in value):
            value = tuple(_without_empty(item) for item in value)
        if value is not None and value != () and value != {}:
            kept[key] = value
    return kept
