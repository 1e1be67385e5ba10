"""The training step by dense autograd: the oracle of every kernel test. Slow and short; training never uses it.

Differentiates the architecture's `loss`, removes the radial component of the decoder's gradient if rows are kept at
norm one, applies dense Adam and renormalises.
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
    """Return the loss and its gradients by parameter; that of unit decoder rows without radial component. x [B, d]."""
    names = list(state.second_moments)
    leaves = {name: state.params[name].detach().clone().requires_grad_() for name in names}
    loss = state.arch.loss(state.params | leaves, x, step_inputs)
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    g = {
        name: torch.zeros_like(state.params[name]) if gradient is None else gradient
        for name, gradient in zip(names, gradients, strict=True)
    }
    if state.arch.decoder_norm == "unit":
        g["W_dec"] = remove_radial_component(g["W_dec"], state.params["W_dec"])
    return loss.detach(), g


@torch.no_grad()
def reference_step(state: State, x: Tensor, lr: float, warmup: float) -> float:
    """Train on one batch x [B, d], in place, and return the loss before the update. Arguments as for `train_step`."""
    step_inputs = make_step_inputs(state, warmup)
    with torch.enable_grad():
        loss, g = loss_and_gradients(state, x, step_inputs)
    pre = (x - state.params["b_dec"]) @ state.params["W_enc"].T + state.params["b_enc"]
    f = state.arch.activate_batch(state.params, pre, step_inputs)
    state.steps_done += 1
    adam = AdamStep(lr, state.arch.recipe.beta2, state.arch.recipe.adam_epsilon, state.steps_done)
    for name in state.second_moments:
        adam_update_(
            state.params[name], state.second_moments[name], g[name], adam, state.arch.trained_vectors.get(name, 1.0)
        )
    if state.arch.decoder_norm == "unit":
        state.params["W_dec"] /= state.params["W_dec"].norm(dim=1, keepdim=True)
    if bool((f > 0).any()):
        state.arch.update_inference_threshold(state.params, f[f > 0].min().item(), lr)
    state.arch.decay_thresholds(state.params, lr, Counts(len(x), (f > 0).sum(0).to(x.dtype)))
    state.arch.constrain(state.params)
    update_counters_and_controller(state, (f > 0).sum(0), len(x), (f > 0).sum().item() / len(x))
    return float(loss)
