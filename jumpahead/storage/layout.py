"""The folder layout of a run. File names are defined in this module alone.

runs/NAME/                      RunPaths(folder)
  manifest.json                 versions, hardware, digests of inputs; its presence makes the folder a run
  study.toml                    the resolved study
  precision.json                the dtype that `lm.dtype = "fast"` resolved to, and why
  checks.json                   the checks that the language model passed before it was used
  warm_starts.json              digest inputs of the SAEs that provided initial weights
  stdin.txt                     the text, if it came from standard input
  tokens/  activations/         shards
  saes/<site>/<width>/<series>/<setting>_seed-<s>[_stream-<t>]/        SAEFolder
    weights.safetensors  config.json  train.jsonl  evaluation.json  checkpoint/
  saes.json                     the SAEs that the study refers to, with the digests of their inputs
  set_aside/                    SAEs, checkpoints and evaluations of studies with other inputs (set_aside.py)
  evaluation_state/             sums of an interrupted evaluation
  frontier.json  efficiency.json  report.html
  features/                     FeaturesFolder: index.html to open, and its data
  figures/                      figures for a paper, <site>-<width>-<figure>.pdf and .png

A comparison (`jumpahead compare`) has manifest.json, frontier.json, report.html, and evaluations/ of SAEs elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jumpahead.errors import ArtefactError
from jumpahead.storage.artefacts import RUN_COMMAND, damaged_artefact_error
from jumpahead.storage.digests import digest_file, has_inputs
from jumpahead.storage.json_files import read_json
from jumpahead.storage.tensors import read_tensors_digest

SAE_SCHEMA = "jumpahead.sae/2"
STATE_FILE = "state.safetensors"
"""The file of a checkpoint."""

SettingLike = Mapping[str, Any] | tuple[str, float]
"""The sparsity setting of an SAE: {"kind", "value"} or (kind, value), for instance `jumpahead.sae.recipe.Setting`."""


def setting_text(setting: SettingLike) -> str:
    """Return a sparsity setting as text for folder names, such as `l0-16`, `lambda-0.0006` or `k-32`."""
    kind, value = (setting["kind"], setting["value"]) if isinstance(setting, Mapping) else setting
    return f"{kind}-{_shortest_decimal(value)}"


def _shortest_decimal(value: float) -> str:
    """Return the shortest decimal text that parses to `value`; integers have no `.0`."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def sae_key(site: str, width: int, series: str, setting: SettingLike, sae_seed: int, stream_seed: int = 0) -> str:
    """Return the path of an SAE's folder relative to the run's folder, separated by `/`.

    series: name of the series (an architecture with its options).
    """
    last = f"{setting_text(setting)}_seed-{sae_seed}" + (f"_stream-{stream_seed}" if stream_seed else "")
    return "/".join(("saes", require_safe_name(site), str(width), require_safe_name(series), last))


def require_safe_name(name: str) -> str:
    """Return `name` unchanged. Raises ArtefactError if it is not a safe name for a single folder."""
    if not name or name.startswith(".") or any(not (c.isalnum() or c in "._-") for c in name) or not name.isascii():
        raise ArtefactError(f"{name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'.")
    return name


