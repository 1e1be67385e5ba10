"""Sentences for what pydantic rejects: one sentence with the dotted key, the limit and the nearest valid name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jumpahead.errors import did_you_mean
from jumpahead.study.tables import model_of

_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
"""For pydantic's error types of bounds: the words, and the key of the bound in the error's context."""
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text in quotes",
    "bool": "true or false",
    "model": "a table",
    "dict": "a table",
    "tuple": "a list",
    "list": "a list",
    "finite": "a finite number",
}
"""What a TOML value should be, by the first word of pydantic's error type."""


def study_sentence(error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Return one sentence for the first error in a study. raw: its tables as read; root: the model of the study."""
    found = first_error(error)
    loc, key = found["loc"], _dotted_key(found["loc"], raw)
    if found["type"] == "extra_forbidden":
        return f"there is no key '{key}'.{_key_hint(loc, root)}"
    if found["type"] == "missing":
        return f"'{key}' is missing{_field_description(loc, root)}."
    return value_sentence(found, key)


def table_sentence(error: ValidationError, key: str, names: Sequence[str]) -> str:
    """Return one sentence for the first error in the table at `key`, whose valid names are `names`."""
    found = first_error(error)
    name = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"there is no key '{key}.{name}'." + (did_you_mean(name, names) if names else " There are no options.")
    return value_sentence(found, f"{key}.{name}")


def first_error(error: ValidationError) -> Mapping[str, Any]:
    """Return pydantic's first error; an unknown key comes first, because it often causes the others."""
    return min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")


def value_sentence(found: Mapping[str, Any], key: str) -> str:
    """Return the sentence for one of pydantic's errors: `'train.batch' must be greater than 0, not -3.`"""
    value, context = toml_like(found["input"]), found.get("ctx", {})
    if found["type"] == "literal_error":
        return f"'{key}' must be {context['expected']}, not {value}."
    if found["type"] in _LIMITS:
        words, limit = _LIMITS[found["type"]]
        return f"'{key}' must be {words} {format_limit(context[limit])}, not {value}."
    if found["type"] in ("too_short", "string_too_short"):
        return f"'{key}' must not be empty."
    if found["type"] == "value_error":
        return f"'{key}': {context['error']}."
    type_name = _TYPE_NAMES.get(found["type"].partition("_")[0])
    return f"'{key}' must be {type_name}, not {value}." if type_name else f"'{key}': {found['msg']}."


def format_limit(limit: float) -> str:
    """Return a bound as it is shown: `1`, `0.5`, `1,000,000`, `10^12`."""
    if limit == int(limit) and limit >= 10_000:
        digits = str(int(limit))
        return f"10^{len(digits) - 1}" if limit >= 10**9 and set(digits[1:]) == {"0"} else f"{int(limit):,}"
    return f"{limit:g}"


def toml_like(value: Any) -> str:
    """Return a value as it may stand in the study, shortened to 58 characters."""
    text = value.isoformat() if hasattr(value, "isoformat") else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) < 60 else text[:57] + "…"


def _dotted_key(loc: Iterable[int | str], raw: Mapping[str, Any]) -> str:
    """Return the key that `--set` takes: `series.topk.k` for pydantic's ("series", 2, "k", 0)."""
    parts: list[int | str] = list(loc)
    if len(parts) > 1 and parts[0] == "series" and isinstance(parts[1], int):
        series = raw.get("series")
        one = series[parts[1]] if isinstance(series, list) and parts[1] < len(series) else series
        if isinstance(one, Mapping):
            parts[1] = str(one.get("name") or one.get("architecture") or parts[1])
    kept = [str(part) for i, part in enumerate(parts) if isinstance(part, str) or (i == 1 and parts[0] == "series")]
    return ".".join(kept)


def _key_hint(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """Return a hint for an unknown key: the table that has it, or the nearest key of the table it stands in."""
    tables = ["", *(f"{table}." for table in _keys_at((), root))]
    elsewhere = [f"{table}{loc[-1]}" for table in tables if loc[-1] in _keys_at((table[:-1],) if table else (), root)]
    return f" Did you mean '{elsewhere[0]}'?" if elsewhere else did_you_mean(str(loc[-1]), _keys_at(loc[:-1], root))


def _model_at(loc: Iterable[int | str], root: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model of the table at `loc`; None if there is no table."""
    model: Any = root
    for part in loc:
        if isinstance(part, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part not in fields:
            return None
        annotation = fields[part].annotation
        model = model_of(get_args(annotation)[0] if get_origin(annotation) in (list, tuple) else annotation)
        if model is None:
            return None
    return model


def _keys_at(loc: Iterable[int | str], root: type[BaseModel]) -> list[str]:
    """Return the keys of the table at `loc`."""
    model = _model_at(loc, root)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _field_description(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """Return the description of the field at `loc` in parentheses, or an empty string."""
    model = _model_at(loc[:-1], root)
    field = model.model_fields.get(str(loc[-1])) if model else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""
