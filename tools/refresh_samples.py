"""The demo's figure and answer in README.md and docs/, made again from a run of the demo.

    .venv/bin/python -m tools.refresh_samples runs/demo

Writes docs/figure-5.png (with tools/screenshot.py: needs a chromium) and replaces the text between
`$ jumpahead ask runs/demo --delta-loss 0.2` and the end of its block: in docs/reading-the-page.md the whole answer, in
README.md its recommendation.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from jumpahead import api
from jumpahead.errors import JumpaheadError
from jumpahead.report import terminal

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "$ jumpahead ask runs/demo --delta-loss 0.2"
BLOCK = re.compile(rf"(```\n{re.escape(QUESTION)}\n).*?(```)", re.DOTALL)
LOSS = 0.2
COLUMNS = 80


def answer_text(run: Path) -> str:
    """Return what `jumpahead ask RUN --delta-loss 0.2` prints in 80 columns, without blanks at the ends of lines."""
    file = io.StringIO()
    terminal.print_answer(api.ask(run, delta_loss=LOSS), Console(file=file, width=COLUMNS))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def replace_block(page: str, text: str) -> str:
    """Return a page with the answer in its block replaced. Exits if there is no such block."""
    if not BLOCK.search(page):
        sys.exit(f"There is no block that begins with `{QUESTION}`.")
    return BLOCK.sub(lambda found: f"{found[1]}{text}{found[2]}", page)


def main() -> None:
    """Parse the command line; write the figure and both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the finished run of studies/demo.toml")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder with README.md and docs/")
    parser.add_argument("--no-figure", action="store_true", help="leave the figure as it is")
    given = parser.parse_args()
    try:
        answer = answer_text(given.run)
    except JumpaheadError as error:
        sys.exit(str(error))
    recommendation = answer[answer.index("Recommended: ") :]
    for name, text in (("docs/reading-the-page.md", answer), ("README.md", f"…\n{recommendation}")):
        path = given.root / name
        path.write_text(replace_block(path.read_text(encoding="utf-8"), text), encoding="utf-8")
        print(path)
    if not given.no_figure:
        picture = given.root / "docs" / "figure-5.png"
        tool = [sys.executable, str(ROOT / "tools" / "screenshot.py"), str(given.run), str(picture)]
        sys.exit(subprocess.run([*tool, "--figure", "figure-5"], check=False).returncode)


if __name__ == "__main__":
    main()
