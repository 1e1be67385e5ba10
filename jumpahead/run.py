"""A study from Python: what `jumpahead run` does, for scripts and notebooks.

    run = jumpahead.run("studies/demo.toml", overrides=["train.tokens=300_000"])
    jumpahead.Frontier.load(run).ask(delta_loss=0.2)

Overrides are what the command takes after `--set`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpahead import log, store, sweep
from jumpahead import study as studies
from jumpahead.errors import StudyError


def run(
    study: str | os.PathLike[str] | Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
    progress: log.Progress | None = None,
) -> Path:
    """Does what of a study is not done yet, from text to page; returns the run's folder.

    study: a TOML file, or its tables. out: the folder, by default runs/NAME. overrides: such as "train.lr=3e-4", for a
    file. until: the stage to stop after, `tokens`, `activations`, `train` or `evaluate`.

    JumpaheadError in one sentence for whatever is wrong. Interrupted, it saves, and the same call goes on from there.
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
