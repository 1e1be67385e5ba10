"""`jumpahead ask`, with an option for every metric."""

from __future__ import annotations

import functools
import inspect
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand

from jumpahead import api
from jumpahead.cli.commands import (
    AsJSON,
    RunFolder,
    print_json,
    verb,
)


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
    from jumpahead.storage.artefacts import translate_foreign_content

    with translate_foreign_content(run):
        if as_json:
            print_json(answer.to_json())
            return
        from jumpahead.report import terminal

        terminal.print_answer(answer)
