"""The house's plan: what may import what (DESIGN.md section 4), read from the source, and what a process loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jumpahead"

# From the ground up. A file or folder of jumpahead/ may import its own floor and those below.
FLOORS = [
    {"errors", "shapes", "log", "nouns"},
    {"store"},
    {"world"},
    {"sae"},
    {"engine"},
    {"formats"},
    {"lm"},
    {"activations"},
    {"report"},
    {"evaluate", "features", "metrics", "health", "frontier"},
    {"train"},
    {"study"},  # only assembles what lies below; sweep takes a study
    {"sweep"},
    {"probe"},
    {"plan", "rehearsal", "starter", "terminal", "efficiency", "run", "train_on"},
    {"cli"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
STANDARD = sys.stdlib_module_names


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """`lm` for jumpahead/lm/text.py, `store` for jumpahead/store.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere but under TYPE_CHECKING: `jumpahead.lm.text`, `torch`."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "jumpahead":
                yield from (f"jumpahead.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)
        pending += ast.iter_child_nodes(node)


def rooms(path: Path) -> set[str]:
    """The files and folders of jumpahead/ that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("jumpahead.")}


def foreign(path: Path) -> set[str]:
    """The packages of others that a file imports."""
    return {name.split(".")[0] for name in imports(path)} - STANDARD - {"jumpahead", "__future__"}


def test_the_walk_sees_every_way_of_importing(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b\nfrom jumpahead import lm, sae as s\nfrom jumpahead.lm.text import d\n"
        "if TYPE_CHECKING:\n    import never\nelse:\n    import other\ndef f():\n    from torch import nn\n"
    )
    assert sorted(imports(path)) == ["a.b", "jumpahead.lm", "jumpahead.lm.text", "jumpahead.sae", "other", "torch"]
    assert rooms(path) == {"lm", "sae"}
    assert foreign(path) == {"a", "other", "torch"}


def test_every_file_has_a_floor():
    assert {room(path) for path in sources()} <= FLOOR.keys()


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path):
    above = {name for name in rooms(path) if FLOOR[name] > FLOOR[room(path)]}
    assert not above, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(above))} from above"
    beside = {name for name in rooms(path) if FLOOR[name] == FLOOR[room(path)]} - {room(path)}
    if room(path) not in {"frontier", "evaluate", "features"}:
        assert not beside


def test_an_sae_is_mathematics():
    for path in PACKAGE.glob("sae/*.py"):
        assert not rooms(path) & {"engine", "lm", "train", "world", "activations"}, path
        assert foreign(path) <= {"torch", "numpy", "pydantic"}, path


def test_the_engine_needs_little():
    for path in PACKAGE.rglob("engine/**/*.py"):
        assert rooms(path) <= {"engine", "sae", "store", "errors", "shapes", "log"}, path
        assert foreign(path) <= {"torch", "numpy", "numba", "llvmlite", "triton"}, path


@pytest.mark.parametrize("name", ["metrics.py", "health.py", "frontier", "report", "terminal.py"])
def test_numbers_and_pages_need_no_torch(name: str):
    found = [PACKAGE / name] if name.endswith(".py") else sorted((PACKAGE / name).rglob("*.py"))
    for path in found:
        assert not foreign(path) & {"torch", "transformers", "numba", "safetensors"}, path
        assert not rooms(path) & {"study", "sae", "engine", "lm", "train", "activations"}, path


def test_importing_loads_nothing_heavy():
    """What `jumpahead --help`, `ask`, `show`, `report` and the registries cost."""
    program = """
        import sys
        import jumpahead, jumpahead.cli
        light = set(sys.modules)
        assert not light & {"numpy", "pydantic", "rich", "jumpahead.study"}, light & {"numpy", "pydantic", "rich"}
        assert jumpahead.Frontier.__name__ == "Frontier"
        import jumpahead.store, jumpahead.study, jumpahead.plan, jumpahead.starter, jumpahead.metrics
        import jumpahead.terminal, jumpahead.report
        import jumpahead.sae, jumpahead.activations
        assert "jumprelu" in jumpahead.sae.names()
        assert "live" in jumpahead.activations.names()
        heavy = {"torch", "transformers", "plotly", "numba", "datasets", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_what_they_are_called():
    program = """
        import jumpahead
        assert jumpahead.__version__
        assert sorted(jumpahead.__all__) == ["Frontier", "LM", "SAE", "evaluate", "run", "splice", "train", "train_on"]
        for name in jumpahead.__all__:
            assert name in dir(jumpahead)
            assert callable(getattr(jumpahead, name)), name
        from jumpahead import train
        from jumpahead.train import train as function
        assert callable(train) and train.train is function
        try:
            jumpahead.nothing
        except AttributeError as error:
            assert "nothing" in str(error)
        else:
            raise AssertionError
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
