"""Check for `lm.packing = "isolated"`: tokens of one document must not attend to other documents of the context.

The model gets position ids that start at 0 in every document. transformers derives an attention mask from them, but
only for some models and attention implementations; for others documents attend to each other, without any error.
Therefore each model is tested once, on documents A and B:

    context  A B        B's activations and logits must not change when A does,
             A′ B       within √ε/4 of their norm (exactly, except for mixtures of experts, which sort tokens),
             B alone    and must equal the results for B alone within √ε: other shapes change the order of summation
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
"""Number of tokens of the test documents A and B."""


def check_isolation(lm: LM, sites: Sequence[str | Site] = ()) -> None:
    """Check that the model isolates documents by comparing activations at these sites.

    sites: if empty, logits are compared, which requires a model that is not truncated. Raises StudyError if the model
    does not isolate documents.
    """
    first, second = LENGTHS
    ordinary = np.flatnonzero(~lm.is_special)
    tokens = ordinary[np.arange(first + second) * 7919 % len(ordinary)]
    a, changed, b = tokens[:first], tokens[second:], tokens[first:]
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
    """Return a dict with the activations [1, t, d] of one context by site key, or with the logits [1, t, V].

    sites: if empty, the dict holds the logits under `logits`. Raises StudyError if the model takes no position ids.
    """
    try:
        if sites:
            return lm.read(ids[None], sites, position_ids[None])
        return {"logits": lm.logits(ids[None], position_ids[None])}
    except TypeError as exc:  # the model does not accept positions
        raise _not_isolated(lm, "it takes no position_ids") from exc


def _relative_distance(reference: Tensor, other: Tensor) -> float:
    """Return ‖reference − other‖ / ‖reference‖."""
    return float((reference - other).norm() / reference.norm().clamp_min(1e-30))


def _not_isolated(lm: LM, reason: str) -> StudyError:
    """Return the StudyError for a model that does not isolate documents; `reason` is a clause of its message."""
    attention = getattr(lm.model.config, "_attn_implementation", None) or "its own"
    return StudyError(
        f"'{lm.name}' cannot isolate the documents of one context ({reason}; a {type(lm.model).__name__} with "
        f"{attention} attention): use lm.packing = 'none'."
    )
