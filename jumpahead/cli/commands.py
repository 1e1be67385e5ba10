"""The command line itself: how a verb is registered, the options that several verbs take, how results are printed."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from jumpahead.errors import JumpaheadError

app = typer.Typer(
    name="jumpahead",
    help="Train sparse autoencoders of several architectures at many sparsities on one stream of a language model's "
    "activations, and compare their cost at the same loss.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Verb = TypeVar("Verb", bound=Callable[..., None])

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key: --set train.lr=3e-4. Repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Folder of the run; by default runs/NAME.")]
Model = Annotated[
    str | None, typer.Option("--lm", metavar="MODEL", help="As lm.model in a study; by default the SAEs' own.")
]
Text = Annotated[str, typer.Option("--text", help="stdlib, a file, a folder, hf:owner/name, or -.")]
SiteName = Annotated[str | None, typer.Option("--site", help="By default the site that each was trained at.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verb(function: Verb, cls: type[TyperCommand] = TyperCommand) -> Verb:
    """Register a function as a command; print its errors as one sentence."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except JumpaheadError as exc:
            raise stopped(str(exc), 1) from exc
        except KeyboardInterrupt as exc:
            raise stopped("Stopped. The same command continues.", 130) from exc
        except BrokenPipeError:
            raise
        except RecursionError as exc:
            raise stopped("An input is nested too deep to be read.", 1) from exc
        except MemoryError as exc:
            raise stopped("There is not enough memory: use a smaller batch, width or number of SAEs.", 1) from exc
        except OSError as exc:  # a full disk, a folder without write permission
            reason = f"{exc.filename}: {exc.strerror}" if exc.filename and exc.strerror else str(exc)
            raise stopped(f"The system refused: {reason}.", 1) from exc

    app.command(name=function.__name__.rstrip("_"), cls=cls)(command)
    return function


def stopped(sentence: str, code: int) -> typer.Exit:
    """Print a sentence on standard error; return the exception that exits with a code."""
    from jumpahead.formatting import sanitize

    print(f"jumpahead: {sanitize(sentence)}", file=sys.stderr)
    return typer.Exit(code)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM, which schedulers send, like Ctrl-C: save and stop."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: signals cannot be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_json(value: Any) -> None:
    """Print JSON values, indented."""
    from jumpahead.storage.json_files import to_json

    print(to_json(value, indent=2))


def _print_version(is_requested: bool) -> None:
    """Print the version and exit if it is requested."""
    if is_requested:
        import jumpahead

        print(f"jumpahead {jumpahead.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    is_requested: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Accept the options that stand before a verb."""
