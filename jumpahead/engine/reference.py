"""The training step by dense autograd: the oracle of every kernel test. Slow, short, and not used in training.

Takes the architecture's `loss`, differentiates it, removes the radial component of the decoder's gradient where rows
are kept at norm one, applies dense Adam, renormalises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.engine.lazy_adam import Adam, update_, without_radial
from jumpahead.engine.step import State, knobs_of, remember
from jumpahead.sae.base import Counts, Knobs, Params


def gradients(state: State, x: Tensor, knobs: Knobs) -> tuple[Tensor, Params]:
    """The loss and its gradients, decoder projected where the architecture asks for unit rows. x [B, d]."""
    names = list(state.v)
    leaves = {name: state.p[name].detach().clone().requires_grad_() for name in names}
    loss = state.arch.loss(state.p | leaves, x, knobs)
    found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    g = {name: torch.zeros_like(state.p[name]) if one is None else one for name, one in zip(names, found, strict=True)}
    if state.arch.decoder_norm == "unit":
        g["W_dec"] = without_radial(g["W_dec"], state.p["W_dec"])
    return loss.detach(), g


@torch.no_grad()
def step(state: State, x: Tensor, lr: float, warmup: float) -> float:
    """Train on one batch x [B, d] and return the loss before it."""
    knobs = knobs_of(state, warmup)
    with torch.enable_grad():
        loss, g = gradients(state, x, knobs)
    pre = (x - state.p["b_dec"]) @ state.p["W_enc"].T + state.p["b_enc"]
    f = state.arch.activate_batch(state.p, pre, knobs)
    state.t += 1
    adam = Adam(lr, state.arch.recipe.beta2, state.arch.recipe.adam_epsilon, state.t)
    for name in state.v:
        update_(state.p[name], state.v[name], g[name], adam, state.arch.trained.get(name, 1.0))
    if state.arch.decoder_norm == "unit":
        state.p["W_dec"] /= state.p["W_dec"].norm(dim=1, keepdim=True)
    if bool((f > 0).any()):
        state.arch.observe(state.p, f[f > 0].min().item(), lr)
    state.arch.decay(state.p, lr, Counts(len(x), (f > 0).sum(0).to(x.dtype)))
    state.arch.constrain(state.p)
    remember(state, (f > 0).sum(0), len(x), (f > 0).sum().item() / len(x))
    return float(loss)
