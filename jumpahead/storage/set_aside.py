"""Set results of other inputs aside instead of overwriting them, and bring them back when a study needs them again.

    set_aside/saes/<site>/<width>/<series>/<setting>_seed-<s>/
      <inputs>/                   an SAE, or its checkpoint, with this digest of inputs
      evaluation-<inputs>.json    an evaluation with other options
    set_aside/damaged/            damaged files, at their paths in the run

Every move is one rename: a killed process leaves each result in one of the two places.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from jumpahead.errors import ArtefactError
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.folders import remove_path
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import RunPaths, SAEFolder
from jumpahead.storage.tensors import read_tensors_info

INDEX_SCHEMA = "jumpahead.saes/1"
_DIGITS = 16  # of a digest in a file's name


class StoredSAE(NamedTuple):
    """An SAE's folder: the inputs that it was made from."""

    inputs: str
    """Digest of the inputs."""
    made_from: dict[str, Any]
    """The values that are digested."""
    steps: int
    """Steps that are done."""
    is_finished: bool
    """False for a checkpoint."""


def stored_sae(folder: SAEFolder) -> StoredSAE | None:
    """Return what a folder holds, a finished SAE or a checkpoint; None if it holds neither, or nothing readable."""
    try:
        config = folder.read_config()
        return StoredSAE(config["inputs"], config.get("made_from", {}), config.get("steps", 0), is_finished=True)
    except (ArtefactError, KeyError):
        pass
    try:
        info = read_tensors_info(folder.checkpoint_state)
        return StoredSAE(info["inputs"], info["made_from"], info["steps_done"], is_finished=False)
    except (ArtefactError, KeyError):
        return None


def aside_folder(run: RunPaths, key: str, inputs: str) -> SAEFolder:
    """Return the folder in which the SAE of a key with this digest of inputs is set aside."""
    return SAEFolder(run.set_aside / run.sae_folder(key).path.relative_to(run.folder) / inputs[:_DIGITS])


def is_set_aside(run: RunPaths, key: str, inputs: str) -> bool:
    """Return True if an SAE or checkpoint with this digest of inputs is set aside."""
    stored = stored_sae(aside_folder(run, key, inputs))
    return stored is not None and stored.inputs == inputs


def bring_to_place(run: RunPaths, key: str, inputs: str) -> None:
    """Make the folder of a key hold the SAE or checkpoint with this digest of inputs, or nothing.

    What it holds of other inputs is set aside, unless nothing in it is readable: that is set aside as damaged.
    """
    folder = run.sae_folder(key)
    stored = stored_sae(folder)
    if stored is not None and stored.inputs == inputs:
        return
    if folder.path.exists():
        if stored is not None:
            _move(folder.path, aside_folder(run, key, stored.inputs).path)
        elif any(folder.path.iterdir()):
            set_aside_damaged(run, folder.path)
    if is_set_aside(run, key, inputs):
        _move(aside_folder(run, key, inputs).path, folder.path)


def bring_evaluation(run: RunPaths, key: str, inputs: str) -> None:
    """Make evaluation.json of a key the one with this digest of inputs if it is set aside; set another one aside."""
    path = run.sae_folder(key).evaluation
    if has_inputs(path, inputs):
        return
    folder = run.set_aside / path.parent.relative_to(run.folder)
    if path.exists():
        try:
            name = f"{path.stem}-{read_json(path)['inputs'][:_DIGITS]}{path.suffix}"
            _move(path, folder / name)
        except (ArtefactError, KeyError):
            set_aside_damaged(run, path)
    aside = folder / f"{path.stem}-{inputs[:_DIGITS]}{path.suffix}"
    if has_inputs(aside, inputs):
        _move(aside, path)


def set_aside_damaged(run: RunPaths, path: Path) -> None:
    """Move a damaged file or folder out of the way, to its path below set_aside/damaged/."""
    _move(path, run.set_aside / "damaged" / path.relative_to(run.folder))


def _move(path: Path, target: Path) -> None:
    """Rename a file or folder, replacing what is at `target`."""
    remove_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)


def write_sae_index(run: RunPaths, inputs: dict[str, str]) -> None:
    """Record the SAEs that the study refers to, if that changed. inputs: the digest of the inputs, by key."""
    index = {"schema": INDEX_SCHEMA, "saes": inputs}
    try:
        is_same = read_json(run.sae_index, INDEX_SCHEMA) == index
    except ArtefactError:
        is_same = False
    if not is_same:
        write_json(run.sae_index, index)


def read_sae_index(run: RunPaths) -> dict[str, str]:
    """Return the digests of the inputs of the SAEs that the study refers to, by key. Raises ArtefactError."""
    return read_json(run.sae_index, INDEX_SCHEMA)["saes"]
