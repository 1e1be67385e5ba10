"""Create the state of an SAE in training, derive the inputs of its next step, and do the bookkeeping after it."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.engine.dense_features import estimate_support_share
from jumpahead.engine.interface import Kernels, State
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.controller import ControllerState
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import requested_l0_at
from jumpahead.sae.support import Number

MAX_DEAD_FEATURES = 2048
"""Dead features that the AuxK loss of a threshold architecture trains in one step: bounds its memory and time."""


def initial_state(arch: Architecture, d: int, width: int, seed: int, sample: Tensor) -> State:
    """Return the state of an untrained SAE, on the device of sample [n, d], activations in the unit E‖x‖² = 1.

    The parameters are drawn on the CPU, so they are the same on every device. width: M.
    """
    return state_from_params(
        arch, arch.initialise(d, width, torch.Generator().manual_seed(seed), sample.float().cpu()), sample
    )


def state_from_params(arch: Architecture, p: Params, sample: Tensor) -> State:
    """Return the state of these parameters before the first step, on the device and in the dtype of sample [n, d]."""
    width = len(p["W_dec"])
    p = {name: tensor.to(sample.device, sample.dtype).contiguous() for name, tensor in p.items()}
    p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
    trained = ("W_enc", "W_dec", "b_dec", *arch.trained_vectors)
    state = State(
        arch=arch,
        params=p,
        second_moments={name: torch.zeros_like(p[name]) for name in trained},
        first_moments={name: torch.zeros_like(p[name]) for name in trained} if arch.recipe.beta1 else {},
        last_touched=torch.zeros(width, dtype=torch.int32, device=sample.device),
        tokens_since_fired=torch.zeros(width, dtype=torch.int64, device=sample.device),
        support_share=estimate_support_share(arch, p, sample),
    )
    if arch.is_controlled:
        state.controller = ControllerState(
            penalty_scale=arch.initial_penalty_scale, l0=requested_l0_at(arch.recipe, arch.setting, 0)
        )
    return state


def make_step_inputs(state: State, warmup: float, kernels: Kernels | None = None) -> StepInputs:
    """Return the inputs of the next step: λ, dead features, requested L0. warmup: the share of a fixed λ in force.

    An asynchronous layer gets `dead` even if no feature is dead: to find out it would have to wait for its device.
    """
    arch = state.arch
    is_fixed = state.controller is None
    sparsity_coefficient = arch.fixed_sparsity_coefficient * warmup if is_fixed else state.sparsity_coefficient
    dead = dead_features(state) if arch.needs_dead_features else None
    l0 = None if arch.setting.kind == "lambda" else requested_l0_at(arch.recipe, arch.setting, state.steps_done)
    if kernels is not None and kernels.is_async:
        return StepInputs(sparsity_coefficient, dead, l0)
    return StepInputs(sparsity_coefficient, dead if dead is not None and bool(dead.any()) else None, l0)


def dead_features(state: State) -> Tensor | None:
    """Return the mask [M] of the features that count as dead in the next step; None in steps without an AuxK loss.

    With the recipe's `aux_weight` at most MAX_DEAD_FEATURES: every n-th of them, others in other steps.
    """
    recipe = state.arch.recipe
    turn, is_other_step = divmod(state.steps_done, recipe.aux_every)
    if is_other_step:
        return None
    dead = state.tokens_since_fired >= (recipe.aux_after_tokens or recipe.dead_after_tokens)
    if not recipe.aux_weight or len(dead) <= MAX_DEAD_FEATURES:
        return dead
    number = dead.cumsum(0)
    parts = (number[-1] + MAX_DEAD_FEATURES - 1).clamp_min(MAX_DEAD_FEATURES) // MAX_DEAD_FEATURES
    return dead & (number % parts == turn % parts)


def update_counters_and_controller(state: State, fired: Tensor, tokens: int, l0: Number) -> None:
    """Update firing counters, dead features, and the controller with its thresholds, in place, after a step.

    fired [M]: tokens that each feature fired on; tokens: B; l0: active features per token.
    """
    state.tokens_since_fired = torch.where(fired > 0, 0, state.tokens_since_fired + tokens)
    if state.steps_done <= state.arch.recipe.revive_until_step:
        state.arch.revive_dead(state.params, state.tokens_since_fired >= state.arch.recipe.dead_after_tokens)
    if state.controller is not None:
        recipe = state.arch.recipe
        target = requested_l0_at(recipe, state.arch.setting, state.steps_done)
        state.controller = state.controller.updated(l0, target, recipe.integral_gain)
        state.arch.shift_thresholds(state.params, state.controller.threshold_shift(target, recipe.proportional_gain))
