"""Hyper-parameters: the study's `[train]` table and the recipe that it resolves to.

All numbers are in the unit of training, in which E‖x‖² = 1 (unit.py). Two recipes:

`paper` — arXiv 2407.14435 appendix I and Gemma Scope (arXiv 2408.05147) section 3.2, unchanged: made for 8e9 tokens.
`short` — the default, for any budget below the paper's: there its log θ hardly moves (Adam moves log θ by at most the
learning rate per step). By rule from tokens, batch, d and L0:

    unit             (x − μ)/C; rows longer than 10 times the median are scaled down to it
    lr               base_lr/√d·1.1·(16/L0)^⅛·(tokens/2e6)^−¼  `short_recipe_lr`; `base_lr` is the architecture's;
                     without momentum (16/L0)^¼ instead of 1.1·(16/L0)^⅛
    its schedule     cosine warm-up over 1/20 of the steps, constant, linear decay to zero over the last third
    Adam             β₁ = 0.9, β₂ = 0.95, with row momentum (engine/lazy_adam.py, `with_momentum`); in ReLU, ProLU and
                     runs in which features fire less than MIN_FIRINGS times (tokens·L0/M): β₁ = 0, β₂ = 0.98, no AuxK
                     of JumpReLU, no slower biases. Then a rare feature's step is at most 1/√(1 − β₂) = 7 times lr,
                     with 0.999 it is 32
    biases           b_enc and b_dec at 0.3·lr for JumpReLU, BatchTopK and their variants, 0.4·lr for Gated
    θ                log θ at 2·lr, from the quantile of the first pre-activations that gives the initial L0
    ε                ε_i = min(half the median θ, 1.8·θ_i)
    κ                log θ decay to their median at 12·2·lr: rare features' thresholds drift up and away without it
    λ                set by the controller (controller.py), whose gains grow with lr (`scale_controller_gains`); a fixed
                     λ is warmed up over a tenth of the steps
    dead features    silent for a twentieth of the run; resampled or revived in its first half, as the architecture says
    AuxK             in every fourth step, on features silent for 16·M/L0 tokens and two batches at least

An architecture may differ (`Architecture.short_recipe`). How these were found: benchmarks/sparsity/protocol.toml and
docs/LOG.md, 2026-11-24 and 26; measured at 2e6 and 2e7 tokens, d = 64 and 256, widths 1,024 and 2,048.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from jumpahead.sae.bounds import AtLeast, AtMost, GreaterThan, LessThan

UnitName = Literal["centred", "published"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training of every SAE."""

    tokens: Annotated[int, GreaterThan(0), AtMost(10**15)] = 1_000_000
    """Number of activations each SAE is trained on; an activation that is seen twice counts twice."""
    batch: Annotated[int, GreaterThan(0), AtMost(10_000_000)] = 2048
    """Number of activations per training step."""
    recipe: Literal["short", "paper"] = "short"
    """The hyper-parameters: `short` for any budget below the paper's, or `paper` as published."""
    lr: Annotated[float, GreaterThan(0), AtMost(1)] | None = None
    """Peak learning rate; by default the recipe's."""
    checkpoint_minutes: Annotated[float, GreaterThan(0)] = 2.0
    """Largest number of minutes between two checkpoints; the first ones come sooner, after 15 s, 30 s, 1 min."""
    threads: Annotated[int, GreaterThan(0), AtMost(4096)] | None = None
    """Number of CPU threads; by default all cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that SAEs are trained on; `auto` uses a GPU if there is one."""
    log_to: tuple[str, ...] = ()
    """Where training logs go beside train.jsonl: `tensorboard`, `wandb` (extras of these names), in the run's logs/."""

    @property
    def steps(self) -> int:
        """Return the number of training steps; a last, incomplete batch is dropped."""
        return self.tokens // self.batch


