"""What an architecture must define to be trained: one paper's equations, on dense tensors and on the support.

Shapes and units, here and in every file of this folder:

    B tokens · d activation dimensions · M features (the width) · |S| entries of the support
    x      [B, d]  activations in the unit E‖x‖² = 1 (training), or the LM's own (a saved SAE: scale and pre-encoder
                   bias are folded into its weights)
    W_enc  [M, d]  one row per feature          b_enc [M]
    W_dec  [M, d]  one row per feature: d_j     b_dec [d]
    π = W_enc·(x − b_dec) + b_enc  pre-activations          f ≥ 0  features          x̂ = Σ_j f_j d_j + b_dec

An architecture is written twice, side by side in one file: `loss`, the paper on dense tensors for autograd (the oracle
of every test), and `selection`, `values`, `rule`, the same on the support: the entries (token, feature) that carry a
value or a gradient. `rule` is elementwise, so it serves a sparse support and a dense block of features alike; what it
needs of the whole batch is in `Counts`. No kernel knows an architecture, and no architecture knows a kernel.

Parameters are passed in as `params`; `derived` is what `derive` computes from them, once per step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.sae.gradients import Counts, Gradients, Reconstruction, StepInputs, Thresholds
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import (
    Recipe,
    Setting,
    Shape,
    TrainConfig,
    base_recipe,
    requested_l0_at,
    scale_controller_gains,
    short_recipe_lr,
)
from jumpahead.sae.support import Entries, Number, Selection


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a series; an architecture without options uses this.

    Subclasses are frozen dataclasses whose fields have defaults; a study validates their types and bounds
    (study/tables.py).
    """

    def objection(self, kind: str) -> str:
        """Return why these options contradict each other, or settings of this kind, in one sentence; else ""."""
        return ""


