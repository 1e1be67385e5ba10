"""The command line: each verb parses its options, calls one function of api.py and prints where the result is.

A user error is one sentence on standard error and exit code 1; Ctrl-C is one sentence and exit code 130. Results go to
standard output, progress to standard error. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import typer.main
from typer.core import TyperCommand

from jumpahead import api
from jumpahead.errors import JumpaheadError
from jumpahead.pipeline import STAGES

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
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verb(function: Verb, cls: type[TyperCommand] = TyperCommand) -> Verb:
    """Register a function as a command; print its errors as one sentence."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except JumpaheadError as exc:
            raise _stopped(str(exc), 1) from exc
        except KeyboardInterrupt as exc:
            raise _stopped("Stopped. The same command continues.", 130) from exc
        except BrokenPipeError:
            raise
        except OSError as exc:  # a full disk, a folder without write permission
            reason = f"{exc.filename}: {exc.strerror}" if exc.filename and exc.strerror else str(exc)
            raise _stopped(f"The system refused: {reason}.", 1) from exc

    app.command(name=function.__name__.rstrip("_"), cls=cls)(command)
    return function


def _stopped(sentence: str, code: int) -> typer.Exit:
    """Print a sentence on standard error; return the exception that exits with a code."""
    print(f"jumpahead: {sentence}", file=sys.stderr)
    return typer.Exit(code)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
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


# ---------------------------------------------------------------------------------------------- verbs that take a study


@verb
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="tiny, a Hugging Face folder, or a name on the hub.")],
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="The block, from 0; by default the middle one.")
    ] = None,
    site: Annotated[
        str, typer.Option("--site", help="residual, mlp or attention; or the full name of a site, such as PATH.output.")
    ] = "residual",
    text: Annotated[str, typer.Option("--text", help="stdlib, a file, a folder, hf:owner/name, or -.")] = "stdlib",
    width: Annotated[
        int | None, typer.Option("--width", min=2, help="Features; by default 16 × d of the site.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Study file; by default NAME.toml.")] = None,
) -> None:
    """Write a commented study for a model."""
    path = api.init(model, layer=layer, site=site, text=text, width=width, out=out)
    print(f"study: {path}\nnext:  jumpahead plan {path}")


@verb
def plan(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006 - typer only reads the list
    out: Out = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time a few steps, for about a minute.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run everything once, two steps per SAE, and keep nothing.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Show SAEs, tokens, memory, disk and time, before any work."""
    planned = api.plan(study, out=out, overrides=overrides, measure=measure)
    if as_json:
        _print_json(planned.to_json())
    else:
        print(planned.text(shutil.get_terminal_size().columns))
    if dry_run:
        with _sigterm_as_interrupt():
            result = api.dry_run(study, overrides=overrides)
        print(f"\n{result}", file=sys.stderr if as_json else sys.stdout)


@verb
def run(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help=f"Stop after {', '.join(STAGES[:-1])}.")
    ] = None,
    out: Out = None,
) -> None:
    """Train and evaluate the SAEs of a study; skip what is done."""
    from jumpahead.storage.run_folder import Run

    with _sigterm_as_interrupt():
        target = Run(api.run(study, out=out, overrides=overrides, until=until))
    if until:
        print(f"run:    {target.folder} (stopped after {until})")
        return
    print(f"run:    {target.folder}")
    if target.report.exists():
        print(f"report: {target.report}")
    if target.frontier.exists():
        print(f"ask:    jumpahead ask {target.folder} --delta-loss 0.2")


@verb
def harvest(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Write part I of N, for N processes at the same time.")
    ] = None,
    out: Out = None,
) -> None:
    """Write the activations of a study to disk, and nothing else."""
    with _sigterm_as_interrupt():
        written = api.harvest(study, out=out, overrides=overrides, shard=shard)
    missing = "" if written.is_complete else f" (part {shard} is there, others are missing)"
    print(f"activations: {written.folder}{missing}")


# ---------------------------------------------------------------------------------------------- verbs that take a run


class AskCommand(TyperCommand):
    """`jumpahead ask`, with options for every metric that the frontier can be asked by.

    They come from the metrics' declarations when the command is parsed: `jumpahead --help` does not import numpy.
    """

    @functools.cached_property
    def metric_options(self) -> list[Any]:
        """Return the options of metrics, and add them to the declared parameters."""
        options = _metric_options()
        self._params += options
        return options

    @property
    def params(self) -> list[Any]:
        """Return the declared parameters and the options of metrics: always the same list, which click changes."""
        assert self.metric_options
        return self._params

    @params.setter
    def params(self, declared: list[Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Keep the declared parameters."""
        self._params = declared

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; the values of the metrics' options are in `ctx.obj`."""
        ctx.obj = {option.name: ctx.params.pop(option.name) for option in self.metric_options}
        return super().invoke(ctx)


def _metric_options() -> list[Any]:
    """Return the options of `ask` by metric: `--delta-loss` for a target, `--max-l0` for a limit."""
    from jumpahead.metrics import query_options

    declared = query_options().values()
    options = {option.argument: (f"--{option.option}", option.help) for option in declared if option.is_target}
    for option in declared:
        if option.is_limit:
            options[f"max_{option.argument}"] = (f"--max-{option.option}", f"Limit. {option.help}")
    types = {
        name: Annotated[str | None, typer.Option(flag, metavar="VALUE", help=text)]
        for name, (flag, text) in options.items()
    }

    def by_metric(**_: str | None) -> None:
        """Carry the signature from which typer makes options."""

    keyword = inspect.Parameter.KEYWORD_ONLY
    by_metric.__annotations__ = types
    by_metric.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, keyword, default=None, annotation=hint) for name, hint in types.items()]
    )
    carrier = typer.Typer(add_completion=False)
    carrier.command()(by_metric)
    return [option for option in typer.main.get_command(carrier).params if option.name in types]