class SAEFolder(NamedTuple):
    """The files of one SAE. `config.json`, with the digest of the inputs, is written last and marks it as trained.

    config.json also names the digests of the other files of the training, so that files of different SAEs do not mix.
    """

    path: Path
    """The folder."""

    @property
    def config(self) -> Path:
        """Return the path of the JSON file with the SAE's architecture, recipe, site and digest of inputs."""
        return self.path / "config.json"

    @property
    def weights(self) -> Path:
        """Return the path of the SAE's parameters, which apply to activations in the language model's unit."""
        return self.path / "weights.safetensors"

    @property
    def log(self) -> Path:
        """Return the path of the training log, one record per logged step."""
        return self.path / "train.jsonl"

    @property
    def evaluation(self) -> Path:
        """Return the path of the SAE's metrics on held-out data."""
        return self.path / "evaluation.json"

    @property
    def checkpoint(self) -> Path:
        """Return the folder of the training checkpoint, which is empty or absent once training is done."""
        return self.path / "checkpoint"

    @property
    def checkpoint_state(self) -> Path:
        """Return the path of the checkpoint's only file."""
        return self.checkpoint / STATE_FILE

    def file_digests(self, *, with_log: bool) -> dict[str, str]:
        """Return the digests, by file name, that config.json records: of the weights, and of the log if it is there."""
        log = {self.log.name: digest_file(self.log)} if with_log else {}
        return {self.weights.name: read_tensors_digest(self.weights), **log}

    def read_config(self) -> dict[str, Any]:
        """Return config.json. Raises ArtefactError if it is missing or damaged."""
        return read_json(self.config, SAE_SCHEMA)

    def check(self) -> dict[str, Any]:
        """Return config.json after checking that the log and the header of the weights are those it names.

        Raises ArtefactError if a file is missing, DamagedError if one is damaged. The values of the weights are
        verified when they are read.
        """
        config = self.read_config()
        for name, digest in config["files"].items():
            path = self.path / require_safe_name(name)
            is_weights = path == self.weights
            if (read_tensors_digest(path) if is_weights else digest_file(path)) != digest:
                raise damaged_artefact_error(path, "is not the file that its config.json names", RUN_COMMAND)
        return config

    def is_done(self, inputs: str) -> bool:
        """Return True if the SAE is trained and saved, undamaged, and its config records the digest `inputs`."""
        try:
            return has_inputs(self.config, inputs) and self.check()["inputs"] == inputs
        except ArtefactError:
            return False

    def is_evaluated(self, inputs: str) -> bool:
        """Return True if evaluation.json records `inputs`, the digest of the SAE and of the evaluation's options."""
        return has_inputs(self.evaluation, inputs)


class FeaturesFolder(NamedTuple):
    """The files of a folder of feature pages (features/pages.py). SAEs are named by `features_name`."""

    path: Path
    """The folder."""

    @property
    def page(self) -> Path:
        """Return the path of the page to open."""
        return self.path / "index.html"

    @property
    def contents(self) -> Path:
        """Return the path of the JSON file that names the SAEs and the digest of the inputs; it is written last."""
        return self.path / "features.json"

    def feature_list(self, sae: str) -> Path:
        """Return the path of the list of an SAE's features."""
        return self.path / sae / "list.js"

    def records(self, sae: str, number: int) -> Path:
        """Return the path of a file of an SAE's feature records, numbered from 0."""
        return self.path / sae / f"{number:04}.js"

    def passages(self, number: int) -> Path:
        """Return the path of a file of passages of the text, numbered from 0."""
        return self.path / "text" / f"{number:04}.js"

    def checkpoint(self, site: str) -> Path:
        """Return the path of the saved state of the pass over the text at a site."""
        return self.path / f"{require_safe_name(site)}.partial.safetensors"

    def neuronpedia(self, sae: str, number: int) -> Path:
        """Return the path of a file of features under Neuronpedia's names, numbered from 0."""
        return self.path / "neuronpedia" / sae / f"batch-{number}.json"


def features_name(key: str) -> str:
    """Return an SAE's name in a folder of feature pages: its key or path as one safe name."""
    parts = [part for part in PurePosixPath(key.replace("\\", "/")).parts if part not in ("/", "..", ".", "saes")]
    name = "_".join("".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in part) for part in parts)
    return name.lstrip(".") or "sae"


class PublishedFolder(NamedTuple):
    """The files beside the SAEs in a folder that is published on the hub."""

    path: Path
    """The folder."""

    @property
    def card(self) -> Path:
        """Return the path of the model card."""
        return self.path / "README.md"

    def figure(self, panel: int) -> Path:
        """Return the path of the figure of a panel, from 0."""
        return self.path / (f"frontier-{panel + 1}.svg" if panel else "frontier.svg")


