"""A change of what is computed must raise a version: each version has the digest of the code that it stands for.

    python tests/test_versions.py        prints which digests differ from the recorded ones
    python tests/test_versions.py record writes today's digests into jumpahead/versions.py

The digest ignores what cannot change a number: comments, docstrings, annotations, imports, error messages, the order
of definitions and the files that they stand in. A renamed variable changes it: record the digest, keep the version.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jumpahead"
VERSIONS = PACKAGE / "versions.py"
SOURCES = {
    "TRAINING": ("training.py", "sae", "engine", "activations", "text", "lm"),
    "EVALUATION": ("evaluation.py", "metric_sums.py", "metrics.py", "resampling.py", "diagnostics.py"),
    "FEATURES": ("features",),
    "FRONTIER": ("frontier",),
}
"""What each version covers: files and folders of the package, or a folder where a module became a package."""
IGNORED_FIELDS = {"annotation", "returns", "type_params", "type_comment", "ctx", "kind"}


def recorded(name: str) -> str:
    """Return the digest that stands in jumpahead/versions.py."""
    found = re.search(rf'^{name}_DIGEST = "(\w+)"$', VERSIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f'{VERSIONS} has no line {name}_DIGEST = "…"'
    return found[1]


def record(name: str, digest: str) -> None:
    """Write a digest into jumpahead/versions.py."""
    text = VERSIONS.read_text(encoding="utf-8")
    VERSIONS.write_text(re.sub(rf'^({name}_DIGEST = )"\w+"$', rf'\1"{digest}"', text, flags=re.MULTILINE), "utf-8")


def files(name: str) -> Iterator[Path]:
    """Yield the source files of a version. Fails if one of `SOURCES` is gone."""
    for source in SOURCES[name]:
        path = PACKAGE / source
        folder = path.with_suffix("")
        found = [path] if path.is_file() else sorted(folder.rglob("*.py"))
        assert found, f"{source} is gone: change SOURCES in tests/test_versions.py"
        yield from found


def digest_of(sources: Sequence[str]) -> str:
    """Return the digest of the normalised top-level statements of source texts, whatever their order: 16 characters."""
    statements = sorted(
        normalised(node) for source in sources for node in ast.parse(source).body if not is_ignored(node)
    )
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def current(name: str) -> str:
    """Return the digest of the code as it is."""
    return digest_of([path.read_text(encoding="utf-8") for path in files(name)])


def is_ignored(node: Any) -> bool:
    """Return True for docstrings, imports and blocks under TYPE_CHECKING."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_docstring or isinstance(node, ast.Import | ast.ImportFrom)


def normalised(node: Any) -> str:
    """Return a syntax tree as text, the same under every version of Python, without what changes no number."""
    if isinstance(node, list):
        return f"[{','.join(normalised(each) for each in node if not is_ignored(each))}]"
    if isinstance(node, ast.Raise):
        return "Raise"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in IGNORED_FIELDS]
    parts = [f"{name}={normalised(value)}" for name, value in fields if value is not None and value != []]
    return f"{type(node).__name__}({','.join(parts)})"


@pytest.mark.parametrize("name", SOURCES)
def test_changed_code_has_a_new_version(name: str):
    assert current(name) == recorded(name), (
        f"The code that {name}_VERSION stands for has changed ({', '.join(SOURCES[name])}). If the same study may now "
        f"give other numbers, raise {name}_VERSION in jumpahead/versions.py; if not, keep it. "
        "Then record the digest: python tests/test_versions.py record"
    )


def test_the_digest_sees_computation():
    source = 'def f(x: int) -> int:\n    """Return the double."""\n    return 2 * x\n\n\nTERMS = 3\n'
    same = "from typing import Any\n\nTERMS = 3  # of the series\n\n\ndef f(x: Any):\n    return 2 * x\n"
    assert digest_of([source]) == digest_of([same])
    assert digest_of([source]) == digest_of(source.split("\n\n\n"))
    assert digest_of([source]) != digest_of([source.replace("2 * x", "x * 2")])
    assert digest_of([source]) != digest_of([source.replace("TERMS = 3", "TERMS = 4")])


def test_the_digest_ignores_error_messages():
    source = "def f(x):\n    if x < 0:\n        raise ValueError('{}')\n    return x\n"
    assert digest_of([source.format("negative")]) == digest_of([source.format("x must be positive")])
    assert digest_of([source]) != digest_of([source.replace("x < 0", "x <= 0")])


def main(verb: str = "") -> None:
    """Print, or with `record` write, the digests that differ from the recorded ones."""
    for name in SOURCES:
        digest = current(name)
        if digest == recorded(name):
            continue
        print(f"{name}_DIGEST: {recorded(name)} recorded, {digest} now")
        if verb == "record":
            record(name, digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
