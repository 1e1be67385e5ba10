"""The operations of the command line as Python functions, for scripts and notebooks.

    run = jumpahead.run("studies/demo.toml", overrides=["train.tokens=300_000"])
    jumpahead.Frontier.load(run).ask(delta_loss=0.2)

    run = jumpahead.train_on(tensors, series=[{"architecture": "topk", "k": [4, 8]}], width=512, tokens=200_000,
                             out="runs/vision")
    jumpahead.Frontier.load(run).ask(l0=6)

`jumpahead` exports `run`, `train_on`, `load` and `register`; import the others from here. All raise JumpaheadError,
with one sentence that says what to change. Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.errors import StudyError

if TYPE_CHECKING:
    from jumpahead.frontier import Answer
    from jumpahead.planning.dry_run import DryRunResult
    from jumpahead.planning.plan import Plan
    from jumpahead.progress import Progress
    from jumpahead.sae.saved import SAE
    from jumpahead.study.schema import Study

PathLike = str | os.PathLike[str]
StudyLike = PathLike | Mapping[str, Any]
"""A study's TOML file, or its tables."""


class HarvestResult(NamedTuple):
    """The activations that `harvest` has written."""

    folder: Path
    """The folder of the activations."""
    is_complete: bool
    """False if parts that other processes write are missing."""


class EfficiencyResult(NamedTuple):
    """The measurements of `efficiency`."""

    measurements: dict[str, Any]
    """The shapes, implementations and times, as JSON values."""
    saved: list[Path]
    """The files that were written; none if the measurement was interrupted."""


# ---------------------------------------------------------------------------------------------- studies


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

    loaded = _load(study, overrides, "plan")
    return make_plan(loaded, _run_folder(loaded, out), measure=measure)


def dry_run(study: StudyLike, *, overrides: Sequence[str] = (), progress: Progress | None = None) -> DryRunResult:
    """Run a study from text to page with two steps per SAE, in a temporary folder; return what it took."""
    from jumpahead.planning.dry_run import perform_dry_run

    return perform_dry_run(_load(study, overrides, "dry_run"), progress)


