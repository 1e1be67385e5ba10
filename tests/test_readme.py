"""What README, CONTRIBUTING and docs/ print can be typed, and what they link to exists."""

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
from jumpahead.frontier import build_frontier
from tests.frontiers import example, write
from tests.test_imports import GROUPS

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "runs/demo"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

pages = pytest.mark.parametrize("page", TEXTS)


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_the_architecture_is_one_page() -> None:
    assert len(TEXTS["docs/ARCHITECTURE.md"].splitlines()) <= 120


def commands(page: str) -> list[str]:
    """Return the `jumpahead …` commands of a page's indented blocks, without comments."""
    return re.findall(r"^    jumpahead ([a-z].+?)(?:  +#.*)?$", TEXTS[page], re.MULTILINE)


def test_the_readme_shows_how_to_begin() -> None:
    assert {command.split()[0] for command in commands("README.md")} >= {"run", "ask", "init", "plan"}


@pages
def test_every_command_and_option_exists(page: str) -> None:
    group = typer.main.get_command(app)
    for line in commands(page):
        verb, *words = line.split()
        command = group.commands[verb]  # type: ignore[attr-defined]
        known = {name for parameter in command.params for name in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, line


@pages
def test_every_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\S+)", TEXTS[page], re.MULTILINE)
    if page == "README.md":
        assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT), f"{target} is outside of the repository"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def python_blocks() -> list[Any]:
    """Return the Python blocks of all pages, one parameter each, named by file and number.

    A block that cannot be run as it stands opens with "```python no-run" and is left out.
    """
    return [
        pytest.param(block, id=f"{page}-{number}")
        for page, text in TEXTS.items()
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S), 1)
    ]


def test_the_readme_shows_python() -> None:
    assert any(str(block.id).startswith("README.md") for block in python_blocks())


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


def test_the_import_order_is_the_one_that_is_checked() -> None:
    """What docs/ARCHITECTURE.md says of the groups and their order is what tests/test_imports.py holds."""
    paragraph = re.search(r"\n\n(errors, .*? → cli)\n", TEXTS["docs/ARCHITECTURE.md"], re.DOTALL)
    assert paragraph
    groups = [set(group.replace("\n", " ").strip().split(", ")) for group in paragraph[1].split("→")]
    assert groups == GROUPS


def test_samples_of_the_pages_are_made_again_from_a_run(tmp_path: Path) -> None:
    made = example()
    folder = write(tmp_path / "run", made, build_frontier(made.evaluations, **made.keywords))
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/reading-the-page.md"):
        (tmp_path / name).write_text(TEXTS[name], encoding="utf-8")
    command = [sys.executable, "-m", "tools.refresh_samples", folder, "--root", tmp_path, "--no-figure"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    guide = (tmp_path / "docs/reading-the-page.md").read_text(encoding="utf-8")
    assert "Run example, LM tiny." in guide
    assert guide.partition("```")[0] == TEXTS["docs/reading-the-page.md"].partition("```")[0]
    assert guide.rpartition("```")[2] == TEXTS["docs/reading-the-page.md"].rpartition("```")[2]
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    said = re.search(r"--delta-loss 0\.2\n…\n(Recommended: .*?)```", readme, re.DOTALL)
    assert said
    assert said[1] in guide
