"""Verify and clean a run's folder: every byte that carries a checksum, and what no study refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jumpahead.errors import ArtefactError
from jumpahead.storage.atomic import TEMPORARY_MARK
from jumpahead.storage.folders import remove_path
from jumpahead.storage.json_files import read_json, read_json_lines
from jumpahead.storage.layout import RunPaths, SAEFolder
from jumpahead.storage.run_folder import Run
from jumpahead.storage.set_aside import read_sae_index, stored_sae
from jumpahead.storage.tensors import verify_tensors


class Verification(NamedTuple):
    """The result of `verify_run`."""

    files: int
    """Files that were read."""
    bytes: int
    """Their size."""
    problems: list[str]
    """A sentence for every file that is damaged, and for every SAE of the study that is missing."""


def verify_run(folder: str | Path, on_file: Callable[[Path], None] = lambda path: None) -> Verification:
    """Read every file of a run that carries a checksum, and compare. on_file: called before each file.

    Raises ArtefactError if the folder is not a run.
    """
    run = Run.open(folder)
    files, size, problems = 0, 0, []
    for path in sorted(path for path in run.folder.rglob("*") if _carries_checksum(path)):
        if run.set_aside / "damaged" in path.parents:
            continue
        on_file(path)
        files, size = files + 1, size + path.stat().st_size
        problems += _problem(lambda path=path: _verify_file(path))
    saes = [*run.saved_saes(), *(SAEFolder(path.parent) for path in sorted(run.set_aside.rglob("config.json")))]
    for sae in saes:
        if run.set_aside / "damaged" not in sae.path.parents:
            problems += _problem(sae.check)
    problems += _missing_saes(run)
    return Verification(files, size, list(dict.fromkeys(problems)))


def _carries_checksum(path: Path) -> bool:
    """Return True for the files that are verified. Lock files and temporary files are not."""
    is_ours = path.suffix in (".json", ".jsonl", ".safetensors") and TEMPORARY_MARK not in path.name
    return is_ours and path.is_file()


def _verify_file(path: Path) -> object:
    """Read a file. Raises ArtefactError if it is damaged."""
    if path.suffix == ".jsonl":
        return read_json_lines(path)
    return read_json(path) if path.suffix == ".json" else verify_tensors(path)


def _problem(check: Callable[[], object]) -> list[str]:
    """Return the sentence of the ArtefactError that a check raises; an empty list if it raises none."""
    try:
        check()
    except ArtefactError as exc:
        return [str(exc)]
    return []


def _missing_saes(run: RunPaths) -> Iterator[str]:
    """Yield a sentence for every SAE of the study that is neither trained nor begun."""
    if not run.sae_index.exists():
        return
    try:
        index = read_sae_index(run)
    except ArtefactError:  # is among the problems already
        return
    for key, inputs in index.items():
        stored = stored_sae(run.sae_folder(key))
        if stored is None or stored.inputs != inputs:
            yield f"{run.resolve(key)} does not hold the SAE of the study: `jumpahead run` makes it."
        elif not stored.is_finished:
            yield f"{run.resolve(key)} is trained for {stored.steps:,} steps only: `jumpahead run` goes on."


class Unused(NamedTuple):
    """A file or folder that the study of a run does not refer to."""

    path: Path
    what: str
    """Why it is not needed."""
    bytes: int


def unused_results(run: RunPaths) -> list[Unused]:
    """Return what the run's study does not refer to: results that are set aside, and SAEs of settings left out.

    Raises ArtefactError if the run does not say which SAEs its study refers to.
    """
    index, found = read_sae_index(run), []
    if run.set_aside.exists():
        kinds = {"damaged": "damaged files", "saes": "SAEs and evaluations of other studies"}
        found += [(path, kinds.get(path.name, "set aside")) for path in sorted(run.set_aside.iterdir())]
    for path in sorted(path for path in run.folder.glob("saes/*/*/*/*") if path.is_dir()):
        stored = stored_sae(SAEFolder(path))
        key = run.relative(path)
        if key not in index:
            found.append((path, "an SAE that the study does not name"))
        elif stored is not None and stored.inputs != index[key]:
            found.append((path, "an SAE of other inputs"))
    return [Unused(path, what, _size(path)) for path, what in found]


def remove_unused(unused: Unused, run: RunPaths) -> None:
    """Remove a result, and the folders that it leaves empty, up to the run's folder."""
    remove_path(unused.path)
    for parent in unused.path.parents:
        if parent == run.folder or any(parent.iterdir()):
            return
        parent.rmdir()


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
