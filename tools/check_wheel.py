"""Check a built wheel, from an environment that holds it and its declared dependencies and nothing else.

    .venv-wheel/bin/python -I tools/check_wheel.py build/wheel/jumpahead-0.1.0-py3-none-any.whl

Compares the wheel's files and metadata with the source tree; then runs a small study from the command line in a
temporary folder, which takes about a minute, and checks what it wrote. `make test-wheel` builds the wheel, makes the
environment and runs this.
"""

from __future__ import annotations

import email
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from email.message import Message
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
NEEDED = (
    "py.typed",
    "report/page.css",
    "report/page.js",
    "features/page.js",
    "features/page.css",
    "lm/tiny/model.safetensors",
    "lm/tiny/tokenizer.json",
)
"""Files of the package that are not Python and that a wheel is easily built without."""
UNDECLARED = ("pytest", "hypothesis", "ruff", "datasets", "pyarrow", "matplotlib", "accelerate")
"""Packages of the optional dependencies: the base installation has to work without them."""
SMALL = ("train.tokens=8_192", "train.batch=512", "evaluate.tokens=2_000", "text.max_tokens=300_000")
LOAD = """
from jumpahead import LM, SAE, Frontier, splice

lm = LM.load("tiny")
ids = [[lm.bos_id, *lm.encode(["def area(self):\\n    return self.width * self.height\\n"])[0]]]
frontier = Frontier.load("runs/small")
sae = SAE.load(f"runs/small/{frontier.points('topk')[0]['path']}")
logits = splice(lm, ids, "layers.1.residual", sae)
assert logits.shape[:2] == (1, len(ids[0])), logits.shape
assert bool(logits.isfinite().all())
"""


def package_files(folder: Path) -> set[str]:
    """Return the paths of a package's files, relative to the folder that holds the package."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix() for path in files}


def check_files(wheel: Path) -> None:
    """Assert that the wheel holds every file of the source tree's package, its own metadata, and no more."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    packed = {name for name in names if ".dist-info/" not in name}
    expected = package_files(SOURCE / "jumpahead")
    assert packed == expected, f"missing {sorted(expected - packed)}, too many {sorted(packed - expected)}"
    missing = [name for name in NEEDED if f"jumpahead/{name}" not in packed]
    assert not missing, f"the package has no {missing}"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names), "the licence is missing"


def metadata_of(wheel: Path) -> Message:
    """Return the wheel's METADATA; its payload is the long description."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def check_metadata(wheel: Path) -> None:
    """Assert that the metadata have what an index shows, and the version of CITATION.cff."""
    found = metadata_of(wheel)
    assert found["Name"] == "jumpahead"
    assert found["License-Expression"] == "MIT"
    assert found["Requires-Python"] == ">=3.11"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (SOURCE / "README.md").read_text(encoding="utf-8")
    assert len(found["Summary"]) <= 512, "an index refuses a longer summary"
    assert "Typing :: Typed" in found.get_all("Classifier", [])
    citation = (SOURCE / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    assert cited is not None
    assert found["Version"] == cited[1], f"CITATION.cff has version {cited[1]}, the wheel {found['Version']}"


def check_environment() -> Path:
    """Return the installed package's folder; assert that it is this environment's and that nothing undeclared is."""
    undeclared = [name for name in UNDECLARED if importlib.util.find_spec(name) is not None]
    assert not undeclared, f"{undeclared} are installed: make the environment from the wheel alone"
    spec = importlib.util.find_spec("jumpahead")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    assert package.is_relative_to(sys.prefix), f"jumpahead is imported from {package}, not from {sys.prefix}"
    assert importlib.metadata.version("jumpahead") == metadata_of(Path(sys.argv[1]))["Version"]
    return package


def call(*command: str, folder: Path) -> str:
    """Return the standard output of a program of this environment, run in `folder`; assert that it succeeds."""
    print("$", *(word if "\n" not in word else "…" for word in command), flush=True)
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def check_study(package: Path, folder: Path) -> None:
    """Run a study of the bundled language model, from `init` to its page, through the installed command."""
    version = call("jumpahead", "--version", folder=folder)
    assert importlib.metadata.version("jumpahead") in version, version
    call("jumpahead", "init", "tiny", "--width", "512", "--out", "small.toml", folder=folder)
    overrides = [word for pair in SMALL for word in ("--set", pair)]
    call("jumpahead", "run", "small.toml", "--out", "runs/small", *overrides, folder=folder)
    check_page(folder / "runs/small/report.html", package)
    answer = json.loads(call("jumpahead", "ask", "runs/small", "--l0", "3", "--json", folder=folder))
    series = [one["series"] for panel in answer["panels"] for one in panel["series"]]
    assert series == ["jumprelu", "gated", "topk"], series
    assert "TopK" in call("jumpahead", "ask", "runs/small", "--l0", "3", folder=folder)
    assert "TopK" in call("jumpahead", "show", "runs/small", folder=folder)
    call("python", "-I", "-c", LOAD, folder=folder)


def check_page(page: Path, package: Path) -> None:
    """Assert that the page holds every style sheet and script of the package, and plotly's script."""
    html = page.read_text(encoding="utf-8")
    parts = [path for kind in ("*.css", "*.js") for path in sorted((package / "report").glob(kind))]
    assert {path.suffix for path in parts} == {".css", ".js"}
    for path in parts:
        assert path.read_text(encoding="utf-8") in html, f"{page.name} lacks {path.name}"
    assert len(html) > 1_000_000, f"{page.name} lacks plotly: it has {len(html):,} characters"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -I tools/check_wheel.py WHEEL")
    wheel = Path(sys.argv[1])
    check_files(wheel)
    check_metadata(wheel)
    package = check_environment()
    with tempfile.TemporaryDirectory() as folder:
        check_study(package, Path(folder))
    print(f"{wheel.name} works.")


if __name__ == "__main__":
    main()