@functools.partial(verb, cls=AskCommand)
def ask(
    context: typer.Context,
    run: RunFolder,
    series: Annotated[list[str] | None, typer.Option("--series", help="Only this series. Repeatable.")] = None,
    panel: Annotated[str | None, typer.Option("--panel", help="Only this site, width, or site/width.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Show what each series costs at a loss, and how to train it."""
    given = {name: value for name, value in context.obj.items() if value is not None}
    limits = {name.removeprefix("max_"): value for name, value in given.items() if name.startswith("max_")}
    target = {name: value for name, value in given.items() if not name.startswith("max_")}
    answer = api.ask(run, series=series, limits=limits, panel=panel, **target)
    if as_json:
        _print_json(answer.to_json())
        return
    from jumpahead.report import terminal

    terminal.print_answer(answer)


@verb
def show(run: RunFolder) -> None:
    """Show the frontier in the terminal."""
    api.show(run)


@verb
def report(
    run: RunFolder,
    is_opened: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the page of a run again."""
    path = api.report(run)
    print(f"report: {path}")
    if is_opened:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


# ---------------------------------------------------------------------------------------------- verbs that take an SAE


@verb
def evaluate(
    saes: Annotated[
        list[str],
        typer.Argument(metavar="SAE...", help="Folders or weights of SAEs of any make, or hf://user/repo/path."),
    ],
    lm: Annotated[
        str | None, typer.Option("--lm", metavar="MODEL", help="As lm.model in a study; by default the SAEs' own.")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="stdlib, a file, a folder, hf:owner/name, or -.")] = "stdlib",
    site: Annotated[str | None, typer.Option("--site", help="By default the site that each was trained at.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Held-out tokens that are scored.")] = 100_000,
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the JSON to this file.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure SAEs of any make on held-out text."""
    found = api.evaluate(saes, lm=lm, text=text, site=site, tokens=tokens, overrides=overrides, out=out)
    if as_json:
        _print_json(found)
        return
    from jumpahead.report import terminal

    terminal.print_evaluations(found)


@verb
def export(
    sae: Annotated[
        str, typer.Argument(metavar="SAE", help="Folder or weights of an SAE of any make, or hf://user/repo/path.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="saelens, gemma-scope, dictionary_learning, …")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
) -> None:
    """Write an SAE in the format of another library."""
    print(f"exported: {api.export(sae, to=to, out=out)}")


# ---------------------------------------------------------------------------------------------- this machine


@verb
def efficiency(
    d: Annotated[int | None, typer.Option("--d", min=2, help="Dimension of an activation; by default 256.")] = None,
    width: Annotated[str | None, typer.Option("--width", help="Features: 4096,8192; by default 4096.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Tokens per step; by default 2048.")] = None,
    l0: Annotated[str | None, typer.Option("--l0", help="Active features per token: 16,32; by default 32.")] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="STUDY", help="Take options that are not given from a study.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="The same from a run; the result is added to its page.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Approximate time to measure.")] = 60,
    dead: Annotated[float, typer.Option("--dead", min=0, max=0.9, help="Share of dead features, for AuxK.")] = 0.05,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; torch's default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the JSON to this file.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure what a training step costs on this machine."""
    from jumpahead.efficiency import parse_integers, parse_numbers
    from jumpahead.report import terminal

    found = api.efficiency(
        d=d, width=parse_integers(width, "--width"), batch=batch, l0=parse_numbers(l0, "--l0"), study=study, run=run,
        seconds=seconds, dead=dead, threads=threads, out=out,
    )  # fmt: skip
    measured = found.measurements
    if measured["is_interrupted"] and not measured["shapes"]:
        raise _stopped("Stopped before anything was measured.", 130)
    if as_json:
        _print_json(measured)
    else:
        terminal.print_efficiency(measured)
    if measured["is_interrupted"]:
        raise _stopped("Stopped: nothing was saved.", 130)
    for path in found.saved:
        print(f"saved: {path}", file=sys.stderr if as_json else sys.stdout)


def _print_json(value: Any) -> None:
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


def main() -> None:
    """Run the command line; the entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