class Recipe(NamedTuple):
    """Every hyper-parameter of a run, resolved."""

    lr: Annotated[float, GreaterThan(0), AtMost(1)]
    """Peak learning rate of Adam."""
    lr_warmup_start: Annotated[float, AtLeast(0), AtMost(1)]
    """Learning rate at the first step, as a share of `lr`."""
    lr_warmup_steps: Annotated[int, AtLeast(0)]
    """Steps of cosine warm-up from `lr_warmup_start`·lr to lr."""
    lr_decay_steps: Annotated[int, AtLeast(0)]
    """Steps at the end over which lr falls linearly to zero; 0 for a constant rate."""
    sparsity_warmup_steps: Annotated[int, GreaterThan(0)]
    """Steps over which λ rises linearly from zero (fixed λ only)."""
    beta2: Annotated[float, AtLeast(0), LessThan(1)]
    """Adam's β₂."""
    adam_epsilon: Annotated[float, GreaterThan(0)]
    """Adam's ε."""
    threshold_form: Literal["log", "raw"]
    """The trained parameter: log θ, or θ itself."""
    threshold_lr_multiplier: Annotated[float, AtLeast(0)]
    """Learning rate of the trained threshold, in multiples of `lr`."""
    initial_threshold: Annotated[float, GreaterThan(0)] | None
    """θ at the start; None: the quantile of the first pre-activations that gives the initial L0."""
    bandwidth: Annotated[float, GreaterThan(0)] | None
    """ε of the straight-through estimator; None: ε_i = min(bandwidth_share·median θ, 1.8·θ_i), so that ε_i ≤ 2θ_i."""
    bandwidth_share: Annotated[float, GreaterThan(0)]
    """ε as a share of the median θ, if `bandwidth` is None."""
    centre_b_dec: bool
    """True if b_dec starts at the mean activation (else at zero)."""
    dead_after_tokens: Annotated[int, GreaterThan(0)]
    """Tokens without firing after which a feature counts as dead."""
    dead_threshold_factor: Annotated[float, GreaterThan(0), AtMost(1)]
    """Factor by which a dead feature's threshold shrinks in every step; 1 leaves it unchanged."""
    revive_until_step: Annotated[int, AtLeast(0)]
    """The step after which dead features are no longer revived or resampled: the last ones need time to learn."""
    resample_every: Annotated[int, AtLeast(0)] = 0
    """Steps between two rounds of resampling dead features (engine/resample.py); 0 for never."""
    integral_gain: Annotated[float, AtLeast(0)] = 0.05
    """g of the controller (controller.py): how fast the penalty scale follows the error of L0."""
    proportional_gain: Annotated[float, AtLeast(0)] = 0.05
    """h of the controller: how far all thresholds shift per step; 0 leaves L0 to λ alone."""
    threshold_decay: Annotated[float, AtLeast(0)] = 0.0
    """κ: decoupled decay of `Architecture.sparsity_parameter` (log θ, or b_enc) towards its median over features. Each
    step takes κ·(its learning rate) of the distance; Adam's steps have about that rate, so it stays within about
    1/κ."""
    initial_l0_multiplier: Annotated[float, GreaterThan(0)] = 1.0
    """The L0 (or k) requested at the first step, in multiples of the setting's."""
    l0_anneal_steps: Annotated[int, AtLeast(0)] = 0
    """Steps over which the requested L0 (or k) falls to the setting's, by the same factor in each."""
    beta1: Annotated[float, AtLeast(0), LessThan(1)] = 0.0
    """Adam's β₁. With 0, lazy Adam equals dense Adam; above, it has row momentum (engine/lazy_adam.py)."""
    bias_lr_multiplier: Annotated[float, GreaterThan(0)] = 1.0
    """Learning rate of b_dec and of the [M] biases of the encoder, in multiples of `lr`."""
    aux_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the AuxK loss of an architecture that has none in its paper (sae/auxk.py); 0 switches it off."""
    aux_every: Annotated[int, GreaterThan(0)] = 1
    """Steps between two steps with an AuxK loss."""
    aux_after_tokens: Annotated[int, GreaterThan(0)] | None = None
    """Tokens without firing after which AuxK trains a feature; None: `dead_after_tokens`."""
    unit: UnitName = "published"
    """The unit of training: `centred`, (x − μ)/C with μ the mean and C = √E‖x − μ‖²; or `published`, x/C with
    C = √E‖x‖²."""
    norm_limit: Annotated[float, AtLeast(0)] = 0.0
    """Rows with ‖x − μ‖ above this multiple of its median are scaled down to the median, in training and in μ and C. 0
    for no limit; only for the unit `centred`."""


class Setting(NamedTuple):
    """One sparsity setting of an SAE: a requested L0, a fixed λ, or k of a TopK architecture."""

    kind: str
    """`l0`: requested mean number of active features per token; `lambda`: penalty coefficient; `k`: k of TopK."""
    value: float
    """The requested L0, λ or k."""

    @property
    def label(self) -> str:
        """Return the setting's label in sentences and figures, such as `l0 = 16`, `λ = 0.0006`, `k = 32`."""
        return f"{'λ' if self.kind == 'lambda' else self.kind} = {self.value:g}"


