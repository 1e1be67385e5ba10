"""How an SAE is trained: the study's `[train]` table, and the recipe it resolves to.

All numbers are in the unit E‖x‖² = 1. Two recipes:

`paper` — arXiv 2407.14435 appendix I and Gemma Scope (arXiv 2408.05147) section 3.2, unchanged: made for 8e9 tokens.
`short` — the default, for any budget short of the paper's: there its log θ hardly moves (Adam moves log θ by at most
the learning rate per step). By rule from tokens, batch, d and L0:

    lr               rate/√d·(16/L0)^¼·(tokens/2e6)^−¼     short_rate; `rate` is the architecture's
    its schedule     cosine warm-up over 1/20 of the steps, constant, linear to zero over the last third
    Adam             β₁ = 0, β₂ = 0.98: a rare feature's step is at most 1/√(1 − β₂) = 7 times lr, with 0.999 it is 32
    θ                log θ at 2·lr, from the quantile of the first pre-activations that gives the L0 to start from
    ε                ε_i = min(half the median θ, 1.8·θ_i)
    κ                log θ decay to their median at 12·2·lr: rare features' thresholds drift up and away without it
    λ                moved by the controller (control.py), whose hands are the quicker the larger lr is (`with_hands`);
                     warmed up over a tenth of the steps where it is fixed
    dead             silent for a twentieth of the run; cared for in its first half, by the architecture's own means

An architecture may differ (`Architecture.tuned`). How these were found: benchmarks/sparsity/protocol.toml and
docs/LOG.md, 2026-11-24 and 26; measured at 2e6 and 2e7 tokens, d = 64 and 256, widths 1,024 and 2,048.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jumpahead.errors import StudyError, nearest
from jumpahead.sae.checked import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class TrainConfig(BaseModel):
    """The study's `[train]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(1_000_000, gt=0, description="activations each SAE is trained on (rows, not distinct tokens)")
    batch: int = Field(2048, gt=0, description="activations in one step")
    recipe: Literal["short", "paper"] = Field(
        "short", description="the hyper-parameters: for short runs, or as published"
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate; the recipe's own when left out")
    checkpoint_minutes: float = Field(2.0, gt=0, description="minutes between two checkpoints")
    threads: int | None = Field(None, gt=0, description="CPU threads; all cores when left out")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where SAEs train; auto: on a GPU if there is one"
    )

    @property
    def steps(self) -> int:
        """Training steps: the last incomplete batch is not trained on."""
        return self.tokens // self.batch


class Recipe(NamedTuple):
    """Every hyper-parameter of a run, resolved."""

    lr: float
    """Peak learning rate of Adam."""
    lr_start: float
    """Share of `lr` that the warm-up starts from."""
    lr_warmup: int
    """Steps of cosine warm-up from `lr_start`·lr to lr."""
    lr_decay: int
    """Steps at the end over which lr falls linearly to zero; 0 for a constant rate."""
    sparsity_warmup: int
    """Steps over which λ rises linearly from zero (fixed λ only)."""
    beta2: float
    """Adam's β₂; β₁ is 0 always: what makes lazy Adam exact."""
    adam_epsilon: float
    """Adam's ε."""
    threshold_form: Literal["log", "raw"]
    """Whether log θ or θ is the trained parameter."""
    threshold_rate: float
    """Learning rate of the trained threshold, in multiples of `lr`."""
    threshold_start: float | None
    """θ at the start; None: the quantile of the first pre-activations that gives the L0 to start from."""
    bandwidth: float | None
    """The STE's ε; None: ε_i = min(share·median θ, 1.8·θ_i), which follows θ and keeps ε_i ≤ 2θ_i."""
    bandwidth_share: float
    """That share."""
    centre: bool
    """Whether b_dec starts at the mean activation (else at zero)."""
    dead_after: int
    """Tokens without firing after which a feature counts as dead."""
    revival: float
    """Factor by which a dead feature's threshold shrinks every step; 1 leaves it alone."""
    revive_until: int
    """The step at which that, and resampling, ends: what comes back must have time to learn."""
    resample_every: int = 0
    """Steps between two rounds of starting dead features anew (engine/resample.py); 0 for never."""
    control_gain: float = 0.05
    """g of the controller (control.py): how fast λ's multiple follows the error of L0."""
    steering: float = 0.05
    """h of the controller: how far all thresholds move together, per step; 0 leaves L0 to λ."""
    threshold_pull: float = 0.0
    """κ: decoupled decay of `Architecture.gate` (log θ, or b_enc) towards its median over features. Each step takes
    κ·(its learning rate) of the distance; with Adam's steps of about that rate, it stays within about 1/κ."""
    l0_start: float = 1.0
    """The L0 (or k) asked for at the first step, in multiples of the requested one."""
    l0_steps: int = 0
    """Steps over which what is asked for falls to the requested L0, by the same factor in each."""


class Setting(NamedTuple):
    """What moves an SAE along its curve."""

    kind: str
    """`l0`: the mean number of active features asked for; `lambda`: the penalty's weight; `k`: features kept."""
    value: float

    @property
    def label(self) -> str:
        """For people: `l0 = 16`, `λ = 0.0006`, `k = 32`."""
        return f"{'λ' if self.kind == 'lambda' else self.kind} = {self.value:g}"


class Shape(NamedTuple):
    """What a recipe is for."""

    d: int
    width: int
    setting: Setting


