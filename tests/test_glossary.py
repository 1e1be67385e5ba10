"""One word, one meaning: public classes have names of their own, and the code that documents name exists."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jumpahead"
GLOSSARY = (ROOT / "docs/GLOSSARY.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def entries() -> list[tuple[str, str, str]]:
    """Return word, meaning and code of every row of the glossary's tables."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in GLOSSARY.replace("|S|", "S").split("\n")]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3 and row[0] not in ("Word", "---")]


def find_module(parts: list[str]) -> tuple[Path, list[str]] | None:
    """Return the module that a dotted name below jumpahead begins with, and the rest of the name."""
    for count in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:count])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file, parts[count:]
    return None


def defines(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """Return the statement that defines a name: a class, a function, a variable, or an import."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        if isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names += re.findall(r"self\.(\w+)(?: = |: |, self)", ast.unparse(node))
        if name in names:
            return node
    return None


def exists(dotted: str) -> bool:
    """Return whether `module.Name` or `module.Class.member` is defined below jumpahead; a module alone is too."""
    found = find_module(dotted.split("."))
    if found is None:
        return False
    path, rest = found
    body = parse(path).body
    for name in rest:
        node = defines(body, name)
        if node is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def test_no_two_public_classes_share_a_name() -> None:
    files = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert not {name: found for name, found in files.items() if len(found) > 1}


def test_no_word_is_explained_twice() -> None:
    words = [word for word, _, _ in entries()]
    assert len(words) > 60
    assert len(words) == len(set(words))
    assert all(meaning for _, meaning, _ in entries())


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry[0])
def test_the_code_of_an_entry_exists(entry: tuple[str, str, str]) -> None:
    names = re.findall(r"`([^`]+)`", entry[2])
    assert names
    assert [name for name in names if not exists(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_that_a_page_links_to_exists(page: Path) -> None:
    """A link such as [`engine.step.run_step`](../jumpahead/engine/step.py): the file defines the name."""
    for name, target in re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve()
        assert file.is_file(), target
        if file.is_relative_to(PACKAGE) and "." in name and not name.endswith(".py"):
            name = name.removeprefix("jumpahead.")
            found = find_module(name.split("."))
            assert found, name
            assert found[0] == file, f"{name} is not in {target}"
            assert exists(name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A path such as `jumpahead/sae/recipe.py` in backticks."""
    folders = "jumpahead|tests|benchmarks|studies|docs|tools|examples"
    paths = re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|toml|md|ipynb|js|jinja))`", page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("name", "expected"), [
    ("engine.step.run_step", True), ("engine.step.no_step", False), ("no.module", False), ("engine.step", True),
    ("sae.recipe.Recipe.bandwidth", True), ("sae.recipe.Recipe.band", False), ("frontier.Frontier", True),
    ("activations.stream.Stream.batch", True), ("activations.stream.Stream.batcher", False),
])  # fmt: skip
def test_names_are_looked_up(name: str, expected: bool) -> None:
    assert exists(name) is expected


def test_the_walk_of_a_batch_ends_where_theta_gets_its_gradient() -> None:
    """The comment that docs/ARCHITECTURE.md sends its reader to is there, at the top of the sum."""
    quoted = re.search(r"below the comment “([^”]+)”", (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert quoted
    step = (PACKAGE / "engine/step.py").read_text(encoding="utf-8")
    assert re.search(rf"{quoted[1]}.*\n.*vector_gradients = ", step)
