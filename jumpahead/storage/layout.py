"""Where everything lies: the only file that knows file names.

runs/NAME/                      RunPaths(folder)
  manifest.json                 versions, hardware, digests of inputs; its presence makes the folder a run
  study.toml                    the resolved study
  precision.json                the dtype that `lm.dtype = "fast"` resolved to, and why
  checks.json                   the checks that the language model passed before it was used
  warm_starts.json              digest inputs of the SAEs that series were warm-started from
  stdin.txt                     the text, if it came from standard input
  tokens/  activations/         shards
  saes/<site>/<width>/<series>/<setting>_seed-<s>[_stream-<t>]/        SAEFolder
    weights.safetensors  config.json  train.jsonl  evaluation.json  checkpoint/
  frontier.json  efficiency.json  report.html  features/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jumpahead.errors import ArtefactError
from jumpahead.storage.digests import has_inputs

SettingLike = Mapping[str, Any] | tuple[str, float]
"""The sparsity setting of an SAE: {"kind", "value"} or (kind, value), for instance `jumpahead.sae.recipe.Setting`."""


def setting_text(setting: SettingLike) -> str:
    """Return `l0-16`, `lambda-0.0006` or `k-32`: the part of a folder's name that differs between settings."""
    kind, value = (setting["kind"], setting["value"]) if isinstance(setting, Mapping) else setting
    return f"{kind}-{_shortest_decimal(value)}"


def _shortest_decimal(value: float) -> str:
    """Return the shortest decimal text that reads back as `value`, without `.0`."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def sae_key(site: str, width: int, series: str, setting: SettingLike, sae_seed: int, stream_seed: int = 0) -> str:
    """Return the path of an SAE's folder relative to the run, with `/` between its parts."""
    last = f"{setting_text(setting)}_seed-{sae_seed}" + (f"_stream-{stream_seed}" if stream_seed else "")
    return "/".join(("saes", require_safe_name(site), str(width), require_safe_name(series), last))


def require_safe_name(name: str) -> str:
    """Return `name` unchanged. Raises ArtefactError if it cannot be the name of one folder."""
    if not name or name.startswith(".") or any(not (c.isalnum() or c in "._-") for c in name) or not name.isascii():
        raise ArtefactError(f"{name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'.")
    return name


class SAEFolder(NamedTuple):
    """The files of one SAE. `config.json` is written last: it marks the SAE as trained, from the inputs it names."""

    path: Path
    """The folder."""

    @property
    def config(self) -> Path:
        """Return the path of the SAE's description: architecture, recipe, site, digest of its inputs."""
        return self.path / "config.json"

    @property
    def weights(self) -> Path:
        """Return the path of the parameters, which take the language model's own activations."""
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
        """Return the folder of the training state; it is empty or absent once training is done."""
        return self.path / "checkpoint"

    def is_done(self, inputs: str) -> bool:
        """Return whether the SAE is trained and saved, from these inputs (a digest)."""
        return has_inputs(self.config, inputs) and self.weights.is_file()

    def is_evaluated(self, inputs: str) -> bool:
        """Return whether the SAE is evaluated, from these inputs (a digest of the SAE and the evaluation settings)."""
        return has_inputs(self.evaluation, inputs)


class RunPaths:
    """The paths of one run."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """Return the run's name, which is its folder's."""
        return self.folder.resolve().name

    @property
    def lock_file(self) -> Path:
        """Return the path of the file that is locked by the process that writes the run."""
        return self.folder / ".lock"

    @property
    def study(self) -> Path:
        """Return the path of the resolved study."""
        return self.folder / "study.toml"

    @property
    def manifest(self) -> Path:
        """Return the path of the file that says which versions and which hardware made the run."""
        return self.folder / "manifest.json"

    @property
    def precision(self) -> Path:
        """Return the path of the decision for the language model's dtype."""
        return self.folder / "precision.json"

    @property
    def checks(self) -> Path:
        """Return the path of the record of the language model's checks."""
        return self.folder / "checks.json"

    @property
    def warm_starts(self) -> Path:
        """Return the path of the digest inputs of warm-start SAEs, kept in case those are deleted."""
        return self.folder / "warm_starts.json"

    @property
    def stdin(self) -> Path:
        """Return the path of the text that was read from standard input."""
        return self.folder / "stdin.txt"

    @property
    def tokens(self) -> Path:
        """Return the folder of tokens; `text/contexts.py` knows what is inside."""
        return self.folder / "tokens"

    @property
    def tokens_provenance(self) -> Path:
        """Return the path of the inputs that the tokens were made from, kept in case those are deleted."""
        return self.tokens / "provenance.json"

    @property
    def activations(self) -> Path:
        """Return the folder of activations; the origin of activations knows what is inside."""
        return self.folder / "activations"

    @property
    def frontier(self) -> Path:
        """Return the path of the frontier: the metrics of all SAEs, and comparisons."""
        return self.folder / "frontier.json"

    @property
    def efficiency(self) -> Path:
        """Return the path of the measured cost of a training step; absent unless `jumpahead efficiency` was run."""
        return self.folder / "efficiency.json"

    @property
    def report(self) -> Path:
        """Return the path of the HTML report."""
        return self.folder / "report.html"

    @property
    def features(self) -> Path:
        """Return the folder of feature pages."""
        return self.folder / "features"

    def sae_folder(self, key: str) -> SAEFolder:
        """Return the folder of the SAE with this `sae_key`, whether or not it exists."""
        return SAEFolder(self.resolve(key))

    def saved_saes(self) -> list[SAEFolder]:
        """Return every SAE that has been saved, in the order of paths."""
        return [SAEFolder(path.parent) for path in sorted(self.folder.glob("saes/*/*/*/*/config.json"))]

    def relative(self, path: str | os.PathLike[str]) -> str:
        """Return a path inside the run as JSON files hold it: relative to the run, with `/`."""
        return Path(path).relative_to(self.folder).as_posix()

    def resolve(self, relative: str) -> Path:
        """Return the path for a text from `relative`. Raises ArtefactError if it leads out of the run."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or ":" in relative:
            raise ArtefactError(
                f"{self.folder} refers to {relative!r}, which is outside of it: the run is foreign or damaged."
            )
        return self.folder / parts
