"""The files that are published: every SAE in SAELens' layout, README.md, and for a run the figure of its frontier.

    README.md  frontier.svg  <site>/<width>/<series>/<setting>_seed-<s>/cfg.json, sae_weights.safetensors

Folders of this machine that stand in the names of the model or the text are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from jumpahead import formats
from jumpahead.errors import ArtefactError
from jumpahead.frontier import Frontier
from jumpahead.publishing.card import CardFacts, model_card
from jumpahead.report.svg import frontier_svg
from jumpahead.sae.saved import SAE
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import PublishedFolder
from jumpahead.storage.run_folder import Run
from jumpahead.storage.tensors import read_tensors, write_tensors

WeightsDtype = Literal["float32", "bfloat16", "float16"]
WEIGHTS_DTYPES: tuple[WeightsDtype, ...] = ("float32", "bfloat16", "float16")
FORMAT = "saelens"


class Published(NamedTuple):
    """A file that is published."""

    path: str
    """Path in the repository."""
    bytes: int


def write_folder(source: Path | str, target: Path, *, repo: str, dtype: WeightsDtype, licence: str) -> list[Published]:
    """Write what is published of an SAE or of a run into a folder; return its files, sorted.

    source: a run's folder, or an SAE as `formats.load` takes it. repo: `user/repo`, for the model card.

    Raises ArtefactError or StudyError if the SAE cannot be read, or if SAELens has no place for it.
    """
    published, run = PublishedFolder(target), _run_at(source)
    if run is None:
        sae = formats.load(source)
        saes = {_own_folder(sae): sae}
        facts = CardFacts.of_sae(repo, licence, saes)
    else:
        frontier = Frontier.load(run.folder)
        saes = {_folder_in(run, path): SAE.load(run.resolve(path)) for path in _paths(frontier)}
        if not saes:
            raise ArtefactError(f"{source} has no evaluated SAE: `jumpahead run` evaluates those that are trained.")
        figures = [published.figure(number) for number in range(len(frontier.data["panels"]))]
        for figure, panel in zip(figures, frontier.data["panels"], strict=True):
            write_atomic(figure, frontier_svg(frontier.data, panel))
        names = [figure.name for figure in figures]
        facts = CardFacts.of_run(repo, licence, _without_paths(frontier.data), saes, names)
    for name, sae in saes.items():
        _write_sae(sae, published.path / name, dtype)
    write_atomic(published.card, model_card(facts))
    files = (path for path in target.rglob("*") if path.is_file())
    return sorted(Published(path.relative_to(target).as_posix(), path.stat().st_size) for path in files)


def _run_at(source: Path | str) -> Run | None:
    """Return the run in a folder; None if there is none. Raises ArtefactError for a comparison."""
    if str(source).startswith("hf://") or not Run(Path(source).expanduser()).manifest.is_file():
        return None
    run = Run.open(Path(source).expanduser())
    if not run.study.is_file():
        raise ArtefactError(f"{source} is a comparison: push the runs or the SAEs that it compares.")
    return run


def _paths(frontier: Frontier) -> Iterator[str]:
    """Yield the paths of the SAEs of a run, in the order of tables."""
    for panel in frontier.data["panels"]:
        for point in panel["points"]:
            yield point["path"]


def _folder_in(run: Run, path: str) -> str:
    """Return the folder of a run's SAE in the repository: without `saes/`."""
    return run.relative(run.resolve(path)).removeprefix("saes/")


def _own_folder(sae: SAE) -> str:
    """Return the folder of a single SAE in the repository."""
    site = re.sub(r"[^A-Za-z0-9._-]", "-", sae.location.site or "sae")
    return f"{site}/{sae.width}/{sae.architecture}"


def _write_sae(sae: SAE, folder: Path, dtype: WeightsDtype) -> None:
    """Write an SAE in SAELens' layout, its weights in a dtype."""
    about = dict(sae.about)
    if isinstance(about.get("lm"), dict):
        about["lm"] = about["lm"] | {"model": public_name(about["lm"].get("model"))}
    formats.save(SAE(sae.arch, sae.params, about), FORMAT, folder)
    if dtype == "float32":
        return
    weights, config = folder / formats.FORMATS.get(FORMAT).weights, folder / "cfg.json"
    write_tensors(weights, {name: value.to(getattr(torch, dtype)) for name, value in read_tensors(weights).items()})
    write_json(config, read_json(config, has_checksum=False) | {"dtype": dtype}, has_checksum=False)


def public_name(name: str | None) -> str | None:
    """Return the name of a model or of a text without the folders of this machine; names on the hub stay."""
    if name is None or re.fullmatch(r"(hf:)?[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", name):
        return name
    return name.rstrip("/").rpartition("/")[2]


def _without_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return frontier.json with public names of the model and the text."""
    lm, text = data["lm"], data["text"]
    return {
        **data,
        "lm": lm | {"name": public_name(lm["name"])},
        "text": text | {"source": public_name(text["source"])},
    }