def recipe(config: TrainConfig) -> Recipe:
    """The hyper-parameters that `config` stands for, before an architecture has its say (Architecture.recipe_for)."""
    steps = config.steps
    if config.recipe == "paper":
        return Recipe(
            lr=config.lr or 7e-5,
            lr_start=0.1,
            lr_warmup=1_000,
            lr_decay=0,
            sparsity_warmup=10_000,
            beta2=0.999,
            adam_epsilon=1e-8,
            threshold_form="log",
            threshold_rate=1.0,
            threshold_start=0.001,
            bandwidth=0.001,
            bandwidth_share=1.0,
            centre=False,
            dead_after=10_000_000,
            revival=1.0,
            revive_until=0,
        )
    return Recipe(
        lr=config.lr or 4e-3,
        lr_start=0.1,
        lr_warmup=min(1_000, max(1, steps // 20)),
        lr_decay=steps // 3,
        sparsity_warmup=min(10_000, max(1, steps // 10)),
        beta2=0.98,
        adam_epsilon=1e-8,
        threshold_form="log",
        threshold_rate=2.0,
        threshold_start=None,
        bandwidth=None,
        bandwidth_share=1.0,
        centre=True,
        dead_after=min(10_000_000, max(config.batch * 20, config.tokens // 20)),
        revival=1.0,
        revive_until=steps // 2,
    )


def short_rate(rate: float, shape: Shape, tokens: int) -> float:
    """The peak learning rate of the `short` recipe: rate/√d·(16/L0)^¼·(tokens/2e6)^−¼.

    Adam with β₁ = 0 moves every coordinate by about lr, a row by lr·√d: 1/√d was best at d = 64 and at 256. Between
    L0 8 and 32 the best rate hardly differs, but a large L0 diverges sooner. The budget's power leads from what is best
    at 2e6 tokens to the paper's 7e-5 at 8e9. All three: docs/LOG.md, 2026-11-24.
    """
    kind, value = shape.setting
    l0 = shape.d / 4 if kind == "lambda" else max(value, 1.0)
    return rate / math.sqrt(shape.d) * (L0_AT / l0) ** 0.25 * (max(tokens, LEAST_TOKENS) / TOKENS_AT) ** -0.25


L0_AT, TOKENS_AT = 16, 2_000_000
"""Where an architecture's `rate` is tuned."""
LEAST_TOKENS = 1_000_000
"""Shorter runs get the learning rate of this budget."""
STEADY, QUICKEST = 4.5e-3, 3.0
"""The learning rate, at L0 16, up to which an architecture's own hands hold L0 within 3 %; and how many times as quick
they may become: at h = 0.3 an error still dies out."""


def with_hands(r: Recipe, shape: Shape) -> Recipe:
    """The recipe with quicker hands where weights move faster: g and h in proportion to the learning rate, as of L0 16.

    A step changes L0 by itself, more the larger lr is, and a hand h leaves it off by that drift over h: at d = 64 and
    2e6 tokens by 5 %, until the rate decays (docs/LOG.md, 2026-11-26).
    """
    quicker = min(QUICKEST, max(1.0, r.lr * (max(shape.setting.value, 1.0) / L0_AT) ** 0.25 / STEADY))
    return r._replace(control_gain=r.control_gain * quicker, steering=r.steering * quicker)


_RECIPE = TypeAdapter(Recipe)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def check_changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters by name, as a study's `series.recipe` gives them; StudyError for a wrong name or value."""
    known = recipe(TrainConfig.model_validate({}))._asdict()
    for name in given:
        if name not in known:
            raise StudyError(f"there is no hyper-parameter '{name}'.{nearest(name, list(known))}")
    try:
        whole = _RECIPE.validate_python(known | dict(given))._asdict()
    except ValidationError as error:
        found = error.errors()[0]
        wanted = found.get("ctx", {}).get("expected") or _KINDS.get(found["type"].partition("_")[0], "another value")
        raise StudyError(f"'{found['loc'][0]}' must be {wanted}, not {json.dumps(found['input'])}.") from error
    if not whole["l0_start"] > 0 or whole["l0_steps"] < 0 or whole["threshold_pull"] < 0:
        raise StudyError("'l0_start' must be positive, 'l0_steps' and 'threshold_pull' not negative.")
    return {name: whole[name] for name in given}


def recipe_from(saved: dict[str, Any]) -> Recipe:
    """A recipe as it was saved, by whatever version: what it does not say is the default's."""
    known = recipe(TrainConfig.model_validate({}))._asdict()
    return Recipe(**known | {name: value for name, value in saved.items() if name in known})


def learning_rate(r: Recipe, step: int, steps: int) -> float:
    """Adam's learning rate at `step` (0-based) of `steps`: cosine warm-up, constant, linear decay to zero."""
    warm = 1.0
    if step < r.lr_warmup:
        warm = r.lr_start + (1 - r.lr_start) * 0.5 * (1 - math.cos(math.pi * step / r.lr_warmup))
    fade = min(1.0, (steps - step) / r.lr_decay) if r.lr_decay else 1.0
    return r.lr * warm * fade


LATER = {name: Recipe._field_defaults[name] for name in ("threshold_pull", "l0_start", "l0_steps")}
"""Hyper-parameters that came after SAEs had been trained without them: at these values the digests of those stand."""


def digested(r: Recipe) -> dict[str, Any]:
    """A recipe as it enters an SAE's digest."""
    return {name: value for name, value in r._asdict().items() if name not in LATER or value != LATER[name]}


def wanted_l0(r: Recipe, setting: Setting, step: int) -> float:
    """The L0 (or k) asked for in `step` (0-based): l0_start times the requested one, falling to it over l0_steps."""
    left = max(0.0, 1 - step / r.l0_steps) if r.l0_steps else 0.0
    return setting.value * r.l0_start**left


def sparsity_warmup(r: Recipe, step: int) -> float:
    """The share of λ in force at `step` (0-based)."""
    return min(1.0, (step + 1) / r.sparsity_warmup)
