"""The base class of SAE architectures: one paper's equations, on dense tensors and on the sparse support.

Shapes and units, here and in every file of this folder:

    B tokens · d activation dimensions · M features (the width) · |S| entries of the support
    x      [B, d]  activations in the unit of training (unit.py), or the LM's own (a saved SAE: scale and pre-encoder
                   bias are folded into its weights, and μ of the unit is its `b_pre`)
    W_enc  [M, d]  one row per feature          b_enc [M]
    W_dec  [M, d]  one row per feature: d_j     b_dec [d]
    π = W_enc·(x − b_dec) + b_enc  pre-activations          f ≥ 0  features          x̂ = Σ_j f_j d_j + b_dec

Each architecture is implemented twice in its file. `loss` is the paper's loss on dense tensors, for autograd; tests use
it as the reference. `selection`, `values` and `entry_gradients` compute the same loss and gradients on the support: the
entries (token, feature) that carry a value or a gradient. `entry_gradients` is elementwise, so it applies to a sparse
support and to a dense block of features (every token of some features) alike. Some gradients also depend on the firing
counts of the whole batch, passed as `Counts`. Kernels do not depend on architectures, nor architectures on kernels.

Methods receive parameters as `params`, and as `derived` the vectors that `derive` computed from them once per step.
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
    MIN_FIRINGS,
    Recipe,
    Setting,
    Shape,
    TrainConfig,
    base_recipe,
    mean_firings,
    requested_l0_at,
    scale_controller_gains,
    short_recipe_lr,
    with_momentum,
)
from jumpahead.sae.support import Entries, Number, Selection


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a series (an architecture with its options); used as it is by architectures without options.

    Subclasses are frozen dataclasses whose fields have defaults; a study validates their types and bounds
    (study/tables.py).
    """

    def contradiction(self, kind: str) -> str:
        """Return a sentence on options that contradict each other or the kind of sparsity setting; "" if none do.

        kind: `l0`, `lambda` or `k`.
        """
        return ""


