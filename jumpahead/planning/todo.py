"""The part of a study that is trained already, and what will be trained and why, as `run` will say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jumpahead.errors import JumpaheadError
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import Study, sae_specs
from jumpahead.text.source import Source


class Todo(NamedTuple):
    """The state of a study's SAEs in its run."""

    finished: int
    """SAEs that are trained, also those that are set aside."""
    sentences: list[str]
    """What will be trained and why; empty if everything is trained or nothing was begun."""


def find_todo(study: Study, run: Run, open_text: Callable[[], Source]) -> Todo:
    """Return what of a study is to do in its run's folder. Reads files only."""
    if not run.manifest.exists():
        return Todo(0, [])
    from jumpahead.pipeline.provenance import Provenance  # imports torch
    from jumpahead.pipeline.todo import sae_states, todo_sentences

    provenance = Provenance(study, run, open_text)
    try:
        if not provenance.is_precision_known():
            return Todo(0, ["The run first chooses the dtype of the language model; all SAEs depend on it."])
        states = sae_states(sae_specs(study), run, provenance)
    except JumpaheadError as exc:
        return Todo(0, [f"What is trained already cannot be told: {exc}"])
    finished = sum(state.kind in ("finished", "set aside") for state in states)
    is_begun = any(state.kind != "new" for state in states)
    return Todo(finished, todo_sentences(states, run.set_aside) if is_begun else [])