class Architecture(ABC):
    """One paper. Instances hold options, setting and recipe; parameters are passed in."""

    name: ClassVar[str]
    """Its name in studies and folders: the name of its file, or the name it is registered under."""
    title: ClassVar[str]
    """Its name in figures and tables."""
    settings: ClassVar[tuple[str, ...]]
    """The kinds of sparsity setting it accepts: of `l0`, `lambda`, `k`."""
    requires_integer_l0: ClassVar[bool] = False
    """Whether `l0` must be a whole number."""
    vectors: ClassVar[tuple[str, ...]]
    """The [M] parameters of a saved SAE, besides W_enc, W_dec and b_dec."""
    Options: ClassVar[type[Options]] = Options
    base_lr: ClassVar[float] = 0.064
    """The learning rate of the `short` recipe, in the unit of `recipe.short_recipe_lr`."""
    reconstructions: tuple[Reconstruction, ...] = (Reconstruction("input", live=True, bias=True),)
    """The squared errors of the loss."""
    initial_penalty_scale: ClassVar[float] = 0.1
    """The controller's first λ, in units of `sparsity_unit`. Gated and ReLU end at 0.1 to 0.2 for L0 32 and 8 on the
    bundled model (docs/LOG.md, 2026-11-22 and 24)."""
    revision: ClassVar[int] = 0
    """Raised when the controller changes for this architecture: SAEs with a requested L0 are then trained again."""
    controller_gains: ClassVar[tuple[float, float]] = (0.05, 0.05)
    """The controller's integral and proportional gain, g and h, in every preset: no paper has it. In `short` they grow
    with the learning rate (`recipe.scale_controller_gains`)."""

    def __init__(self, options: Options, setting: Setting, recipe: Recipe):
        assert setting.kind in self.settings, (self.name, setting)
        if objection := options.objection(setting.kind):
            raise StudyError(f"{self.name}: {objection}")
        self.options, self.setting, self.recipe = options, setting, recipe

    # ------------------------------------------------------------------------------------------ recipes

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        """Return the `short` recipe with the values that are best for this architecture (docs/LOG.md)."""
        return short

    @classmethod
    def paper_recipe(cls, paper: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        """Return the `paper` recipe with the values of this architecture's own paper."""
        return paper

    @classmethod
    def recipe_for(cls, config: TrainConfig, shape: Shape, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Return every hyper-parameter. changes: a series' own values, which take precedence over all others."""
        integral, proportional = cls.controller_gains
        found = base_recipe(config)._replace(integral_gain=integral, proportional_gain=proportional)
        if config.recipe == "paper":
            found = cls.paper_recipe(found, config, shape)
        if config.recipe == "short":
            lr = (changes or {}).get("lr", config.lr) or short_recipe_lr(cls.base_lr, shape, config.tokens)
            found = found._replace(lr=lr)
            if shape.setting.kind == "l0" and "lambda" in cls.settings:
                found = scale_controller_gains(found, shape)
            found = cls.short_recipe(found, config, shape)
        return found._replace(**changes or {})

    # ------------------------------------------------------------------------------------------ what it needs

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        """Return `unit` if rows of W_dec have norm one after every step, `free` if only those of a saved SAE do."""
        return "unit"

    @property
    def trained(self) -> dict[str, float]:
        """Return the trained [M] parameters, each with its learning rate in multiples of the recipe's."""
        return dict.fromkeys(self.vectors, 1.0)

    @property
    def sparsity_parameter(self) -> str:
        """Return the trained [M] vector that sets how often a feature fires, which `threshold_decay` acts on."""
        return "b_enc"

    @property
    def needs_dead_features(self) -> bool:
        """Return whether `step_inputs.dead` is used."""
        return False

    @property
    def needs_token_counts(self) -> bool:
        """Return whether `counts.active` is used."""
        return False

    @property
    def is_controlled(self) -> bool:
        """Return whether a controller sets λ to reach a requested L0."""
        return self.setting.kind == "l0" and "lambda" in self.settings

    @property
    def fixed_sparsity_coefficient(self) -> float:
        """Return λ after its warm-up if no controller sets it; 0 without a sparsity term."""
        return self.setting.value if self.setting.kind == "lambda" else 0.0

    def requested_l0(self, step_inputs: StepInputs) -> float:
        """Return the L0 (or k) requested in this step; the setting's for a saved SAE."""
        return self.setting.value if step_inputs.requested_l0 is None else step_inputs.requested_l0

    # ------------------------------------------------------------------------------------------ the support

    @abstractmethod
    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        """Return initial parameters, float32. sample [n, d]: activations in the unit E‖x‖² = 1."""

    def derive(self, params: Params) -> Params:
        """Return the [M] vectors that several of the functions below need, computed once per step."""
        return {}

    @abstractmethod
    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> Selection:
        """Return which entries can carry a value (or, in training, a gradient)."""

    @abstractmethod
    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        """Return the coefficient of d_j at each entry, one vector per reconstruction.

        The features f are the sum of the first and of those that continue it. Reconstructions that are left out at the
        end are absent from this step's loss.
        """

    def features(self, values: tuple[Tensor, ...]) -> Tensor:
        """Return f at each entry, given its `values`."""
        return values[0]

    @abstractmethod
    def rule(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        """Return the gradients at each entry, as functions of the projections, one per reconstruction in `values`."""

    # ------------------------------------------------------------------------------------------ the loss

    def sparsity_sum(self, entries: Entries, values: tuple[Tensor, ...], derived: Params) -> Tensor:
        """Return the unweighted sparsity term summed over entries, 0-d; 0 if the term is no such sum.

        It is summed in float64, because padding permutes the order of summation.
        """
        return entries.pre.new_zeros(())

    def penalty(self, sparsity_sum: Number, counts: Counts, step_inputs: StepInputs) -> Number:
        """Return the sparsity term of the loss, mean over the batch. sparsity_sum: of all entries."""
        return step_inputs.sparsity_coefficient / counts.tokens * sparsity_sum

    def error_weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        """Return the weight of each squared error. x, errors [B, d]: the input, and x̂ − x of all features."""
        return (1.0,) * len(self.reconstructions)

    @abstractmethod
    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        """Return the paper's loss, mean over the batch, on dense tensors, for autograd. 0-d."""

    @abstractmethod
    def activate(self, params: Params, pre: Tensor) -> Tensor:
        """Return features f [..., M] from pre-activations π [..., M]: the dense forward pass of a saved SAE."""

    def activate_batch(self, params: Params, pre: Tensor, step_inputs: StepInputs) -> Tensor:
        """Return features f [B, M] in training from π [B, M], on dense tensors: equal to `selection` and `values`."""
        return self.activate(params, pre)

    # ------------------------------------------------------------------------------------------ after a step

    def update_inference_threshold(self, params: Params, smallest: Number, lr: float) -> None:  # noqa: B027
        """Update, in place, the threshold that replaces a selection over the batch once the SAE is saved.

        smallest: the smallest π that `LargestOfBatch` selected; not called if it selected none. lr: Adam's.
        """

    @final
    def decay_thresholds(self, params: Params, lr: float, counts: Counts) -> None:
        """Move the sparsity parameter towards its median over features, after Adam's update, in place. lr: Adam's."""
        if decay := self.recipe.threshold_decay:
            vector, offset = params[self.sparsity_parameter], self.decay_target_offset(counts)
            target = (vector - offset).median() + offset
            vector += min(1.0, decay * self.trained[self.sparsity_parameter] * lr) * (target - vector)

    def decay_target_offset(self, counts: Counts) -> Tensor:
        """Return the per-feature offset of the value that the sparsity parameter decays towards: [M], or 0-d."""
        return counts.fired.new_zeros(())

    def constrain(self, params: Params) -> None:  # noqa: B027 — most have no constraint
        """Project parameters onto their domain after a step, in place."""

    def revive_dead(self, params: Params, dead: Tensor) -> None:  # noqa: B027 — most do not
        """Make dead features fire more easily after a step, in place. dead [M] bool."""

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        """Set the [M] parameters of resampled features [n] so that they fire above `thresholds` [n] on π, in place.

        Their rows of W_enc and W_dec have their new values already.
        """
        params["b_enc"][features] = 0.0

    # ------------------------------------------------------------------------------------------ the controller

    def thresholds(self, derived: Params) -> Thresholds | None:
        """Return the learned thresholds for training diagnostics; None for an architecture without."""
        return None

    def shift_thresholds(self, params: Params, shift: Number) -> None:  # noqa: B027 — only if controlled
        """Multiply every threshold by exp(shift), in place, or move what acts as a threshold by that share."""

    def initial_l0(self, width: int, d: int) -> float:
        """Return the mean L0 at the start of training in the `short` recipe."""
        requested = d / 4 if self.setting.kind == "lambda" else requested_l0_at(self.recipe, self.setting, 0)
        return min(requested, width / 8)

    def sparsity_unit(self, params: Params) -> Number:
        """Return the unit of the controller's λ: the factor that follows from the thresholds and needs no control."""
        return 1.0

    # ------------------------------------------------------------------------------------------ saving

    def fold_vectors(self, params: Params, scale: float, norms: Tensor) -> Params:
        """Return the [M] parameters of the folded SAE, float64. norms [M]: ‖d_j‖ before folding, float64."""
        shift = params["W_enc"].double() @ params["b_dec"].double()
        return {"b_enc": scale * (params["b_enc"].double() - shift)}

    def fold(self, params: Params, scale: float) -> Params:
        """Return float32 parameters for the LM's own activations scale·x, without pre-encoder bias, with unit d_j."""
        norms = params["W_dec"].double().norm(dim=1).clamp_min(1e-30)
        folded = {
            "W_enc": params["W_enc"].double(),
            "W_dec": params["W_dec"].double() / norms[:, None],
            "b_dec": scale * params["b_dec"].double(),
            **self.fold_vectors(params, scale, norms),
        }
        return {name: tensor.float().contiguous() for name, tensor in folded.items()}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        """Return the inverse of `fold_vectors` for unit rows of W_dec. shift [M]: W_enc·b_dec, float64."""
        return {"b_enc": folded["b_enc"].double() / scale + shift}

    def unfold(self, folded: Params, scale: float) -> Params:
        """Return float32 parameters to train on, in the unit E‖x‖² = 1, whose `fold` with this scale is `folded`."""
        b_dec = folded["b_dec"].double() / scale
        shift = folded["W_enc"].double() @ b_dec
        params = {"W_enc": folded["W_enc"], "W_dec": folded["W_dec"], "b_dec": b_dec}
        params |= self.unfold_vectors(folded, scale, shift)
        return {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in params.items()}
