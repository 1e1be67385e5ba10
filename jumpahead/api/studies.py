"""Functions on a study: init, plan, run, harvest, train_on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.api.arguments import PathLike, StudyLike
from jumpahead.errors import StudyError

if TYPE_CHECKING:
    from jumpahead.planning.dry_run import DryRunResult
    from jumpahead.planning.plan import Plan
    from jumpahead.progress import Progress
    from jumpahead.study.schema import Study


class HarvestResult(NamedTuple):
    """The activations that `harvest` has written."""

    folder: Path
    """The folder of the activations."""
    is_complete: bool
    """False if parts that other processes write are missing."""


def init(
    model: str,
    *,
    layer: int | None = None,
    site: str = "residual",
    text: str = "stdlib",
    width: int | None = None,
    out: PathLike | None = None,
) -> Path:
    """Write a commented study for a model; return its path, by default NAME.toml in the current folder.

    model: `tiny`, a Hugging Face folder, or a name on the hub. layer: the block, by default the middle one. site:
    residual, mlp or attention, or a full name such as PATH.output. width: features, by default 16 × the site's width.

    Raises StudyError if the file exists.
    """
    from jumpahead.storage.atomic import write_atomic
    from jumpahead.study.template import render_study

    name, content = render_study(model, layer, site, text, width)
    path = Path(out or f"{name}.toml")
    if path.exists():
        raise StudyError(f"{path} exists: remove it, or name another file with --out.")
    return write_atomic(path, content)


def plan(
    study: StudyLike, *, out: PathLike | None = None, overrides: Sequence[str] = (), measure: bool = False
) -> Plan:
    """Return the plan of a study: SAEs, tokens, memory and disk, before any work. measure: also time, in a minute."""
    from jumpahead.planning.plan import make_plan

    loaded = load_study(study, overrides, "plan")
    return make_plan(loaded, _run_folder(loaded, out), measure=measure)


def dry_run(study: StudyLike, *, overrides: Sequence[str] = (), progress: Progress | None = None) -> DryRunResult:
    """Run a study from text to page with two steps per SAE, in a temporary folder; return what it took."""
    from jumpahead.planning.dry_run import perform_dry_run

    return perform_dry_run(load_study(study, overrides, "dry_run"), progress)


def run(
    study: StudyLike,
    *,
    out: PathLike | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
    delta_loss: Sequence[float] = (),
    progress: Progress | None = None,
) -> Path:
    """Run the stages of a study that are not done, from text to page; return the run's folder.

    out: the folder, by default runs/NAME. overrides: as after `--set`, such as "train.lr=3e-4"; only for a file.
    until: the stage to stop after, one of `pipeline.STAGES`. delta_loss: delta LM losses that every series also trains
    SAEs for, like `delta_loss` of each series in the study.

    If interrupted, it saves its state, and the same call continues.
    """
    from jumpahead.pipeline.run import run_study
    from jumpahead.storage.run_folder import Run
    from jumpahead.study.load import with_delta_loss
    from jumpahead.study.save import to_toml

    loaded = load_study(study, overrides, "run")
    if delta_loss:
        loaded = with_delta_loss(loaded, delta_loss)
    target = Run(_run_folder(loaded, out))
    with target.session(to_toml(loaded)):
        run_study(loaded, target, until, progress)
    return target.folder


def harvest(
    study: StudyLike,
    *,
    out: PathLike | None = None,
    overrides: Sequence[str] = (),
    shard: str | None = None,
    progress: Progress | None = None,
) -> HarvestResult:
    """Write the activations of a study to disk, and nothing else; return their folder.

    shard: "2/4" for the second of four processes, each of which writes a part; by default one process writes all.
    """
    from jumpahead.activations.writer_rank import WriterRank
    from jumpahead.pipeline.run import harvest_activations
    from jumpahead.storage.run_folder import Run

    rank = WriterRank.parse(shard) if shard is not None else WriterRank()
    loaded = load_study(study, overrides, "harvest")
    target = Run(_run_folder(loaded, out))
    is_complete = harvest_activations(loaded, target, rank, progress)
    return HarvestResult(target.activations, is_complete)


def train_on(
    tensors: Iterable[Any] | Callable[[], Iterable[Any]] | str | os.PathLike[str],
    *,
    series: Sequence[Mapping[str, Any]],
    width: int | Sequence[int],
    tokens: int,
    out: str | os.PathLike[str],
    rows: int | None = None,
    site: str = "tensors",
    group: int = 256,
    held_out: float = 0.1,
    progress: Progress | None = None,
    **tables: Mapping[str, Any],
) -> Path:
    """Train every setting of every series on activations from any source; return the run's folder, which is `out`.

    It is a study with `activations.origin = "tensors"`: `jumpahead show`, `ask` and `report` accept its run. A second
    call trains what is missing.

    tensors: an iterable of torch tensors or numpy arrays [n, d], a function that returns one, or the path of an .npy or
    .safetensors file or of a folder of them. series, width, tokens: as in a study (`tokens`: rows that each SAE is
    trained on). rows: number of rows that are taken from the iterator and stored in `out`; by default enough that none
    is repeated. site: the name of the activations. group: number of consecutive rows that are held out and resampled
    together. held_out: share of the groups that is held out. tables: the study's other tables, such as
    train={"batch": 512}, activations={"dtype": "bfloat16"}.
    """
    from jumpahead.activations.base import DTYPES
    from jumpahead.activations.held_out_groups import rows_for_tokens
    from jumpahead.activations.tensor_writer import write_iterator
    from jumpahead.pipeline.run import run_study
    from jumpahead.progress import make_progress
    from jumpahead.storage.run_folder import Run
    from jumpahead.study.load import parse
    from jumpahead.study.save import to_toml

    path = str(tensors) if isinstance(tensors, str | os.PathLike) else ""
    raw = {name: dict(table) for name, table in tables.items()}
    options = {"source": path, "rows_per_group": group, "held_out": held_out}
    raw["activations"] = {**raw.get("activations", {}), "origin": "tensors", "sites": [site], "options": options}
    raw["sae"] = {**raw.get("sae", {}), "width": width}
    raw["train"] = {**raw.get("train", {}), "tokens": tokens}
    name = Path(out).resolve().name
    study = parse({"name": name, **raw, "series": [dict(one) for one in series]}, "train_on")
    if rows is not None and rows < 1:
        raise StudyError(f"train_on: rows must be at least 1, not {rows}.")
    target, progress = Run(out), progress or make_progress()
    with target.session(to_toml(study)):
        if not path:
            batches: Any = tensors() if callable(tensors) else tensors
            num_rows = rows or rows_for_tokens(study.train.tokens, held_out, group)
            dtype = DTYPES[study.activations.dtype]
            write_iterator(
                batches,
                target.activations,
                site=site,
                rows=num_rows,
                dtype=dtype,
                rows_per_group=group,
                progress=progress,
            )
        run_study(study, target, progress=progress)
    return target.folder


def load_study(study: StudyLike, overrides: Sequence[str], caller: str) -> Study:
    """Return the study in a file or in tables. caller: the function that errors in tables name."""
    from jumpahead.study.checks import check_files
    from jumpahead.study.load import load, parse

    if not isinstance(study, Mapping):
        return load(Path(study), overrides)
    if overrides:
        raise StudyError(f"{caller}: overrides are for a file; change the tables themselves.")
    loaded = parse(study, caller)
    check_files(loaded, caller)
    return loaded


def _run_folder(study: Study, out: PathLike | None) -> Path:
    """Return the run's folder: `out`, or runs/NAME."""
    return Path("runs") / study.name if out is None else Path(out)
