"""Results as JSON lines: one line per trained SAE, with a key that is a digest of all that the line depends on.

Lines are sorted by key, so that files from several machines merge line by line; what is there is not computed again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jumpahead.storage.atomic import write_atomic

Lines = dict[str, dict[str, Any]]
"""Results by key."""


def load_results(path: Path) -> Lines:
    """Return the results in a file, by key."""
    if not path.exists():
        return {}
    return {line["key"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def save_results(path: Path, results: Lines) -> None:
    """Write the results, sorted by key; lines added by other processes in the meantime are kept."""
    merged = load_results(path) | results
    text = "".join(json.dumps(merged[key], ensure_ascii=False) + "\n" for key in sorted(merged))
    write_atomic(path, text)


def round_to_five_digits(value: float) -> float:
    """Round to five significant digits."""
    return float(f"{value:.5g}")
