"""What the README prints can be typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from jumpahead.cli import app

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "runs/demo"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    jumpahead (.+?)(?:  +#.*)?$", README, re.MULTILINE)


def test_every_command_and_option_exists() -> None:
    group = typer.main.get_command(app)
    assert len(COMMANDS) >= 8
    for line in COMMANDS:
        verb, *words = line.split()
        command = group.commands[verb]  # type: ignore[attr-defined]
        known = {name for parameter in command.params for name in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, line


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\S+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def python_blocks() -> list[Any]:
    """Return the Python blocks of README.md and docs/*.md, one parameter each, named by file and number.

    A block that cannot be run as it stands opens with "```python no-run" and is left out.
    """
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S), 1)
    ]


def test_the_readme_shows_python() -> None:
    assert any(block.id.startswith("README.md") for block in python_blocks())


@pytest.mark.parametrize("block", python_blocks())
def test_a_python_block_runs(block: str, tmp_path: Path) -> None:
    """Each runs in a process of its own and an empty folder, which holds the demo's run if the block reads it."""
    if "runs/demo" in block:
        if not (DEMO / "frontier.json").exists():
            assert os.environ.get("DEMO") != "required", "runs/demo has no frontier.json: run `make demo` first"
            pytest.skip("there is no runs/demo: `make demo` trains it, `make test-readme` runs this block on it")
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/demo").symlink_to(DEMO)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "print(" in block:
        assert done.stdout.strip()
