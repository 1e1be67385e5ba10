"""Function that measures this machine: efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.api.arguments import PathLike
from jumpahead.api.runs import report
from jumpahead.api.studies import load_study

if TYPE_CHECKING:
    from jumpahead.progress import Progress


class EfficiencyResult(NamedTuple):
    """The measurements of `efficiency`."""

    measurements: dict[str, Any]
    """The shapes, implementations and times, as JSON values."""
    saved: list[Path]
    """The files that were written; none if the measurement was interrupted."""


def efficiency(
    *,
    d: int | None = None,
    width: Sequence[int] = (),
    batch: int | None = None,
    l0: Sequence[float] = (),
    study: PathLike | None = None,
    run: PathLike | None = None,
    seconds: float = 60,
    dead: float = 0.05,
    threads: int | None = None,
    out: PathLike | None = None,
    progress: Progress | None = None,
) -> EfficiencyResult:
    """Measure where a training step's time, FLOPs, bytes and memory go on this machine, for every architecture.

    d, width, batch, l0: the shapes; what is not given is taken from `study`, from the study of `run`, or is the demo's.
    seconds: about how long to measure. dead: share of dead features, for AuxK. The result is written to `out` and, with
    `run`, into the run and onto its page.
    """
    from jumpahead.efficiency import ShapeDefaults, defaults_from_study, shape_grid
    from jumpahead.progress import make_progress
    from jumpahead.storage.json_files import write_json
    from jumpahead.storage.run_folder import Run

    target = Run.open(run) if run else None
    path = study or (target.study if target else None)
    defaults = defaults_from_study(load_study(path, (), "efficiency")) if path else ShapeDefaults()
    shapes = shape_grid(defaults, d, width, batch, l0)
    from jumpahead.efficiency.benchmark import measure
    from jumpahead.training.devices import set_threads

    set_threads(threads or defaults.threads)
    measured = measure(shapes, seconds=seconds, dead=dead, progress=progress or make_progress())
    if measured["is_interrupted"]:
        return EfficiencyResult(measured, [])
    saved = [write_json(Path(path), measured) for path in (out, target and target.efficiency) if path]
    if target and target.frontier.exists():
        saved.append(report(target.folder))
    return EfficiencyResult(measured, saved)
