"""The loss of a language model: the cross-entropy of each next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def next_token_nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the cross-entropy of each next token in nats, float32 [b, t − 1].

    logits: [b, t, V]. ids: int64 [b, t].
    """
    rows = [
        nn.functional.cross_entropy(row[:-1].float(), targets[1:], reduction="none")
        for row, targets in zip(logits, ids.to(logits.device), strict=True)
    ]  # one context at a time: a float32 copy of all logits would be the largest tensor of an evaluation
    return torch.stack(rows)
