"""The command line: each verb parses, calls one library function and prints where the result lies.

Errors of the user are one sentence on standard error and exit code 1; Ctrl-C is one sentence and 130. Results go to
standard output, progress to standard error. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from jumpahead.errors import JumpaheadError, StudyError

app = typer.Typer(
    name="jumpahead",
    help="Trains sparse autoencoders of several architectures at many sparsities on one stream of a language model's "
    "activations, and tells you what a given loss costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Verb = TypeVar("Verb", bound=Callable[..., None])

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, finished or not.", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key: --set train.lr=3e-4. Repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="The run's folder; runs/NAME by default.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Prints JSON.")]


class Until(StrEnum):
    """Where `run` may stop."""

    tokens = "tokens"
    activations = "activations"
    train = "train"
    evaluate = "evaluate"


def verb(function: Verb) -> Verb:
    """Registers a command whose errors are sentences."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except JumpaheadError as exc:
            raise _stopped(str(exc), 1) from exc
        except KeyboardInterrupt as exc:
            raise _stopped("Stopped. The same command continues where it was.", 130) from exc
        except BrokenPipeError:
            raise
        except OSError as exc:  # a full disk, a folder one may not write
            what = f"{exc.filename}: {exc.strerror}" if exc.filename and exc.strerror else str(exc)
            raise _stopped(f"The system refused: {what}.", 1) from exc

    app.command(name=function.__name__.rstrip("_"))(command)
    return function


def _stopped(sentence: str, code: int) -> typer.Exit:
    print(f"jumpahead: {sentence}", file=sys.stderr)
    return typer.Exit(code)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A scheduler's SIGTERM saves and stops like Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: nothing to install
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _folder(out: Path | None, name: str) -> Path:
    return out if out is not None else Path("runs") / name


# ---------------------------------------------------------------------------------------------- verbs that take a study


@verb
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="tiny, a Hugging Face folder, or a name on the hub.")],
    layer: Annotated[int | None, typer.Option("--layer", min=0, help="The block, from 0; the middle one.")] = None,
    kind: Annotated[
        str, typer.Option("--site", help="residual, mlp or attention; or a site's whole name, such as PATH.output.")
    ] = "residual",
    text: Annotated[str, typer.Option("--text", help="stdlib, a file or a folder, hf:owner/name, or -.")] = "stdlib",
    width: Annotated[int | None, typer.Option("--width", min=2, help="Features; 16 × the site's width.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The study file; NAME.toml.")] = None,
) -> None:
    """Writes a commented study for a model."""
    from jumpahead import store
    from jumpahead.study import template

    name, content = template.write(model, layer, kind, text, width)
    path = out or Path(f"{name}.toml")
    if path.exists():
        raise StudyError(f"{path} exists: remove it, or name another file with --out.")
    store.write_atomic(path, content)
    print(f"study: {path}\nnext:  jumpahead plan {path}")


