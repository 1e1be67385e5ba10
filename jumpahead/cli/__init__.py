"""The command line: each verb parses its options, calls one function of api/ and prints where the result is.

A user error is one sentence on standard error and exit code 1; Ctrl-C is one sentence and exit code 130. Results go to
standard output, progress to standard error. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from jumpahead.cli import ask, feature_pages, machine, runs, saes, studies
from jumpahead.cli.commands import app

__all__ = ["app", "main"]

ORDER = [module.__name__ for module in (studies, ask, runs, feature_pages, saes, machine)]
"""The order of the verbs in `jumpahead --help`."""
app.registered_commands.sort(key=lambda command: ORDER.index(command.callback.__module__))  # type: ignore[union-attr]


def main() -> None:
    """Run the command line; the entry point of the console script."""
    app()