class Architecture(ABC):
    """An SAE architecture. Instances hold options, sparsity setting and recipe; methods receive the parameters.

    To encode with a saved SAE, neither setting nor recipe is needed (`encodes_by_setting` excepted): an SAE of another
    make has none. To train, both are.
    """

    name: ClassVar[str]
    """The architecture's name in studies and folders: the name of its file, or the name it is registered under."""
    title: ClassVar[str]
    """The architecture's name in figures and tables."""
    settings: ClassVar[tuple[str, ...]]
    """The kinds of sparsity setting that the architecture accepts, among `l0`, `lambda` and `k`."""
    requires_integer_l0: ClassVar[bool] = False
    """True if `l0` must be a whole number."""
    encodes_by_setting: ClassVar[bool] = False
    """True if the features of a saved SAE depend on the setting, as on k of TopK."""
    vectors: ClassVar[tuple[str, ...]]
    """Names of the [M] parameters of a saved SAE. Every SAE also has W_enc, W_dec and b_dec."""
    Options: ClassVar[type[Options]] = Options
    """The dataclass of the architecture's options."""
    base_lr: ClassVar[float] = 0.064
    """`base_lr` in the formula for the learning rate of the `short` recipe (`recipe.short_recipe_lr`)."""
    has_momentum: ClassVar[bool] = True
    """True if the `short` recipe has row momentum (in runs with enough tokens, `recipe.MIN_FIRINGS`)."""
    reconstructions: tuple[Reconstruction, ...] = (Reconstruction("input", trains_decoder=True, adds_bias=True),)
    """The reconstructions whose squared errors the loss contains, in the order of `values`."""
    initial_penalty_scale: ClassVar[float] = 0.1
    """The controller's initial λ, in multiples of `sparsity_coefficient_scale`. On the bundled model, the final values
    of Gated and ReLU are 0.1 to 0.2 for L0 32 and 8 (docs/LOG.md, 2026-11-22 and 24)."""
    revision: ClassVar[int] = 0
    """Version of the controller for this architecture. If it is raised, SAEs with a requested L0 are trained again."""
    controller_gains: ClassVar[tuple[float, float]] = (0.05, 0.05)
    """The controller's integral gain g and proportional gain h, in both recipes: papers have no such controller. The
    `short` recipe increases them with the learning rate (`recipe.scale_controller_gains`)."""

    def __init__(self, options: Options, setting: Setting | None, recipe: Recipe | None):
        assert setting is None or setting.kind in self.settings, (self.name, setting)
        if contradiction := setting and options.contradiction(setting.kind):
            raise StudyError(f"{self.name}: {contradiction}")
        self.options, self.known_setting, self.known_recipe = options, setting, recipe

    @property
    def setting(self) -> Setting:
        """Return the sparsity setting; only if it is known, which `known_setting` tells."""
        assert self.known_setting is not None, f"{self.name} without a setting"
        return self.known_setting

    @setting.setter
    def setting(self, setting: Setting) -> None:
        self.known_setting = setting

    @property
    def recipe(self) -> Recipe:
        """Return the recipe that the SAE is trained with; only if it is known, which `known_recipe` tells."""
        assert self.known_recipe is not None, f"{self.name} without a recipe"
        return self.known_recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        self.known_recipe = recipe

    # ------------------------------------------------------------------------------------------ recipes

    @classmethod
    def short_recipe(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        """Return the `short` recipe with this architecture's tuned hyper-parameters (docs/LOG.md).

        short: the `short` recipe that all architectures share.
        """
        return short

    @classmethod
    def paper_recipe(cls, paper: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        """Return the `paper` recipe with the hyper-parameters of this architecture's own paper.

        paper: the `paper` recipe that all architectures share.
        """
        return paper

    @classmethod
    def recipe_for(cls, config: TrainConfig, shape: Shape, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Return all hyper-parameters of an SAE.

        changes: hyper-parameters set by the series itself, by name; they override all others.
        """
        integral, proportional = cls.controller_gains
        recipe = base_recipe(config)._replace(integral_gain=integral, proportional_gain=proportional)
        if config.recipe == "paper":
            recipe = cls.paper_recipe(recipe, config, shape)
        if config.recipe == "short":
            momentum = cls.has_momentum and mean_firings(config.tokens, shape) >= MIN_FIRINGS
            by_rule = short_recipe_lr(cls.base_lr, shape, config.tokens, momentum=momentum)
            recipe = recipe._replace(lr=(changes or {}).get("lr", config.lr) or by_rule)
            if momentum:
                recipe = with_momentum(recipe, config, shape)
            if shape.setting.kind == "l0" and "lambda" in cls.settings:
                recipe = scale_controller_gains(recipe, shape)
            recipe = cls.short_recipe(recipe, config, shape)
        return recipe._replace(**changes or {})

    # ------------------------------------------------------------------------------------------ what it needs

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        """Return `unit` if rows of W_dec are normalised after every step; `free` if only on saving."""
        return "unit"

    @property
    def trained_vectors(self) -> dict[str, float]:
        """Return the names of the trained [M] parameters, each with its multiplier of the recipe's learning rate."""
        return {name: self.recipe.bias_lr_multiplier if name.startswith("b_") else 1.0 for name in self.vectors}

    def lr_multiplier(self, name: str) -> float:
        """Return the multiplier of the recipe's learning rate for a trained parameter, W_enc and W_dec included."""
        return self.recipe.bias_lr_multiplier if name == "b_dec" else self.trained_vectors.get(name, 1.0)

    @property
    def sparsity_parameter(self) -> str:
        """Return the name of the trained [M] vector that sets how often features fire; `threshold_decay` acts on it."""
        return "b_enc"

    @property
    def needs_dead_features(self) -> bool:
        """Return True if the architecture uses `StepInputs.dead`, the mask of dead features."""
        return False

    @property
    def needs_token_counts(self) -> bool:
        """Return True if the architecture uses `Counts.active`, the number of active features per token."""
        return False

    @property
    def is_controlled(self) -> bool:
        """Return True if a controller sets λ to reach a requested L0."""
        return self.setting.kind == "l0" and "lambda" in self.settings

    @property
    def fixed_sparsity_coefficient(self) -> float:
        """Return the fixed λ after warm-up; 0 if a controller sets λ or the loss has no sparsity term."""
        return self.setting.value if self.setting.kind == "lambda" else 0.0

    def requested_l0(self, step_inputs: StepInputs) -> float:
        """Return the L0 (or k) that applies in this step: the requested one, by default the setting's value."""
        return self.setting.value if step_inputs.requested_l0 is None else step_inputs.requested_l0

    # ------------------------------------------------------------------------------------------ the support

    @abstractmethod
    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        """Return the initial parameters, float32.

        sample: [n, d] activations in the unit E‖x‖² = 1.
        """

    def derive(self, params: Params) -> Params:
        """Return vectors derived from the parameters, [M] each, by name; the engine calls this once per step."""
        return {}

    @abstractmethod
    def selection(self, params: Params, derived: Params, step_inputs: StepInputs, *, training: bool) -> Selection:
        """Return the selection criterion of the entries that can carry a value or, if `training`, a gradient."""

    @abstractmethod
    def values(self, entries: Entries, params: Params, derived: Params) -> tuple[Tensor, ...]:
        """Return the coefficient of d_j at each entry, one tensor like `entries.pre` per reconstruction.

        The features f are the coefficients of the first reconstruction plus those of the reconstructions that extend
        it. If the tuple is shorter than `reconstructions`, this step's loss lacks the last reconstructions.
        """

    def features(self, values: tuple[Tensor, ...]) -> Tensor:
        """Return the features f at each entry, given the tensors that the method `values` returned."""
        return values[0]

    @abstractmethod
    def entry_gradients(
        self,
        entries: Entries,
        values: tuple[Tensor, ...],
        params: Params,
        derived: Params,
        step_inputs: StepInputs,
        counts: Counts,
    ) -> Gradients:
        """Return the gradients of the loss at each entry, as affine functions of the projections r·d_j.

        values: the tensors that the method `values` returned; there is one projection per tensor.
        """

    # ------------------------------------------------------------------------------------------ the loss

    def sparsity_sum(self, entries: Entries, values: tuple[Tensor, ...], derived: Params) -> Tensor:
        """Return the sparsity term without λ, summed over entries, 0-d; 0 if it is not a sum over entries.

        The sum is accumulated in float64, because padding permutes the order of summation.
        """
        return entries.pre.new_zeros(())

    def penalty(self, sparsity_sum: Number, counts: Counts, step_inputs: StepInputs) -> Number:
        """Return the sparsity term of the loss, with λ, as a mean over the batch.

        sparsity_sum: the total of `sparsity_sum` over all entries of the batch.
        """
        return step_inputs.sparsity_coefficient / counts.tokens * sparsity_sum

    def error_weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        """Return the weight of each reconstruction's squared error in the loss.

        x: [B, d] the input.
        errors: [B, d] x̂ − x, with all features.
        """
        return (1.0,) * len(self.reconstructions)

    @abstractmethod
    def loss(self, params: Params, x: Tensor, step_inputs: StepInputs) -> Tensor:
        """Return the paper's loss, computed on dense tensors for autograd: the mean over the batch, 0-d."""

    @abstractmethod
    def activate(self, params: Params, pre: Tensor) -> Tensor:
        """Return the features f [..., M] of a saved SAE, given all its pre-activations π [..., M]."""

    def activate_batch(self, params: Params, pre: Tensor, step_inputs: StepInputs) -> Tensor:
        """Return the features f [B, M] during training, given all pre-activations π [B, M].

        The result equals that of `selection` and `values`, computed on dense tensors.
        """
        return self.activate(params, pre)

    # ------------------------------------------------------------------------------------------ after a step

    def update_inference_threshold(self, params: Params, smallest: Number, lr: float) -> None:  # noqa: B027
        """Update, in place, the inference threshold, which a saved SAE uses instead of a selection over the batch.

        The engine does not call this if nothing was selected.
        smallest: the smallest π that `TopKOfBatch` selected in this step.
        lr: Adam's learning rate in this step.
        """

    @final
    def decay_thresholds(self, params: Params, lr: float, counts: Counts) -> None:
        """Move the sparsity parameter towards its median over features, in place, after Adam's update.

        lr: Adam's learning rate in this step.
        """
        if decay := self.recipe.threshold_decay:
            vector, offset = params[self.sparsity_parameter], self.decay_target_offset(counts)
            target = (vector - offset).median() + offset
            vector += min(1.0, decay * self.trained_vectors[self.sparsity_parameter] * lr) * (target - vector)

    def decay_target_offset(self, counts: Counts) -> Tensor:
        """Return the per-feature offset added to the value that the sparsity parameter decays towards, [M] or 0-d."""
        return counts.fired.new_zeros(())

    def constrain(self, params: Params) -> None:  # noqa: B027 — optional: most architectures have no constraint
        """Clamp parameters to their domain after a step, in place; do nothing by default."""

    def revive_dead(self, params: Params, dead: Tensor) -> None:  # noqa: B027 — optional
        """Lower the thresholds of dead features after a step, in place; do nothing by default. dead: [M] bool."""

    def reinitialise_features(self, params: Params, features: Tensor, thresholds: Tensor) -> None:
        """Reset the [M] parameters of resampled features, in place, so that feature i fires if π exceeds thresholds[i].

        The rows of W_enc and W_dec of these features already have their new values.
        features: [n] indices of the resampled features.
        thresholds: [n] new thresholds on π.
        """
        params["b_enc"][features] = 0.0

    # ------------------------------------------------------------------------------------------ the controller

    def thresholds(self, derived: Params) -> Thresholds | None:
        """Return the learned thresholds for training diagnostics; None if the architecture learns no thresholds."""
        return None

    def shift_thresholds(self, params: Params, shift: Number) -> None:  # noqa: B027 — only if controlled
        """Multiply every threshold by exp(shift), in place; without thresholds, shift the biases to similar effect."""

    def initial_l0(self, width: int, d: int) -> float:
        """Return the mean L0 that initialisation aims at in the `short` recipe."""
        requested = d / 4 if self.setting.kind == "lambda" else requested_l0_at(self.recipe, self.setting, 0)
        return min(requested, width / 8)

    def sparsity_coefficient_scale(self, params: Params) -> Number:
        """Return u, the scale of the sparsity coefficient λ = c·u, from the thresholds; the controller adjusts c."""
        return 1.0

    # ------------------------------------------------------------------------------------------ saving

    def fold_vectors(self, params: Params, scale: float, norms: Tensor) -> Params:
        """Return the [M] parameters that `fold` saves, float64.

        scale: C of the site.
        norms: [M] ‖d_j‖ before folding, float64.
        """
        shift = params["W_enc"].double() @ params["b_dec"].double()
        return {"b_enc": scale * (params["b_enc"].double() - shift)}

    def fold(self, params: Params, scale: float) -> Params:
        """Return the float32 parameters of a saved SAE, for activations scale·x: unit d_j, no pre-encoder bias."""
        norms = params["W_dec"].double().norm(dim=1).clamp_min(1e-30)
        folded = {
            "W_enc": params["W_enc"].double(),
            "W_dec": params["W_dec"].double() / norms[:, None],
            "b_dec": scale * params["b_dec"].double(),
            **self.fold_vectors(params, scale, norms),
        }
        return {name: tensor.float().contiguous() for name, tensor in folded.items()}

    def rescale_features(self, params: Params, factors: Tensor) -> Params:
        """Return the parameters of a saved SAE with the features factors·f and the same x̂. factors: [M] positive.

        Not for TopK with unequal factors: they would change which features are the largest.
        """
        w_dec = params["W_dec"] / factors[:, None]
        scaled = {name: factors * params[name] for name in self.vectors}
        return {**params, "W_enc": params["W_enc"] * factors[:, None], "W_dec": w_dec, **scaled}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        """Return the [M] training parameters from saved ones with unit d_j, float64: the inverse of `fold_vectors`.

        scale: C of the site.
        shift: [M] W_enc·b_dec, float64.
        """
        return {"b_enc": folded["b_enc"].double() / scale + shift}

    def unfold(self, folded: Params, scale: float) -> Params:
        """Return float32 parameters for training in the unit E‖x‖² = 1: the inverse of `fold` with this scale."""
        b_dec = folded["b_dec"].double() / scale
        shift = folded["W_enc"].double() @ b_dec
        params = {"W_enc": folded["W_enc"], "W_dec": folded["W_dec"], "b_dec": b_dec}
        params |= self.unfold_vectors(folded, scale, shift)
        return {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in params.items()}
