"""docs/INTEROP.md, which `make test-interop` writes with the other libraries, has a row for every pair there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumpahead.formats import FORMATS
from jumpahead.sae.architectures import ARCHITECTURES

PAGE = (Path(__file__).parents[2] / "docs" / "INTEROP.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in FORMATS.names() if name != "jumpahead"])
def test_every_format_and_architecture_has_a_row(name):
    exports, reads = PAGE.split("## The library saves")
    for architecture in ARCHITECTURES.names():
        assert f"| {FORMATS.get(name).title} | {architecture} | " in exports
    if not name.startswith(("gemma", "qwen")):
        assert f"| {FORMATS.get(name).title} | " in reads


def test_no_pair_differs():
    rows = [line.split("|")[3].strip() for line in PAGE.splitlines() if line.startswith("| ") and "Result" not in line]
    assert len(rows) > 70
    assert set(rows) == {"same", "refused"}