def run(
    study: StudyLike,
    *,
    out: PathLike | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run the stages of a study that are not done, from text to page; return the run's folder.

    out: the folder, by default runs/NAME. overrides: as after `--set`, such as "train.lr=3e-4"; only for a file.
    until: the stage to stop after, one of `pipeline.STAGES`.

    If interrupted, it saves its state, and the same call continues.
    """
    from jumpahead.pipeline.run import run_study
    from jumpahead.storage.run_folder import Run
    from jumpahead.study.save import to_toml

    loaded = _load(study, overrides, "run")
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
    loaded = _load(study, overrides, "harvest")
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


def _load(study: StudyLike, overrides: Sequence[str], caller: str) -> Study:
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


# ---------------------------------------------------------------------------------------------- runs


def ask(run: PathLike, **question: Any) -> Answer:
    """Return the cost of each series of a run at a loss, L0 or other metric. question: keywords of `Frontier.ask`."""
    from jumpahead.frontier import Frontier

    return Frontier.load(run).ask(**question)


def show(run: PathLike) -> None:
    """Print the frontier of a run in the terminal."""
    from jumpahead.frontier import Frontier
    from jumpahead.report import terminal

    terminal.print_frontier(Frontier.load(run))


def report(run: PathLike) -> Path:
    """Write the page of a run again; return its path."""
    from jumpahead.report import write_report

    return write_report(Path(run))


# ---------------------------------------------------------------------------------------------- SAEs


def load(sae: PathLike) -> SAE:
    """Return an SAE of any make: of jumpahead, SAELens, Gemma Scope, dictionary_learning, sparsify or llamascopium.

    sae: its folder or its file of weights, or `hf://user/repo/path@revision` for one on the Hugging Face hub. Raises
    ArtefactError, naming file and key, if it is missing, damaged or in no known format.
    """
    from jumpahead.formats import load

    return load(sae)


def export(sae: PathLike, *, to: str, out: PathLike) -> Path:
    """Write an SAE of any make in the format of another library; return the folder, which is `out`.

    to: the format, one of `jumpahead.formats.FORMATS`, such as `saelens`.

    Raises StudyError if the folder has files in it, or if the format has no place for the SAE's activation function.
    """
    from jumpahead.formats import load, save

    target = Path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise StudyError(f"{target} exists: name an empty or new folder with --out.")
    return save(load(sae), to, target)


def evaluate(
    saes: Sequence[PathLike],
    *,
    lm: str | None = None,
    text: str = "stdlib",
    site: str | None = None,
    tokens: int = 100_000,
    overrides: Sequence[str] = (),
    out: PathLike | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure SAEs of any make on held-out text, with the metrics of a run; return the evaluations, as JSON values.

    saes: as `load` takes them. lm: `tiny`, a Hugging Face folder or a name on the hub; by default the model that all of
    them were trained for. text: as `text.source` in a study. site: where they are spliced in; by default where each was
    trained. tokens: held-out tokens that are scored. overrides: further keys of the tables `lm`, `text` and `evaluate`
    of a study, such as "lm.dtype=bfloat16". out: a JSON file to write.
    """
    from jumpahead.evaluation.on_text import evaluate_on_text
    from jumpahead.formats import load
    from jumpahead.lm.model import LM
    from jumpahead.progress import make_progress
    from jumpahead.storage.json_files import write_json
    from jumpahead.study.evaluation import parse_evaluation

    loaded = {str(sae): load(sae) for sae in saes}
    known = {sae.location.lm for sae in loaded.values()}
    model = lm or (known.pop() if len(known) == 1 else None)
    if model is None:
        raise StudyError("evaluate: name the language model with --lm: the SAEs do not say one, or say different ones.")
    tables = {"lm": {"model": model}, "text": {"source": text}, "evaluate": {"tokens": tokens}}
    config = parse_evaluation(tables, overrides)
    whole, progress = LM.load(config.lm), progress or make_progress()
    found = evaluate_on_text(
        loaded, whole, config.text, site=site, tokens=config.evaluate.tokens, replicates=config.evaluate.replicates,
        packing=config.lm.packing, progress=progress,
    )  # fmt: skip
    result = {"schema": "jumpahead.evaluations/1", "lm": whole.name, "text": config.text.source, "saes": found}
    if out is not None:
        write_json(Path(out), result)
    return result


# ---------------------------------------------------------------------------------------------- this machine


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
    defaults = defaults_from_study(_load(path, (), "efficiency")) if path else ShapeDefaults()
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


# ---------------------------------------------------------------------------------------------- extensions


def register(member: type[Any], name: str | None = None) -> type[Any]:
    """Add a subclass of Architecture, Activations, Source or Format to its registry, in this process; return the class.

    name: its name in studies; by default the class's `name`, or the class name in lower case. Usable as a decorator. To
    add it in every process, declare an entry point instead (registry.py). Raises StudyError if the name is taken, or if
    the class extends none of the four.
    """
    from jumpahead.activations.base import Activations
    from jumpahead.activations.origins import ORIGINS
    from jumpahead.formats import FORMATS
    from jumpahead.interchange.format import Format
    from jumpahead.sae.architecture import Architecture
    from jumpahead.sae.architectures import ARCHITECTURES
    from jumpahead.text.source import Source
    from jumpahead.text.sources import SOURCES

    registries = ((Architecture, ARCHITECTURES), (Activations, ORIGINS), (Source, SOURCES), (Format, FORMATS))
    for base, registry in registries:
        if isinstance(member, type) and issubclass(member, base):
            registry.register(member, name or getattr(member, "name", "") or member.__name__.lower())
            return member
    raise StudyError(f"register: {member!r} extends neither Architecture, Activations, Source nor Format.")
