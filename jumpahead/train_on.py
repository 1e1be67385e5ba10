"""SAEs on any activations: an iterator of tensors in, a run's folder with SAEs and a frontier by FVU out.

    run = jumpahead.train_on(tensors, series=[{"architecture": "topk", "k": [4, 8]}], width=512, tokens=200_000,
                             out="runs/vision")
    jumpahead.Frontier.load(run).ask(l0=6)

It is a study with `activations.origin = "tensors"`, and `jumpahead show`, `ask` and `report` take its run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpahead import log, store, sweep
from jumpahead import study as studies
from jumpahead.activations.base import DTYPES
from jumpahead.activations.tensors import rows_for, spool
from jumpahead.errors import StudyError


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
    progress: log.Progress | None = None,
    **tables: Mapping[str, Any],
) -> Path:
    """Trains every setting of every series on activations from anywhere; returns the run's folder, which is `out`.

    tensors: an iterable of torch tensors or numpy arrays [n, d], a function that returns one, or the path of an .npy or
    .safetensors file or of a folder of them. series, width, tokens: as in a study (`tokens`: rows that each SAE is
    trained on). rows: how many are taken from the iterator and kept in `out`; by default enough that none is seen
    twice. site: what they are called. group: consecutive rows that are held out, and resampled, together; held_out:
    their share. tables: the study's other tables, such as train={"batch": 512}, activations={"dtype": "bfloat16"}.

    JumpaheadError in one sentence for whatever is wrong with them. Calling it twice trains only what is missing.
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
    target, progress = store.Run(out), progress or log.progress()
    with target.working(studies.to_toml(study)):
        if not path:
            given: Any = tensors() if callable(tensors) else tensors
            wanted = rows or rows_for(study.train.tokens, held_out, group)
            dtype = DTYPES[study.activations.dtype]
            spool(given, target.activations, site=site, rows=wanted, dtype=dtype, group=group, progress=progress)
        sweep.run(study, target, progress=progress)
    return target.folder
