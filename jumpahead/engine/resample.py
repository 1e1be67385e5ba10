"""Dead features start anew where the reconstruction is worst (Bricken et al. 2023; arXiv 2404.16014, section 4).

Every `resample_every` steps, up to `revive_until`, features that have been silent for `dead_after` tokens get

    d_j = w_j = r_i/‖r_i‖       r_i = x_i − x̂_i, token i of the batch drawn with probability ∝ ‖r_i‖², no token twice
    a threshold at which j fires on as many of the batch's tokens as features do on average: L0/M
    second moments as large as the other features' are on average

at most half as many features at once as there are tokens. Drawn from the step's number alone: resuming repeats it.

Departures from the sources: directions are residuals, not activations; the threshold replaces their smaller encoder
rows and zero biases; Adam's moments are not reset (β₁ = 0, and with a second moment of zero, late in a run, a first
update is 1/√(1 − β₂) times too large); no warm-up of the learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jumpahead.engine.step import Centred, Kernels, State


def is_due(state: State) -> bool:
    """Whether features are resampled after the step that was just done."""
    rules = state.arch.recipe
    return rules.resample_every > 0 and state.t % rules.resample_every == 0 and state.t <= rules.revive_until


def resample(state: State, x: Centred, error: Tensor, l0: float, kernels: Kernels) -> int:
    """Start dead features anew, in place; returns how many. error [B, d]: x̂ − x; l0: the batch's."""
    p, (tokens, width) = state.p, (len(error), len(state.silent))
    generator = torch.Generator().manual_seed(state.t)
    dead = (state.silent >= state.arch.recipe.dead_after).nonzero()[:, 0]
    weights = error.double().square().sum(1)
    count = min(len(dead), tokens // 2, int((weights > 0).sum()))
    if not count:
        return 0
    dead = dead[torch.randperm(len(dead), generator=generator)[:count].sort().values.to(dead.device)]
    drawn = torch.multinomial(weights.cpu(), count, generator=generator).to(dead.device)
    rows = -error[drawn] / error[drawn].norm(dim=1, keepdim=True)
    often = max(1, round(tokens * l0 / width))
    pre = kernels.product(rows, x.x.T)
    alive = torch.ones(width, dtype=torch.bool, device=dead.device).index_fill_(0, dead, False)
    for name in ("W_enc", "W_dec"):
        p[name][dead] = rows
    for name, moment in state.v.items():
        if name != "b_dec":
            moment[dead] = moment[alive].mean(0)
    state.arch.begin(p, dead, torch.topk(pre, often, dim=1).values[:, -1])
    state.last[dead] = state.t
    state.silent[dead] = 0
    state.encoder = None
    return count
