"""The study reference and the JSON Schema in docs/ are those of the code."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from jumpahead.activations.origins import ORIGINS
from jumpahead.sae.architectures import ARCHITECTURES
from tools import study_reference

STUDIES = sorted((Path(__file__).resolve().parents[2] / "studies").glob("*.toml"))


def test_the_committed_files_are_what_the_generator_writes():
    message = "run `python -m tools.study_reference`"
    assert study_reference.REFERENCE.read_text(encoding="utf-8") == study_reference.reference(), message
    assert json.loads(study_reference.SCHEMA.read_text(encoding="utf-8")) == study_reference.json_schema(), message


def test_every_architecture_and_origin_is_in_the_reference():
    text = study_reference.reference()
    for key, registry in (("architecture", ARCHITECTURES), ("origin", ORIGINS)):
        for name in registry.names():
            if registry.get(name).__module__.startswith("jumpahead."):
                assert f'### `{key} = "{name}"`' in text


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_schema_knows_every_key_of_the_studies(path: Path):
    schema = study_reference.json_schema()
    for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
        field = schema["properties"][name]
        for one in table if isinstance(table, list) else [table]:
            if isinstance(one, dict):
                ref = (field.get("anyOf") or [field])[0]["$ref"]
                assert one.keys() <= schema["$defs"][ref.rpartition("/")[2]]["properties"].keys()
