"""`lm.packing = "isolated"`: whether a model really keeps the documents of one context apart.

It is told positions that begin again with every document. transformers makes a mask of that, but only for some models
and some implementations of attention; elsewhere documents see each other and nothing says so. So it is tried, once per
model:

    context  A B        B's activations and logits must not change when A does …
             A′ B       … within √ε/4 of their size (exactly, but for mixtures of experts, which sort tokens),
             B alone    and must be those of B alone within √ε: other shapes are added up in another order
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


def check(lm: LM, sites: Sequence[str | Site] = ()) -> None:
    """StudyError unless the model isolates: at these sites, which is all that a model loaded with `only` can tell, or
    without any in its logits."""
    first, second = LENGTHS
    ordinary = np.flatnonzero(~lm.special)
    some = ordinary[np.arange(first + second) * 7919 % len(ordinary)]
    a, changed, b = some[:first], some[second:], some[first:]
    positions = np.concatenate([np.arange(first), np.arange(second)])
    both = _outputs(lm, np.concatenate([a, b]), positions, sites)
    moved = _outputs(lm, np.concatenate([changed, b]), positions, sites)
    alone = _outputs(lm, b, np.arange(second), sites)
    eps = torch.finfo(lm.dtype).eps
    for name, value in both.items():
        own = value[0, first:].double()
        for seen, allowed in ((moved[name][0, first:], eps**0.5 / 4), (alone[name][0], eps**0.5)):
            if not _distance(own, seen.double()) <= allowed:
                raise _cannot(lm, f"tried on its {name}")


def _outputs(lm: LM, ids: np.ndarray, positions: np.ndarray, sites: Sequence[str | Site]) -> dict[str, Tensor]:
    """[1, t, …] of one context: the activations at each site, or the logits."""
    try:
        return (
            lm.read(ids[None], sites, positions[None]) if sites else {"logits": lm.logits(ids[None], positions[None])}
        )
    except TypeError as exc:  # it has no positions
        raise _cannot(lm, "it takes no position_ids") from exc


def _distance(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖one‖"""
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def _cannot(lm: LM, where: str) -> StudyError:
    attention = getattr(lm.model.config, "_attn_implementation", None) or "its own"
    return StudyError(
        f"'{lm.name}' cannot keep the documents of one context apart ({where}; a {type(lm.model).__name__} with "
        f"{attention} attention): use lm.packing = 'none'."
    )
