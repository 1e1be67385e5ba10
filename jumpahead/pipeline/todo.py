"""Which SAEs will be trained, and why: the SAEs of a study beside what its run holds, before anything is changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jumpahead.errors import ArtefactError
from jumpahead.pipeline.provenance import Provenance
from jumpahead.storage.layout import SAEFolder
from jumpahead.storage.run_folder import Run
from jumpahead.storage.set_aside import StoredSAE, aside_folder, is_set_aside, stored_sae
from jumpahead.study.schema import SAESpec

_CHANGES = {
    "tokens": "train.tokens",
    "batch": "train.batch",
    "version": "how this version of jumpahead trains",
    "revision": "how this version of jumpahead trains",
    "source": "the language model or the text",
    "origin": "activations.origin",
    "activations": "activations",
    "options": "options",
    "start": "the SAE of start_from",
}
"""What a study calls a digested value of an SAE. `recipe` follows from the others: it is looked at if they agree."""
_SHOWN = 3  # differences that a sentence lists, and sentences with values


class SAEState(NamedTuple):
    """The state of one SAE of a study in its run."""

    spec: SAESpec
    kind: str
    """`finished`, `set aside` (finished, comes back), `continues`, `new`, `damaged` or `other inputs`."""
    detail: str = ""
    """Of `continues` the step, of `damaged` a clause that names the file, of `other inputs` what differs."""


def sae_states(specs: Sequence[SAESpec], run: Run, provenance: Provenance) -> list[SAEState]:
    """Return the state of every SAE of the study in its run. Reads files only."""
    return [_sae_state(spec, run, provenance) for spec in specs]


def _sae_state(spec: SAESpec, run: Run, provenance: Provenance) -> SAEState:
    """Return the state of one SAE."""
    inputs, folder = provenance.sae_digest(spec), run.sae_folder(spec.key)
    stored = stored_sae(folder)
    if stored is not None and stored.inputs == inputs:
        return _state_of_same(spec, folder, stored)
    if is_set_aside(run, spec.key, inputs):
        aside = aside_folder(run, spec.key, inputs)
        found = stored_sae(aside)
        assert found is not None
        state = _state_of_same(spec, aside, found)
        return SAEState(spec, "set aside") if state.kind == "finished" else state
    if stored is not None:
        changed = describe_changes(stored.made_from, provenance.sae_inputs(spec))
        return SAEState(spec, "other inputs", changed)
    damaged = next((path for path in (folder.config, folder.checkpoint_state) if path.exists()), None)
    return SAEState(spec, "damaged", f"{damaged} is damaged") if damaged else SAEState(spec, "new")


def _state_of_same(spec: SAESpec, folder: SAEFolder, stored: StoredSAE) -> SAEState:
    """Return the state of an SAE whose folder holds the inputs of the study."""
    if not stored.is_finished:
        return SAEState(spec, "continues", f"{stored.steps:,}")
    try:
        folder.check()
    except ArtefactError as exc:
        return SAEState(spec, "damaged", str(exc).partition(": ")[0])
    return SAEState(spec, "finished")


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between the digested values of two SAEs: `train.tokens is 20,480, was 1,000,000`."""
    found = _differences(before, now, [key for key in _CHANGES if key in before or key in now])
    if not found:
        recipe: tuple[Any, Any] = before.get("recipe", {}), now.get("recipe", {})
        found = [f"recipe.{text}" for text in _differences(*recipe, sorted({*recipe[0], *recipe[1]}))]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(dict.fromkeys(found[:_SHOWN])) + more or "its inputs are others"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return a clause for each of `keys` whose value differs. Values that are no numbers or words are not shown."""
    clauses = []
    for key in keys:
        old, new = before.get(key), now.get(key)
        if old == new or (isinstance(new, tuple) and old == list(new)):
            continue
        name = _CHANGES.get(key, key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            clauses += [f"{name}.{text}" for text in _differences(old, new, sorted({*old, *new}))]
        elif key in ("source", "version", "revision", "start") or isinstance(old, list | dict):
            clauses.append(f"{name} changed")
        else:
            clauses.append(f"{name} is {_shown(new)}, was {_shown(old)}")
    return clauses


def _shown(value: Any) -> str:
    """Return a number or word as it is shown; numbers with thousands separators."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "not set"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def todo_sentences(states: Sequence[SAEState], folder: object) -> list[str]:
    """Return sentences that say what will be trained and why; none if nothing is to be done.

    folder: where results of other inputs are set aside.
    """
    count = Counter(state.kind for state in states)
    total, said = len(states), []

    def add(kind: str, sentence: Callable[[int, str], str]) -> None:
        details = Counter(state.detail for state in states if state.kind == kind)
        if len(details) > _SHOWN:  # values differ from SAE to SAE: the names are enough
            without = Counter[str]()
            for detail, number in details.items():
                without[re.sub(r" is [^,]+, was [^,]+?(?=,| and |$)", " changed", detail)] += number
            details = without
        said.extend(sentence(number, detail) for detail, number in details.items())

    if count["finished"] == total:
        return []
    if count["finished"]:
        said.append(f"{count['finished']} of {total} SAEs are trained already.")
    if number := count["set aside"]:
        said.append(f"{number} of {total} SAEs were trained before and set aside: they come back.")
    add("new", lambda number, _: f"{number} of {total} SAEs are new and will be trained.")
    add("continues", lambda number, step: f"{number} of {total} SAEs continue at step {step}.")
    add("damaged", lambda number, what: f"{number} of {total} SAEs will be trained again: {what}.")
    add("other inputs", lambda number, why: f"{number} of {total} SAEs will be trained from the start: {why}.")
    if count["other inputs"]:
        said.append(f"What is there of them is set aside in {folder}; the study that made it brings it back.")
    return said
