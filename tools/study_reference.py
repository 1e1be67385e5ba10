"""Write docs/study-reference.md and docs/study.schema.json from the study's models and the registries.

    python -m tools.study_reference

The schema is JSON Schema: editors with a TOML plug-in complete and check studies by it. Options that other packages
register are not in it, but allowed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jumpahead.activations.origins import ORIGINS
from jumpahead.registry import Registry
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Recipe
from jumpahead.study.messages import format_limit
from jumpahead.study.schema import Study
from jumpahead.study.tables import table_model

DOCS = Path(__file__).resolve().parents[1] / "docs"
REFERENCE, SCHEMA = DOCS / "study-reference.md", DOCS / "study.schema.json"

HEAD = """\
<!-- Written by `python -m tools.study_reference` from the field docstrings. Do not edit. -->

# Study reference

A study is one TOML file. Every key can be overridden on the command line: `--set train.tokens=2_000_000`,
`--set series.topk.k=[16,32]`; an empty value, `--set train.lr=`, removes the key. If a key takes a list, one value will
do. `jumpahead init` writes a commented study, and a run saves its resolved study, with every default filled in.

[study.schema.json](study.schema.json) is the JSON Schema: in editors with a TOML plug-in, begin a study with
`#:schema path/to/study.schema.json` to complete and check its keys.
"""


# ---------------------------------------------------------------------------------------------- JSON Schema


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study, with the options of every architecture and origin of this package."""
    schema = copy.deepcopy(Study.model_json_schema(by_alias=True))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "jumpahead study"
    schema["required"].remove("name")  # the file's name by default
    tables = schema["$defs"]
    _add_options(tables["Series"], "architecture", ARCHITECTURES)
    _add_options(tables["ActivationsConfig"], "origin", ORIGINS)
    tables["Series"]["properties"]["recipe"] = {**_recipe_schema(), **_described(tables["Series"], "recipe")}
    _walk(schema)
    return schema


def _add_options(table: dict[str, Any], key: str, registry: Registry) -> None:
    """Make the schema of `options` depend on the member of a registry that `key` names."""
    table["properties"][key]["examples"] = [name for name, _ in _members(registry)]
    table["allOf"] = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": {"options": {**_options_schema(member), **_described(table, "options")}}},
        }
        for name, member in _members(registry)
    ]


def _members(registry: Registry) -> Iterator[tuple[str, type[Any]]]:
    """Yield the names and classes of a registry that belong to this package."""
    for name in registry.names():
        member = registry.get(name)
        if member.__module__.startswith("jumpahead."):
            yield name, member


def _options_schema(member: type[Any]) -> dict[str, Any]:
    """Return the schema of the options of an architecture or origin."""
    return table_model(member.Options).model_json_schema()


def _recipe_schema() -> dict[str, Any]:
    """Return the schema of a series' `recipe`, of which any part may be given."""
    schema = table_model(Recipe).model_json_schema()
    del schema["required"]
    for field in schema["properties"].values():
        field.pop("default", None)
    return schema


def _described(table: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the description of a key, to replace that of its model."""
    return {"description": table["properties"][key]["description"]}


def _walk(node: Any) -> None:
    """Adapt a schema to TOML, in place: no nulls, one value for a list, no generated titles, one-line descriptions."""
    if isinstance(node, list):
        for item in node:
            _walk(item)
        return
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        if name != "default":
            _walk(value)
    if isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split()).replace("None: ", "if left out: ")
    if node.get("title") != "jumpahead study" and isinstance(node.get("title"), str):
        del node["title"]
    if node.get("default", ...) in (None, [], {}, ""):
        del node["default"]
    alternatives = [one for one in node.get("anyOf", ()) if one != {"type": "null"}]
    if len(alternatives) == 1:
        del node["anyOf"]
        node.update(alternatives[0])
    if node.get("type") == "array":
        array = {key: node.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in node}
        node["anyOf"] = [array["items"], array]


# ---------------------------------------------------------------------------------------------- Markdown


def reference() -> str:
    """Return the study reference as Markdown: every table and key with type, bounds, default and meaning."""
    schema = json_schema()
    top = {name: one for name, one in schema["properties"].items() if "$ref" not in _target(one)}
    parts = [HEAD, _table(top, schema.get("required", []))]
    for name, field in schema["properties"].items():
        if (ref := _target(field).get("$ref")) is None:
            continue
        model = schema["$defs"][ref.rpartition("/")[2]]
        parts.append(f"## `{'[[series]]' if name == 'series' else f'[{name}]'}`\n\n{model['description']}\n")
        parts.append(_table(model["properties"], model.get("required", [])))
        if name == "activations":
            parts += _option_sections("origin", ORIGINS)
        if name == "series":
            parts += _option_sections("architecture", ARCHITECTURES)
            parts.append(
                "### `recipe`\n\nHyper-parameters of a series. Those that are not given follow `train.recipe`.\n"
            )
            parts.append(_table(model["properties"]["recipe"]["properties"], []))
    return "\n".join(parts)


def _target(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field, or of its items if it is a list of tables."""
    alternatives = field.get("anyOf") or field.get("allOf") or [field]
    return alternatives[0]


def _option_sections(key: str, registry: Registry) -> Iterator[str]:
    """Yield a section for every architecture or origin: its settings and its options."""
    for name, member in _members(registry):
        title = getattr(member, "title", "")
        yield f'### `{key} = "{name}"`\n'
        if title:
            settings = " or ".join(f"`{setting}`" for setting in member.settings)
            yield f"{title}. Sparsity settings: {settings}.\n"
        schema = _options_schema(member)
        _walk(schema)
        yield _table(schema["properties"], []) if schema.get("properties") else "No options.\n"


def _table(fields: dict[str, Any], required: list[str]) -> str:
    """Return the Markdown table of some keys."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = "required" if name in required else f"`{_toml(field['default'])}`" if "default" in field else ""
        cells = [f"`{name}`", _type(field), default, field.get("description", "")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Return a default as TOML."""
    return json.dumps(value, ensure_ascii=False)


def _type(field: dict[str, Any]) -> str:
    """Return the type and the bounds of a key in words."""
    if "enum" in field:
        return ", ".join(f"`{_toml(value)}`" for value in field["enum"])
    if "anyOf" in field and field["anyOf"][-1].get("type") == "array":
        return f"list of: {_type(field['anyOf'][0])}"
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {format_limit(field[bound])}" for bound, sign in bounds.items() if bound in field]
    return " ".join([names.get(field.get("type", ""), "any"), ", ".join(limits)]).strip()


def main() -> None:
    """Write both files and print their paths."""
    REFERENCE.write_text(reference(), encoding="utf-8")
    SCHEMA.write_text(json.dumps(json_schema(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(f"{REFERENCE}\n{SCHEMA}")


if __name__ == "__main__":
    main()
