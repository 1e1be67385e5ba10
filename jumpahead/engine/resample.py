"""Resampling: re-initialise dead features where the reconstruction is worst (Bricken et al. 2023; arXiv 2404.16014,
section 4).

Every `resample_every` steps, up to `revive_until_step`, features that have not fired for `dead_after_tokens` tokens get

    d_j = w_j = r_i/‖r_i‖       r_i = x_i − x̂_i, token i of the batch drawn with probability ∝ ‖r_i‖², no token twice
    a threshold at which j fires on as many of the batch's tokens as features do on average: L0/M
    second moments equal to the mean of the other features', and first moments of zero

At most half as many features at once as there are tokens. The draw depends on the step's number alone, so a resumed run
repeats it.

Departures from the sources: directions are residuals, not activations; the threshold replaces their smaller encoder
rows and zero biases; Adam's second moments are not reset (from zero, late in a run, a first update is 1/√(1 − β₂) times
too large); no warm-up of the learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpahead.engine.interface import CentredInput, Kernels, State


def is_resampling_step(state: State) -> bool:
    """Return whether dead features are resampled after the step that was just done."""
    recipe, step = state.arch.recipe, state.steps_done
    return recipe.resample_every > 0 and step % recipe.resample_every == 0 and step <= recipe.revive_until_step


def resample_dead_features(state: State, x: CentredInput, error: Tensor, l0: float, kernels: Kernels) -> int:
    """Re-initialise dead features, in place; return how many.

    x: the batch, centred. error [B, d]: its x̂ − x. l0: its active features per token.
    """
    p, (tokens, width) = state.params, (len(error), len(state.tokens_since_fired))
    generator = torch.Generator().manual_seed(state.steps_done)
    dead = (state.tokens_since_fired >= state.arch.recipe.dead_after_tokens).nonzero()[:, 0]
    weights = error.double().square().sum(1)
    count = min(len(dead), tokens // 2, int((weights > 0).sum()))
    if not count:
        return 0
    dead = dead[torch.randperm(len(dead), generator=generator)[:count].sort().values.to(dead.device)]
    drawn = torch.multinomial(weights.cpu(), count, generator=generator).to(dead.device)
    rows = -error[drawn] / error[drawn].norm(dim=1, keepdim=True)
    tokens_to_fire_on = max(1, round(tokens * l0 / width))
    pre = kernels.matmul(rows, x.x.T)
    alive = torch.ones(width, dtype=torch.bool, device=dead.device).index_fill_(0, dead, False)
    for name in ("W_enc", "W_dec"):
        p[name][dead] = rows
    for name, moment in state.second_moments.items():
        if name != "b_dec":
            moment[dead] = moment[alive].mean(0)
    for name, moment in state.first_moments.items():
        if name != "b_dec":
            moment[dead] = 0.0
    state.arch.reinitialise_features(p, dead, torch.topk(pre, tokens_to_fire_on, dim=1).values[:, -1])
    state.last_touched[dead] = state.steps_done
    state.tokens_since_fired[dead] = 0
    state.encoder = None
    return count
