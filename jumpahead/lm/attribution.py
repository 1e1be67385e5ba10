"""The contribution of each feature to a logit or to the loss, to first order: gradient × activation.

    m            a number that follows from the logits: a logit, or the loss
    g = ∂m/∂x    at the site and position; with the error term ∂m/∂f_j = g·d_j
    a_j = f_j · (g·d_j)

−a_j approximates the change of m when feature j is set to zero at that position; Σ_j a_j + g·(x − x̂) + g·b_dec = g·x.
One forward and one backward pass, whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.errors import DataError
from jumpahead.lm.hooks import splice_activation
from jumpahead.lm.interventions import checked_ids, site_for
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM, Ids
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import Site
from jumpahead.sae.saved import SAE


class Attribution(NamedTuple):
    """The contribution of every feature at every position to a number m."""

    value: float
    """m."""
    features: Tensor
    """float32 [b, t, M]: f_j · ∂m/∂f_j; zero where a feature is not active, and at positions that are not spliced."""
    error: Tensor
    """float32 [b, t]: g·(x − x̂), the contribution of what the SAE misses."""

    def top(self, count: int = 10) -> list[tuple[int, float]]:
        """Return the features of the largest contributions by absolute value, summed over positions, with the sums."""
        total = self.features.sum((0, 1))
        found = total.abs().topk(min(count, len(total))).indices
        return [(i, v) for i, v in zip(found.tolist(), total[found].tolist(), strict=True) if v != 0]


def attribute(
    lm: LM,
    sae: SAE,
    ids: Ids,
    target: int | Callable[[Tensor], Tensor] | None = None,
    *,
    site: str | Site | None = None,
    error: bool = True,
) -> Attribution:
    """Return what each feature contributes to a logit or to the loss, by gradient × activation.

    target: a token, for its logit at the last position, summed over contexts; a function of the logits [b, t, V] that
    returns one number; None for the mean loss of all next tokens. site: by default the SAE's. error: False to take the
    gradient with the reconstruction spliced in, without what the SAE misses.

    Raises DataError for batches that are padded on the left, or if the target is not one number.
    """
    ids, place = checked_ids(lm, ids), site_for(sae, site)
    warn_if_elsewhere(sae, lm.name, lm.digest, place)
    is_spliced = lm.spliceable(ids)[..., None]
    kept: list[Tensor] = []

    def replace(x: Tensor) -> Tensor:
        mask = is_spliced.to(x.device)
        start = x.detach() if error else torch.where(mask, sae(x).to(x), x.detach())
        kept.extend((x.detach().clone(), start.clone().requires_grad_(True)))
        return kept[1].clone()  # in-place operations of the model leave the leaf as it is

    point = lm.hook_point(place)
    with torch.enable_grad(), splice_activation(point, ids.shape, replace):
        measured = _measure(lm.model(input_ids=ids, use_cache=False).logits, ids, target)
        (gradient,) = torch.autograd.grad(measured, [kept[1]])
    x, g = kept[0], torch.where(is_spliced.to(gradient.device), gradient, 0.0).to(sae.device).float()
    f = sae.encode(x)
    misses = x.to(sae.device).float() - sae.decode(f)
    return Attribution(float(measured.detach()), f * (g @ sae.params["W_dec"].T), (g * misses).sum(-1))


def _measure(logits: Tensor, ids: Tensor, target: int | Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return the number that is attributed, 0-d. Raises DataError if the target returns several."""
    if target is None:
        return next_token_nats(logits, ids).mean()
    found = target(logits) if callable(target) else logits[:, -1, target].sum()
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise DataError("The target of an attribution must be one number: return logits[0, -1, token], for instance.")
    return found.reshape(())