class Shape(NamedTuple):
    """The dimensions and the sparsity setting of an SAE, from which its recipe is computed."""

    d: int
    """Number of activation dimensions."""
    width: int
    """Number of features M."""
    setting: Setting


def base_recipe(config: TrainConfig) -> Recipe:
    """Return the recipe that all architectures share; `Architecture.recipe_for` adapts it to an architecture."""
    steps = config.steps
    if config.recipe == "paper":
        return Recipe(
            lr=config.lr or 7e-5,
            lr_warmup_start=0.1,
            lr_warmup_steps=1_000,
            lr_decay_steps=0,
            sparsity_warmup_steps=10_000,
            beta2=0.999,
            adam_epsilon=1e-8,
            threshold_form="log",
            threshold_lr_multiplier=1.0,
            initial_threshold=0.001,
            bandwidth=0.001,
            bandwidth_share=1.0,
            centre_b_dec=False,
            dead_after_tokens=10_000_000,
            dead_threshold_factor=1.0,
            revive_until_step=0,
        )
    return Recipe(
        lr=config.lr or 4e-3,
        lr_warmup_start=0.1,
        lr_warmup_steps=min(1_000, max(1, steps // 20)),
        lr_decay_steps=steps // 3,
        sparsity_warmup_steps=min(10_000, max(1, steps // 10)),
        beta2=0.98,
        adam_epsilon=1e-8,
        threshold_form="log",
        threshold_lr_multiplier=2.0,
        initial_threshold=None,
        bandwidth=None,
        bandwidth_share=1.0,
        centre_b_dec=True,
        dead_after_tokens=min(10_000_000, max(config.batch * 20, config.tokens // 20)),
        dead_threshold_factor=1.0,
        revive_until_step=steps // 2,
        unit="centred",
        norm_limit=10.0,
    )


REFERENCE_L0, REFERENCE_TOKENS = 16, 2_000_000
"""The L0 and the number of training tokens at which `Architecture.base_lr` is tuned."""
MIN_TOKENS = 1_000_000
"""Runs with fewer training tokens get the learning rate of this number of tokens."""
REFERENCE_LR, MAX_GAIN_FACTOR = 4.5e-3, 3.0
"""Up to REFERENCE_LR (at L0 16) the unscaled `Architecture.controller_gains` hold L0 within 3 %. MAX_GAIN_FACTOR is the
largest factor by which gains are scaled: with h = 0.3, a deviation of L0 still decays."""


MIN_FIRINGS = 5_000
"""The mean number of times that a feature fires in a run from which on the recipe has momentum and what comes with it.
With 4,000 it gains nothing, with 600 to 1,000 it leaves half of the features silent (docs/LOG.md, 2026-11-30)."""
MOMENTUM_LR = 1.1
"""The learning rate with momentum at L0 16, in multiples of that without."""
AUX_GAPS = 16
"""The silence after which AuxK trains a feature, in multiples of M/L0; 16 to 32: docs/LOG.md, 2026-11-30."""


def short_recipe_lr(base_lr: float, shape: Shape, tokens: int, *, momentum: bool = False) -> float:
    """Return the peak learning rate of the `short` recipe: base_lr/√d·(16/L0)^¼·(tokens/2e6)^−¼.

    Adam with β₁ = 0 moves every coordinate by about lr per step, so a row by about lr·√d: the factor 1/√d was best at
    d = 64 and 256. Between L0 8 and 32 the best rate hardly differs, but training with a large L0 diverges at a lower
    rate. The power of the tokens connects the best rate at 2e6 tokens with the paper's 7e-5 at 8e9. Measurements of all
    three factors: docs/LOG.md, 2026-11-24.
    With momentum the best rate depends less on L0; above it, features die (docs/LOG.md, 2026-11-30).
    base_lr: `Architecture.base_lr`.
    tokens: number of training tokens.
    momentum: whether Adam has momentum.
    """
    budget = max(tokens, MIN_TOKENS) / REFERENCE_TOKENS
    of_l0 = REFERENCE_L0 / expected_l0(shape)
    l0_factor = MOMENTUM_LR * of_l0**0.125 if momentum else of_l0**0.25
    return base_lr / math.sqrt(shape.d) * l0_factor * budget**-0.25


def expected_l0(shape: Shape) -> float:
    """Return the L0 that recipes are computed for: the requested one, or k, at least 1; d/4 for a fixed λ."""
    return shape.d / 4 if shape.setting.kind == "lambda" else max(shape.setting.value, 1.0)


def mean_firings(tokens: int, shape: Shape) -> float:
    """Return how often a feature fires in a run, on average: tokens·L0/M."""
    return tokens * expected_l0(shape) / shape.width


def with_momentum(recipe: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
    """Return the recipe with row momentum, and AuxK in every fourth step on features that fell silent recently.

    With momentum, rare features fall silent (docs/LOG.md, 2026-11-30). AuxK trains a feature once it has not fired for
    AUX_GAPS times the mean gap between two tokens that a feature fires on, M/L0, and for at least two batches.
    """
    silent = max(2 * config.batch, math.ceil(AUX_GAPS * shape.width / expected_l0(shape)))
    return recipe._replace(beta1=0.9, beta2=0.95, aux_every=4, aux_after_tokens=silent)


def scale_controller_gains(recipe: Recipe, shape: Shape) -> Recipe:
    """Return the recipe with the controller's gains g and h scaled in proportion to the learning rate (at L0 16).

    Every step makes L0 drift, in proportion to lr. With proportional gain h, the remaining deviation of L0 is the drift
    divided by h: at d = 64 and 2e6 tokens it is 5 % until the rate decays (docs/LOG.md, 2026-11-26).
    """
    lr_at_reference = recipe.lr * (max(shape.setting.value, 1.0) / REFERENCE_L0) ** 0.25
    factor = min(MAX_GAIN_FACTOR, max(1.0, lr_at_reference / REFERENCE_LR))
    return recipe._replace(
        integral_gain=recipe.integral_gain * factor, proportional_gain=recipe.proportional_gain * factor
    )


def recipe_from(saved: dict[str, Any]) -> Recipe:
    """Return the recipe in a saved config; unknown hyper-parameters are ignored, missing ones get their defaults."""
    known = base_recipe(TrainConfig())._asdict()
    return Recipe(**known | {name: value for name, value in saved.items() if name in known})


def learning_rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Return Adam's learning rate at `step` (0-based) of `steps`: cosine warm-up, constant, linear decay to zero."""
    warmup = 1.0
    if step < recipe.lr_warmup_steps:
        cosine = 0.5 * (1 - math.cos(math.pi * step / recipe.lr_warmup_steps))
        warmup = recipe.lr_warmup_start + (1 - recipe.lr_warmup_start) * cosine
    decay = min(1.0, (steps - step) / recipe.lr_decay_steps) if recipe.lr_decay_steps else 1.0
    return recipe.lr * warmup * decay


def requested_l0_at(recipe: Recipe, setting: Setting, step: int) -> float:
    """Return the L0 (or k) requested at `step` (0-based): annealed from `initial_l0_multiplier`·value to the value."""
    remaining = max(0.0, 1 - step / recipe.l0_anneal_steps) if recipe.l0_anneal_steps else 0.0
    return setting.value * recipe.initial_l0_multiplier**remaining


def sparsity_warmup_share(recipe: Recipe, step: int) -> float:
    """Return the factor of λ at `step` (0-based) in its linear warm-up: rises to 1."""
    return min(1.0, (step + 1) / recipe.sparsity_warmup_steps)
