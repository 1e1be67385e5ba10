"""Executes a notebook's code cells, one after the other in one process, and keeps what they print as their outputs.

    python tools/notebook.py examples/first-frontier.ipynb

Cells are plain Python that prints: no kernel, no magics, so that the tests can execute what a reader executes.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any], change: Callable[[str], str] = lambda source: source) -> list[str]:
    """What each code cell prints, by number; a cell's exception is raised. change: rewrites a cell's source before."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(change("".join(cell["source"])), f"cell {number}", "exec"), names)
        printed.append(out.getvalue())
    return printed


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def main(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, text) in enumerate(zip(code_cells(notebook), execute(notebook), strict=True), start=1):
        stream = {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
        cell["execution_count"], cell["outputs"] = number, [stream] if text else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
