"""frontier.json from a stranger: every field deleted or replaced; show, ask and report say a sentence or work."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jumpahead import api
from jumpahead.cli import app
from jumpahead.errors import JumpaheadError
from jumpahead.storage.json_files import read_json, write_json
from tests.faults.small_run import some

DELETED = object()
VALUES = [DELETED, None, -1, "x", [], {}, 1e300, "\x1b[31m\u202e"]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every field and of the first item of every list."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*place, key)
            yield from places(item, (*place, key))
    elif isinstance(value, list) and value:
        yield (*place, 0)
        yield from places(value[0], (*place, 0))


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy in which the value at a place is deleted or replaced."""
    data = copy.deepcopy(data)
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    if value is DELETED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return data


@pytest.fixture(scope="module")
def shown(finished: Path, tmp_path_factory) -> Path:
    """A copy of the run's frontier alone, beside its manifest and study."""
    folder = tmp_path_factory.mktemp("shown")
    for name in ("manifest.json", "study.toml", "frontier.json"):
        shutil.copy(finished / name, folder / name)
    return folder


def test_a_changed_field_is_a_sentence_or_is_shown(shown: Path):
    data = read_json(shown / "frontier.json")
    cases = [(place, value) for place in places(data) for value in VALUES]
    assert len(cases) > 1000
    refused = 0
    for place, value in some(cases, 40, complete=1200):
        write_json(shown / "frontier.json", changed(data, place, value), indent=None)
        for arguments in (["show", shown], ["ask", shown, "--fvu", "0.5"], ["report", shown]):
            done = CliRunner().invoke(app, [str(argument) for argument in arguments])
            if not isinstance(done.exception, SystemExit | None):
                pytest.fail(f"{arguments[0]}, {place} = {value!r}: {done.exception!r}")
            assert not {"\x1b", "\u202e"} & set(done.output)
            refused += done.exit_code == 1
    write_json(shown / "frontier.json", data, indent=None)
    assert refused > 5


def test_one_changed_digit_is_refused_by_every_verb(shown: Path):
    content = (shown / "frontier.json").read_bytes()
    text = json.loads(content)
    (shown / "frontier.json").write_bytes(content.replace(b'"level":0.95', b'"level":0.85', 1))
    assert text["interval"]["level"] == 0.95
    for verb in (api.show, lambda run: api.ask(run, fvu=0.5), api.report):
        with pytest.raises(JumpaheadError, match=r"frontier\.json is damaged: it does not match its checksum"):
            verb(shown)
    (shown / "frontier.json").write_bytes(content)
