"""What the commands do, as Python functions: for scripts and notebooks.

run = jumpahead.run("studies/demo.toml", overrides=["train.tokens=300_000"])
jumpahead.Frontier.load(run).ask(delta_loss=0.2)

run = jumpahead.train_on(tensors, series=[{"architecture": "topk", "k": [4, 8]}], width=512, tokens=200_000,
                         out="runs/vision")
jumpahead.Frontier.load(run).ask(l0=6)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpahead import store, sweep
from jumpahead.activations.base import DTYPES
from jumpahead.activations.origins.tensors import rows_for, spool
from jumpahead.errors import StudyError
from jumpahead.progress import Progress, progress_on
from jumpahead.study import schema as studies


def run(
    study: str | os.PathLike[str] | Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run what is not done yet of a study, from text to page; return the run's folder.

    study: a TOML file, or its tables. out: the folder, by default runs/NAME. overrides: as after `--set`, such as
    "train.lr=3e-4", for a file. until: the stage to stop after, `tokens`, `activations`, `train` or `evaluate`.

    Raises JumpaheadError, in one sentence, for whatever is wrong. If interrupted it saves, and the same call continues.
    """
    if isinstance(study, Mapping):
        if overrides:
            raise StudyError("run: overrides are for a file; change the tables themselves.")
        loaded = studies.parse(study, "run")
        studies.check_files(loaded, "run")
    else:
        loaded = studies.load(Path(study), overrides)
    target = store.Run(Path("runs") / loaded.name if out is None else out)
    with target.working(studies.to_toml(loaded)):
        sweep.run(loaded, target, until, progress)
    return target.folder


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
    """Train every setting of every series on activations from anywhere; return the run's folder, which is `out`.

    It is a study with `activations.origin = "tensors"`: `jumpahead show`, `ask` and `report` take its run.

    tensors: an iterable of torch tensors or numpy arrays [n, d], a function that returns one, or the path of an .npy or
    .safetensors file or of a folder of them. series, width, tokens: as in a study (`tokens`: rows that each SAE is
    trained on). rows: how many are taken from the iterator and kept in `out`; by default enough that none is seen
    twice. site: what they are called. group: consecutive rows that are held out, and resampled, together; held_out:
    their share. tables: the study's other tables, such as train={"batch": 512}, activations={"dtype": "bfloat16"}.

    Raises JumpaheadError, in one sentence, for whatever is wrong with them. A second call trains what is missing.
    """
    path = str(tensors) if isinstance(tensors, str | os.PathLike) else ""
    raw = {name: dict(table) for name, table in tables.items()}
    options = {"source": path, "rows": group, "held_out": held_out}
    raw["activations"] = {**raw.get("activations", {}), "origin": "tensors", "sites": [site], "options": options}
    raw["sae"] = {**raw.get("sae", {}), "width": width}
    raw["train"] = {**raw.get("train", {}), "tokens": tokens}
    name = Path(out).resolve().name
    study = studies.parse({"name": name, **raw, "series": [dict(one) for one in series]}, "train_on")
    if rows is not None and rows < 1:
        raise StudyError(f"train_on: rows must be at least 1, not {rows}.")
    target, progress = store.Run(out), progress or progress_on()
    with target.working(studies.to_toml(study)):
        if not path:
            given: Any = tensors() if callable(tensors) else tensors
            wanted = rows or rows_for(study.train.tokens, held_out, group)
            dtype = DTYPES[study.activations.dtype]
            spool(given, target.activations, site=site, rows=wanted, dtype=dtype, group=group, progress=progress)
        sweep.run(study, target, progress=progress)
    return target.folder


def register(member: type[Any], name: str | None = None) -> type[Any]:
    """Add an architecture, an origin of activations or a kind of text source in this process; return it.

    name: what studies call it; by default the class's `name`, or its own name in lower case. For every process, declare
    it as an entry point instead (registry.py). Usable as a decorator. Raises StudyError if the name is taken, or if the
    class is none of the three.
    """
    from jumpahead.activations.base import Activations
    from jumpahead.activations.origins import ORIGINS
    from jumpahead.sae.architectures import ARCHITECTURES
    from jumpahead.sae.base import Architecture
    from jumpahead.text.source import Source
    from jumpahead.text.sources import SOURCES

    for base, registry in ((Architecture, ARCHITECTURES), (Activations, ORIGINS), (Source, SOURCES)):
        if isinstance(member, type) and issubclass(member, base):
            registry.register(member, name or getattr(member, "name", "") or member.__name__.lower())
            return member
    raise StudyError(f"register: {member!r} extends neither Architecture, Activations nor Source.")
