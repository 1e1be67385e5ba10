"""Canonical pre-activations, and the largest of each token by them.

Every kernel layer computes the π that decides an entry in the same way: products and their sum in float64, rounded
once. So the library and the precision of the encoder product do not change the support. B tokens · d dimensions ·
M features · n entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

GATHER_ENTRIES = 2**22
"""Numbers gathered at a time: bounds the memory of gathered rows."""


def canonical_preactivations(x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
    """Return the canonical π [n] of the entries (token, feature), [n] each. x [B, d]; w_enc [M, d]; b_enc [M]."""
    out = x.new_empty(len(token))
    size = max(1, GATHER_ENTRIES // x.shape[1])
    for start in range(0, len(token), size):
        t, j = token[start : start + size], feature[start : start + size]
        product = (x.index_select(0, t).double() * w_enc.index_select(0, j).double()).sum(1)
        out[start : start + size] = (product + b_enc.index_select(0, j).double()).to(x.dtype)
    return out


def topk_per_token(token: Tensor, pre: Tensor, k: int | Tensor, tokens: int) -> Tensor:
    """Return which entries are among the k largest positive π of their token, [n] bool; ties go to the first entry.

    token, pre [n]; k: a number, or [B] one per token; tokens: B. Entries with token = B are ignored; their results are
    meaningless.
    """
    by_value = torch.argsort(pre, descending=True, stable=True)
    by_token = by_value[torch.argsort(token[by_value], stable=True)]
    owner = token[by_token].long()
    first = torch.searchsorted(owner, torch.arange(tokens + 1, device=owner.device))
    rank = torch.arange(len(token), device=owner.device) - first[owner]
    is_kept = torch.zeros(len(token), dtype=torch.bool, device=owner.device)
    is_kept[by_token] = rank < (k[owner] if isinstance(k, Tensor) else k)
    return is_kept & (pre > 0)
