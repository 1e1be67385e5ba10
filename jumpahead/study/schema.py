"""The tables of a study, and the SAEs it asks for.

    name = "demo"
    [lm]  [text]  [activations]  [train]   defined in lm/config.py, text/config.py, activations/, sae/recipe.py
    [sae]      width = [4096]   seed = [0]
    [stream]   seed = [0]
    [[series]] architecture = "jumprelu"   name (default: the architecture's)   options = {…}   recipe = {…}
               l0 = [4, 8, 16]             or lambda = [...], or k = [...]: exactly one
    [evaluate] tokens, replicates
    [features] saes, tokens: which SAEs get feature pages

A study trains one SAE per site × width × series × sparsity setting × sae.seed × stream.seed: `sae_specs`.
Reading is in load.py, rules that involve several keys in checks.py, the sentences of errors in messages.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jumpahead.activations.config import ActivationsConfig
from jumpahead.lm.config import LMConfig
from jumpahead.sae.recipe import Setting, TrainConfig
from jumpahead.storage.layout import sae_key
from jumpahead.study.tables import DataclassTable
from jumpahead.text.config import TextConfig

SETTING_KINDS = ("l0", "lambda", "k")
"""The keys of a series that hold sparsity settings."""


BRACKET_L0 = (8.0, 64.0)
"""Requested L0 of the first SAEs of a series that has only a `delta_loss`."""


class _Table(BaseModel):
    """A table of the study: immutable, without unknown keys, each field described by its docstring."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, populate_by_name=True
    )


class SAETable(_Table):
    """The SAEs: one per width and seed, at every site and sparsity setting."""

    width: tuple[Annotated[int, Field(ge=2, le=100_000_000)], ...] = Field(min_length=1)
    """Number of features per SAE. Each width is a panel of its own."""
    seed: tuple[Annotated[int, Field(ge=0, le=10**18)], ...] = Field(default=(0,), min_length=1)
    """Seeds of the initialisation: every SAE is trained once per seed."""


class StreamTable(_Table):
    """The order of the training data. All SAEs are trained on the same batches unless there are several seeds."""

    seed: tuple[Annotated[int, Field(ge=0, le=10**18)], ...] = Field(default=(0,), min_length=1)
    """Seeds of the order of the data: every SAE is trained once per seed."""


class EvaluateTable(_Table):
    """The evaluation of every SAE on held-out text."""

    tokens: int = Field(default=100_000, gt=0, le=10**12)
    """Number of held-out tokens scored with each SAE spliced into the language model."""
    replicates: int = Field(default=2000, ge=20, le=1_000_000)
    """Number of bootstrap replicates behind every interval. With 2,000, the width of an interval is within 3 %."""


class FeaturesTable(_Table):
    """Feature pages: what the features of some SAEs respond to, on held-out text."""

    saes: tuple[str, ...] = ("middle",)
    """SAEs that get pages. `middle`: of each series the SAE nearest to the middle L0. `all`; `none`: no pages. Or SAEs
    by name, such as `jumprelu/l0-16` (the end of the SAE's folder; the seed may be left out)."""
    tokens: int = Field(default=200_000, gt=0, le=10**12)
    """Number of held-out tokens that are searched for examples."""
    bias_features: int = Field(default=20, ge=0, le=100_000)
    """Number of features, the most frequent ones of each SAE, whose bias-likeness is measured. 0 measures none."""
    bias_tokens: int = Field(default=2_048, gt=0, le=10**9)
    """Number of held-out tokens that bias-likeness is measured on; each feature takes two forward passes."""