class RunPaths:
    """The paths of one run."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """Return the name of the run: the name of its folder."""
        return self.folder.resolve().name

    @property
    def lock_file(self) -> Path:
        """Return the path of the lock file, which a process locks while it writes the run."""
        return self.folder / ".lock"

    @property
    def study(self) -> Path:
        """Return the path of the resolved study."""
        return self.folder / "study.toml"

    @property
    def manifest(self) -> Path:
        """Return the path of the manifest: versions, hardware, and digests of the run's inputs."""
        return self.folder / "manifest.json"

    @property
    def precision(self) -> Path:
        """Return the path of the record of the dtype that `lm.dtype = "fast"` resolved to."""
        return self.folder / "precision.json"

    @property
    def checks(self) -> Path:
        """Return the path of the record of the checks that the language model passed."""
        return self.folder / "checks.json"

    @property
    def warm_starts(self) -> Path:
        """Return the path of the digest inputs of warm-start SAEs, which remain if the SAEs are deleted."""
        return self.folder / "warm_starts.json"

    @property
    def stdin(self) -> Path:
        """Return the path of the text that was read from standard input."""
        return self.folder / "stdin.txt"

    @property
    def tokens(self) -> Path:
        """Return the folder of tokens, written and read by `text/contexts.py`."""
        return self.folder / "tokens"

    @property
    def tokens_provenance(self) -> Path:
        """Return the path of the record of the text and tokenizer that the tokens were computed from."""
        return self.tokens / "provenance.json"

    @property
    def activations(self) -> Path:
        """Return the folder of activations, written and read by the origin of activations (activations/origins/)."""
        return self.folder / "activations"

    @property
    def sae_index(self) -> Path:
        """Return the path of the record of the SAEs that the study refers to: the digest of the inputs, by key."""
        return self.folder / "saes.json"

    @property
    def set_aside(self) -> Path:
        """Return the folder of results of studies with other inputs, and of damaged files."""
        return self.folder / "set_aside"

    @property
    def evaluation_state(self) -> Path:
        """Return the folder of the sums of an interrupted evaluation."""
        return self.folder / "evaluation_state"

    @property
    def frontier(self) -> Path:
        """Return the path of frontier.json: the metrics of all SAEs and comparisons between series."""
        return self.folder / "frontier.json"

    def evaluation_file(self, inputs: str) -> Path:
        """Return the path of a comparison's evaluation of an SAE. inputs: digest of the evaluation's inputs."""
        return self.folder / "evaluations" / f"{inputs[:20]}.json"

    @property
    def efficiency(self) -> Path:
        """Return the path of the measured cost of a training step; absent unless `jumpahead efficiency` was run."""
        return self.folder / "efficiency.json"

    @property
    def report(self) -> Path:
        """Return the path of the HTML report."""
        return self.folder / "report.html"

    @property
    def figures(self) -> Path:
        """Return the folder of figures for a paper."""
        return self.folder / "figures"

    def figure(self, site: str, width: int | None, name: str, suffix: str) -> Path:
        """Return the path of a figure of the SAEs of one site and width, None for several.

        name: such as figure-2. suffix: pdf or png.
        """
        return self.figures / f"{require_safe_name(site)}-{width or 'all'}-{name}.{suffix}"

    @property
    def features(self) -> FeaturesFolder:
        """Return the folder of feature pages."""
        return FeaturesFolder(self.folder / "features")

    def sae_folder(self, key: str) -> SAEFolder:
        """Return the `SAEFolder` for a key from `sae_key`. The folder need not exist."""
        return SAEFolder(self.resolve(key))

    def saved_saes(self) -> list[SAEFolder]:
        """Return the folders of all saved SAEs, sorted by path."""
        return [SAEFolder(path.parent) for path in sorted(self.folder.glob("saes/*/*/*/*/config.json"))]

    def relative(self, path: str | os.PathLike[str]) -> str:
        """Return a path inside the run as text, relative to the run's folder and separated by `/`."""
        return Path(path).relative_to(self.folder).as_posix()

    def resolve(self, relative: str) -> Path:
        """Return the path for a relative path as text. Raises ArtefactError if the path leads out of the run."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or ":" in relative:
            raise ArtefactError(
                f"{self.folder} refers to {relative!r}, which is outside of it: the run is foreign or damaged."
            )
        return self.folder / parts
