"""The check behind `lm.packing = "isolated"`: that a model isolates the documents of one context from each other.

The model is given positions that start at 0 in every document. transformers makes an attention mask of them, but only
for some models and some attention implementations; with others documents see each other, without any error. So each
model is tested once, on documents A and B:

    context  A B        B's activations and logits must not change when A does,
             A′ B       within √ε/4 of their norm (exactly, except for mixtures of experts, which sort tokens),
             B alone    and must equal those of B alone within √ε: other shapes sum in another order
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.lm.model import LM
from jumpahead.lm.sites import Site

LENGTHS = (5, 7)
"""Tokens of A and B."""


def check_isolation(lm: LM, sites: Sequence[str | Site] = ()) -> None:
    """Raise StudyError unless the model isolates documents, judged by its activations at these sites.

    Without sites its logits are compared, which a truncated model does not have.
    """
    first, second = LENGTHS
    ordinary = np.flatnonzero(~lm.is_special)
    some = ordinary[np.arange(first + second) * 7919 % len(ordinary)]
    a, changed, b = some[:first], some[second:], some[first:]
    position_ids = np.concatenate([np.arange(first), np.arange(second)])
    both = _outputs(lm, np.concatenate([a, b]), position_ids, sites)
    moved = _outputs(lm, np.concatenate([changed, b]), position_ids, sites)
    alone = _outputs(lm, b, np.arange(second), sites)
    eps = torch.finfo(lm.dtype).eps
    for name, value in both.items():
        reference = value[0, first:].double()
        for other, allowed in ((moved[name][0, first:], eps**0.5 / 4), (alone[name][0], eps**0.5)):
            if not _relative_distance(reference, other.double()) <= allowed:
                raise _not_isolated(lm, f"tested on its {name}")


def _outputs(lm: LM, ids: np.ndarray, position_ids: np.ndarray, sites: Sequence[str | Site]) -> dict[str, Tensor]:
    """Return the activations at each site, or without sites the logits, of one context: [1, t, …] each."""
    try:
        if sites:
            return lm.read(ids[None], sites, position_ids[None])
        return {"logits": lm.logits(ids[None], position_ids[None])}
    except TypeError as exc:  # the model does not accept positions
        raise _not_isolated(lm, "it takes no position_ids") from exc


def _relative_distance(one: Tensor, other: Tensor) -> float:
    """Return ‖one − other‖ / ‖one‖."""
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def _not_isolated(lm: LM, reason: str) -> StudyError:
    """Return the error for a model that does not isolate documents."""
    attention = getattr(lm.model.config, "_attn_implementation", None) or "its own"
    return StudyError(
        f"'{lm.name}' cannot isolate the documents of one context ({reason}; a {type(lm.model).__name__} with "
        f"{attention} attention): use lm.packing = 'none'."
    )