class Series(_Table):
    """One curve: an architecture with its options, trained at several sparsity settings.

    Give exactly one of `l0`, `lambda` and `k`; which of them an architecture accepts is listed with its options.
    """

    architecture: str
    """The SAE architecture, such as `jumprelu`, `gated` or `topk`."""
    name: str = ""
    """The name of the curve and of its folder; by default the architecture's name."""
    l0: tuple[float, ...] = ()
    """Requested L0: mean numbers of active features per token."""
    lambda_: tuple[float, ...] = Field(default=(), alias="lambda")
    """Fixed sparsity coefficients λ, for activations scaled to E‖x‖² = 1."""
    k: tuple[int, ...] = ()
    """Numbers of features kept per token."""
    delta_loss: tuple[float, ...] = ()
    """Requested delta LM losses, in nats per token, beside the settings above: SAEs are trained at interpolated L0
    until one has the loss. Without a setting, `l0 = [8, 64]` brackets the losses."""
    options: dict[str, Any] = {}
    """Options of the architecture."""
    recipe: dict[str, Any] = {}
    """Hyper-parameters that replace those of `train.recipe`, such as `{ lr = 2e-3, bandwidth_share = 0.5 }`."""
    start_from: str | None = None
    """Warm start: an SAE of any make whose weights all SAEs of the series start from, by its folder or file, relative
    to the current folder, or as `hf://user/repo/path@revision`. It must have the same architecture, width and d."""

    @model_validator(mode="before")
    @classmethod
    def _set_defaults(cls, raw: Any) -> Any:
        """Return the table with the architecture as its name if it has none, and a bracket of its requested losses."""
        if isinstance(raw, Mapping) and isinstance(raw.get("architecture"), str):
            bracket = {"l0": BRACKET_L0} if raw.get("delta_loss") and not any(map(raw.get, SETTING_KINDS)) else {}
            return {"name": raw["architecture"], **raw, **bracket}
        return raw

    @property
    def settings_by_kind(self) -> dict[str, tuple[float, ...]]:
        """Return the non-empty settings by kind; a study that loads has exactly one kind."""
        values = {"l0": self.l0, "lambda": self.lambda_, "k": self.k}
        return {kind: values[kind] for kind in SETTING_KINDS if values[kind]}

    @property
    def settings(self) -> list[Setting]:
        """Return the sparsity settings of its SAEs, in the order of the study."""
        return [Setting(kind, value) for kind, values in self.settings_by_kind.items() for value in values]


class Study(_Table):
    """A resolved study: sites in canonical form, series named, options filled in."""

    name: str
    """The name of the run's folder below runs/; by default the study file's name."""
    lm: LMConfig = LMConfig()
    text: TextConfig = TextConfig()
    activations: ActivationsConfig = ActivationsConfig()
    sae: SAETable
    stream: StreamTable = StreamTable()
    train: Annotated[TrainConfig, DataclassTable()] = TrainConfig()
    series: tuple[Series, ...] = Field(min_length=1)
    """The curves: one architecture each."""
    evaluate: EvaluateTable = EvaluateTable()
    features: FeaturesTable = FeaturesTable()


class SAESpec(NamedTuple):
    """One SAE to be trained."""

    site: str
    width: int
    series: Series
    setting: Setting
    sae_seed: int
    stream_seed: int

    @property
    def key(self) -> str:
        """Return its folder in the run: saes/<site>/<width>/<series>/<setting>_seed-<s>[_stream-<t>]."""
        return sae_key(self.site, self.width, self.series.name, self.setting, self.sae_seed, self.stream_seed)

    def is_called(self, name: str) -> bool:
        """Return True if `name` is the end of its key, with or without the seeds: `l0-16`, `jumprelu/l0-16_seed-0`."""
        return f"/{self.key}".endswith(f"/{name}") or f"/{self.key}".rpartition("_seed-")[0].endswith(f"/{name}")

    @property
    def label(self) -> str:
        """Return its name within a panel: `jumprelu l0 = 16`, `topk k = 32, seed 1, stream 2`."""
        seeds = [(" seed", self.sae_seed), (" stream", self.stream_seed)]
        return f"{self.series.name} {self.setting.label}" + "".join(f",{name} {seed}" for name, seed in seeds if seed)


def sae_specs(study: Study) -> list[SAESpec]:
    """Return every SAE of the study, panel by panel; within a setting, seed by seed."""
    return [
        SAESpec(site, width, series, setting, sae_seed, stream_seed)
        for site in study.activations.sites
        for width in study.sae.width
        for series in study.series
        for setting in series.settings
        for sae_seed in study.sae.seed
        for stream_seed in study.stream.seed
    ]
