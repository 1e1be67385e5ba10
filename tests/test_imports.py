"""The package's import order, read from the source, and what a process loads (docs/decisions/0002)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jumpahead"

# A module of jumpahead/ may import modules of its own group and of the groups before it.
GROUPS = [
    {"errors", "formatting", "progress", "registry", "versions"},
    {"storage"},
    {"distributed"},
    {"sae"},
    {"engine"},
    {"interchange"},
    {"formats"},
    {"text"},
    {"lm"},
    {"activations"},
    {"resampling", "metric_sums", "metrics", "diagnostics", "frontier", "report"},
    {"evaluation", "features"},
    {"training"},
    {"study"},
    {"pipeline"},
    {"planning", "efficiency", "comparison", "publishing"},
    {"api"},
    {"cli"},
]
GROUP = {name: number for number, names in enumerate(GROUPS) for name in names}
MAX_LINES = 400
STANDARD = sys.stdlib_module_names


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    """Return `lm` for jumpahead/lm/model.py, `errors` for jumpahead/errors.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, under TYPE_CHECKING too: `jumpahead.lm.model`, `torch`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if is_module(name) else str(node.module)


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module of the package."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path) -> set[str]:
    """Return the files and folders of jumpahead/ that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("jumpahead.")}


def foreign(path: Path) -> set[str]:
    """Return the third-party packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)} - STANDARD - {"jumpahead", "__future__"}


def test_every_way_of_importing_is_seen(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b\nfrom jumpahead import lm, sae as s\nfrom jumpahead.lm.model import LM\n"
        "if TYPE_CHECKING:\n    import typed\nelse:\n    import other\ndef f():\n    from torch import nn\n"
    )
    assert sorted(imports(path)) == [
        "a.b",
        "jumpahead.lm",
        "jumpahead.lm.model",
        "jumpahead.sae",
        "other",
        "torch",
        "typed",
    ]
    assert imported(path) == {"lm", "sae"}
    assert foreign(path) == {"a", "other", "torch", "typed"}


def test_every_module_has_a_group():
    assert {module_of(path) for path in sources()} <= GROUP.keys()


def test_imports_follow_the_order_of_groups():
    wrong = {
        path.relative_to(PACKAGE).as_posix(): later
        for path in sources()
        if (later := {name for name in imported(path) if GROUP[name] > GROUP[module_of(path)]})
    }
    assert not wrong, f"modules import later groups: {wrong}"


def test_no_imports_are_circular():
    """Counts imports inside functions and under TYPE_CHECKING too; of a package, its `__init__.py`."""
    names = {path: dotted(path) for path in PACKAGE.rglob("*.py")}
    graph = {name: {found for found in imports(path) if is_module(found)} - {name} for path, name in names.items()}
    graph["jumpahead"] = set()  # its public names are imported on first use
    circles = cycles(graph)
    assert not circles, "; ".join(" -> ".join(circle) for circle in circles)


def dotted(path: Path) -> str:
    """Return `jumpahead.lm.model` for jumpahead/lm/model.py, `jumpahead.lm` for its `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module, each sorted (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_a_circle_is_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_is_long():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert not {name: count for name, count in lines.items() if count > MAX_LINES}


def test_an_sae_is_mathematics():
    for path in PACKAGE.rglob("sae/**/*.py"):
        assert imported(path) <= {"sae", "storage", "errors", "registry", "formatting"}, path
        assert foreign(path) <= {"torch", "numpy"}, path


def test_the_engine_needs_little():
    for path in PACKAGE.rglob("engine/**/*.py"):
        assert imported(path) <= {"engine", "sae", "storage", "errors", "registry", "progress", "formatting"}, path
        assert foreign(path) <= {"torch", "numpy", "numba", "llvmlite", "triton"}, path


@pytest.mark.parametrize(
    "name", ["resampling.py", "metric_sums.py", "metrics.py", "diagnostics.py", "frontier", "report"]
)
def test_numbers_and_pages_need_no_torch(name: str):
    found = [PACKAGE / name] if name.endswith(".py") else sorted((PACKAGE / name).rglob("*.py"))
    for path in found:
        assert not foreign(path) & {"torch", "transformers", "numba", "safetensors"}, path
        assert not imported(path) & {"study", "sae", "engine", "lm", "training", "activations"}, path


def test_importing_loads_nothing_heavy():
    """What `jumpahead --help`, `ask`, `show`, `report` and the registries cost."""
    program = """
        import sys
        import jumpahead, jumpahead.cli
        light = set(sys.modules)
        found = light & {"numpy", "pydantic", "rich", "jumpahead.study.schema"}
        assert not found, found
        assert jumpahead.Frontier.__name__ == "Frontier"
        import jumpahead.storage, jumpahead.study.schema, jumpahead.study.template, jumpahead.planning.plan
        import jumpahead.metrics, jumpahead.report.terminal, jumpahead.report
        import jumpahead.sae, jumpahead.activations
        assert "jumprelu" in jumpahead.sae.architectures.ARCHITECTURES.names()
        assert "live" in jumpahead.activations.origins.ORIGINS.names()
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
        public = "LM SAE Frontier evaluate register run splice train train_on"
        assert set(public.split()) <= set(jumpahead.__all__)
        for name in jumpahead.__all__:
            assert name in dir(jumpahead)
            assert callable(getattr(jumpahead, name)), name
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