@verb
def plan(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    out: Out = None,
    measure: Annotated[bool, typer.Option("--measure", help="Times a few steps here, for about a minute.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Goes from text to page once, two steps per SAE, and keeps nothing.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """SAEs, tokens, memory, disk and time, before any work."""
    from jumpahead.planning import plan as plans
    from jumpahead.study import schema as studies

    loaded = studies.load(study, overrides)
    made = plans.make(loaded, _folder(out, loaded.name), measure=measure)
    if as_json:
        _print_json(made.to_json())
    else:
        print(made.text(shutil.get_terminal_size().columns))
    if dry_run:
        from jumpahead.planning.dry_run import rehearse

        with _terminable():
            print(f"\n{rehearse(loaded)}", file=sys.stderr if as_json else sys.stdout)


@verb
def run(
    study: StudyFile,
    overrides: Overrides = [],  # noqa: B006
    until: Annotated[Until | None, typer.Option("--until", help="Stops after this stage.")] = None,
    out: Out = None,
) -> None:
    """From text to SAEs, frontier and page; skips what is done."""
    from jumpahead import store
    from jumpahead.api import run as run_study

    with _terminable():
        folder = run_study(study, out=out, overrides=overrides, until=until.value if until else None)
    target = store.Run(folder)
    if until:
        print(f"run:    {target.folder} (stopped after {until.value})")
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
        str | None, typer.Option("--shard", metavar="I/N", help="Part I of N, for N processes side by side.")
    ] = None,
    out: Out = None,
) -> None:
    """Writes the activations of a study to disk, and nothing else."""
    from jumpahead import store, sweep
    from jumpahead.activations.origins.shards import Part
    from jumpahead.study import schema as studies

    part = Part.parse(shard) if shard is not None else Part()
    loaded = studies.load(study, overrides)
    target = store.Run(_folder(out, loaded.name))
    with _terminable():
        is_done = sweep.harvest(loaded, target, part)
    print(f"activations: {target.activations}" + ("" if is_done else f" (part {part} is there, others are missing)"))


# ---------------------------------------------------------------------------------------------- verbs that take a run


@verb
def ask(
    run: RunFolder,
    delta_loss: Annotated[float | None, typer.Option("--delta-loss", help="Nats per token lost by splicing.")] = None,
    l0: Annotated[float | None, typer.Option("--l0", help="Active features per token.")] = None,
    fvu: Annotated[float | None, typer.Option("--fvu", help="Fraction of variance unexplained.")] = None,
    above_10: Annotated[
        str | None, typer.Option("--above-10%", help="Features that fire on more than 10 % of tokens: 12, or 0.06%.")
    ] = None,
    above_1: Annotated[str | None, typer.Option("--above-1%", help="The same for 1 % of tokens.")] = None,
    series: Annotated[list[str] | None, typer.Option("--series", help="Only this series. Repeatable.")] = None,
    panel: Annotated[str | None, typer.Option("--panel", help="Only this site, width, or site/width.")] = None,
    max_above_10: Annotated[str | None, typer.Option("--max-above-10%", help="Limit: 12, or 0.06%.")] = None,
    max_above_1: Annotated[str | None, typer.Option("--max-above-1%", help="Limit: 12, or 0.06%.")] = None,
    max_dead: Annotated[str | None, typer.Option("--max-dead", help="Limit on dead features: 12, or 3%.")] = None,
    max_l0: Annotated[float | None, typer.Option("--max-l0", help="Limit on active features per token.")] = None,
    as_json: AsJSON = False,
) -> None:
    """What each architecture costs at a loss, and how to train."""
    from jumpahead.frontier import Frontier

    limits = {"above_10": max_above_10, "above_1": max_above_1, "dead": max_dead, "l0": max_l0}
    answer = Frontier.load(run).ask(
        delta_loss=delta_loss,
        l0=l0,
        fvu=fvu,
        above_10=above_10,
        above_1=above_1,
        series=series,
        limits={name: limit for name, limit in limits.items() if limit is not None},
        panel=panel,
    )
    if as_json:
        _print_json(answer.to_json())
        return
    from jumpahead.report import terminal

    terminal.answer(answer)


@verb
def show(run: RunFolder) -> None:
    """The frontier in the terminal."""
    from jumpahead.frontier import Frontier
    from jumpahead.report import terminal

    terminal.show(Frontier.load(run))


@verb
def report(
    run: RunFolder,
    is_opened: Annotated[bool, typer.Option("--open", help="Opens it in the browser.")] = False,
) -> None:
    """Writes the run's page again."""
    from jumpahead import report as pages

    path = pages.write(run)
    print(f"report: {path}")
    if is_opened:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


# ---------------------------------------------------------------------------------------------- this machine


@verb
def efficiency(
    d: Annotated[int | None, typer.Option("--d", min=2, help="Dimensions of an activation; 256.")] = None,
    width: Annotated[str | None, typer.Option("--width", help="Features; 4096. Several: 4096,8192,16384.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Tokens per step; 2048.")] = None,
    l0: Annotated[str | None, typer.Option("--l0", help="Active features per token; 32. Several: 16,32.")] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="STUDY", help="Takes what is not given from a study.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="From a run's study; the result goes on its page.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="About how long to measure.")] = 60,
    dead: Annotated[
        float, typer.Option("--dead", min=0, max=0.9, help="Share of features that count as dead, for AuxK.")
    ] = 0.05,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; torch's choice.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Writes the JSON there.")] = None,
    as_json: AsJSON = False,
) -> None:
    """What a training step costs here, and where its time goes."""
    from jumpahead import efficiency as costs
    from jumpahead import store
    from jumpahead.progress import progress_on

    target = store.Run.open(run) if run else None
    known = _known_shape(study or (target.study if target else None))
    widths, l0s = costs.whole_numbers(width, "--width"), costs.numbers(l0, "--l0")
    shapes = costs.shapes(known, d, widths, batch, l0s)
    from jumpahead.efficiency.session import measure
    from jumpahead.training import use_threads

    use_threads(threads or known.threads)
    measured = measure(shapes, seconds=seconds, dead=dead, progress=progress_on())
    if measured["is_interrupted"] and not measured["shapes"]:
        raise _stopped("Stopped before anything was measured.", 130)
    if as_json:
        _print_json(measured)
    else:
        from jumpahead.report import terminal

        terminal.efficiency(measured)
    if measured["is_interrupted"]:
        raise _stopped("Stopped: nothing was saved.", 130)
    saved = [store.write_json(path, measured) for path in (out, target and target.efficiency) if path]
    if target and target.frontier.exists():
        from jumpahead import report as pages

        saved.append(pages.write(target.folder))
    for path in saved:
        print(f"saved: {path}", file=sys.stderr if as_json else sys.stdout)


def _known_shape(study: Path | None) -> Any:
    """The shape of a study, or the demo's."""
    from jumpahead import efficiency as costs

    if study is None:
        return costs.Known()
    from jumpahead.study import schema as studies

    return costs.of_study(studies.load(study))


def _print_json(value: Any) -> None:
    from jumpahead import store

    print(store.to_json(value, indent=2))


def _version(is_asked: bool) -> None:
    if is_asked:
        import jumpahead

        print(f"jumpahead {jumpahead.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    is_asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Prints the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
