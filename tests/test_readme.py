"""What the README prints can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from jumpahead.cli import app

ROOT = Path(__file__).parent.parent
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


def test_the_python_block_runs() -> None:
    if not (ROOT / "runs/demo/frontier.json").exists():
        pytest.skip("there is no runs/demo: `make demo` makes it")
    (block,) = (
        one
        for one in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "Frontier.load" in one and "splice" in one
    )
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "features are active per token" in done.stdout
