"""The training step by dense autograd: the oracle of every kernel test. Slow and short; training never uses it.

Differentiates the architecture's `loss`, removes the radial component of the decoder's gradient if rows are kept at
norm one, applies dense Adam (with momentum: Adam with row momentum, `lazy_adam.py`) and renormalises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.engine.interface import State
from jumpahead.engine.lazy_adam import AdamStep, adam_update_, remove_radial_component
from jumpahead.engine.state import make_step_inputs, update_counters_and_controller
from jumpahead.sae.gradients import Counts, StepInputs
from jumpahead.sae.parameters import Params


def loss_and_gradients(state: State, x: Tensor, step_inputs: StepInputs) -> tuple[Tensor, Params]:
    """Return the loss and its gradients by parameter. x [B, d]."""
    names = list(state.second_moments)
    leaves = {name: state.params[name].detach().clone().requires_grad_() for name in names}
    loss = state.arch.loss(state.params | leaves, x, step_inputs)
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    return loss.detach(), {
        name: torch.zeros_like(state.params[name]) if gradient is None else gradient
        for name, gradient in zip(names, gradients, strict=True)
    }


def matrix_update_(w: Tensor, m: Tensor | None, v: Tensor, g: Tensor, adam: AdamStep, is_unit_norm: bool) -> None:
    """Apply Adam's step to a matrix w [M, d] with moments m and v, in place; with m, Adam with row momentum.

    g [M, d]: the gradient. is_unit_norm: remove the gradient's radial component first. Rows of w and m whose gradient,
    radial component included, is exactly zero keep their values.
    """
    has_gradient = (g != 0).any(1, keepdim=True)
    before = [tensor.clone() for tensor in (w, m) if tensor is not None]
    adam_update_(w, m, v, remove_radial_component(g, w) if is_unit_norm else g, adam)
    for tensor, old in zip((w, m), before, strict=False):
        if m is not None and tensor is not None:
            tensor.copy_(torch.where(has_gradient, tensor, old))


@torch.no_grad()
def reference_step(state: State, x: Tensor, lr: float, warmup: float) -> float:
    """Train on one batch x [B, d], in place, and return the loss before the update. Arguments as for `train_step`."""
    step_inputs = make_step_inputs(state, warmup)
    with torch.enable_grad():
        loss, g = loss_and_gradients(state, x, step_inputs)
    pre = (x - state.params["b_dec"]) @ state.params["W_enc"].T + state.params["b_enc"]
    f = state.arch.activate_batch(state.params, pre, step_inputs)
    state.steps_done += 1
    recipe, is_unit_norm = state.arch.recipe, state.arch.decoder_norm == "unit"
    adam = AdamStep(lr, recipe.beta1, recipe.beta2, recipe.adam_epsilon, state.steps_done)
    for name, v in state.second_moments.items():
        w, m = state.params[name], state.first_moments.get(name)
        if w.dim() == 2:
            matrix_update_(w, m, v, g[name], adam, is_unit_norm and name == "W_dec")
        else:
            adam_update_(w, m, v, g[name], adam, state.arch.lr_multiplier(name))
    if is_unit_norm:
        state.params["W_dec"] /= state.params["W_dec"].norm(dim=1, keepdim=True)
    if bool((f > 0).any()):
        state.arch.update_inference_threshold(state.params, f[f > 0].min().item(), lr)
    state.arch.decay_thresholds(state.params, lr, Counts(len(x), (f > 0).sum(0).to(x.dtype)))
    state.arch.constrain(state.params)
    update_counters_and_controller(state, (f > 0).sum(0), len(x), (f > 0).sum().item() / len(x))
    return float(loss)
