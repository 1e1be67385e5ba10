"""What decides an entry: how far a product can be off, the canonical π, the largest of each token.

B tokens · d dimensions · M features · n entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

GATHER = 2**22  # numbers of one block of gathered rows


def slack(x: Tensor, norms: Tensor) -> Tensor:
    """How far a product in x's own precision can be from the exact π: at most ‖x_i‖·slack_j. [M]

    A sum of d products in precision u is off by at most d·u·‖x‖·‖w‖ to first order, whatever the order of summation;
    1.05 covers higher orders and the norms' own rounding, + 4 the bias and the comparison.
    """
    u = torch.finfo(x.dtype).eps / 2
    return norms * (1.05 * (x.shape[1] + 4) * u)


def low_slack(d: int, norms: Tensor, gaps: Tensor, gap: float) -> Tensor:
    """The same for a product of rows rounded to bfloat16, summed in float32. norms ‖w‖, gaps ‖w − w̃‖ [M]; gap: the
    largest ‖x − x̃‖/‖x‖. [M]

    |x·w − x̃·w̃| ≤ ‖x − x̃‖·‖w̃‖ + ‖x‖·‖w − w̃‖, with the residuals as they are; the sum is off by d·2⁻²⁴·‖x̃‖·‖w̃‖. The
    last term covers squares that vanish in float32 when gaps are measured.
    """
    low_norms = norms + gaps
    rounding = gap * low_norms + gaps + low_norms * ((1 + gap) * (d + 4) * 2.0**-24)
    return 1.05 * rounding + 1e-17


LOW_OUTPUT = 1.05 * 2.0**-8
"""A sum s is written as a bfloat16 within 2⁻⁸·|s|."""


def bias_slack(b_enc: Tensor) -> Tensor:
    """The part of the slack that does not shrink with x: rounding of the bias. [M]"""
    return b_enc.abs() * (4 * torch.finfo(b_enc.dtype).eps)


def canonical(x: Tensor, w_enc: Tensor, b_enc: Tensor, token: Tensor, feature: Tensor) -> Tensor:
    """π at entries: products and sum in float64, rounded once. Every kernel layer decides by these values. [n]"""
    out = torch.empty(len(token), dtype=x.dtype)
    size = max(1, GATHER // x.shape[1])
    for start in range(0, len(token), size):
        t, j = token[start : start + size], feature[start : start + size]
        product = (x.index_select(0, t).double() * w_enc.index_select(0, j).double()).sum(1)
        out[start : start + size] = (product + b_enc.index_select(0, j).double()).to(x.dtype)
    return out


def largest_of_each(token: Tensor, pre: Tensor, k: int | Tensor, tokens: int) -> Tensor:
    """bool [n]: the k (or k[token]) largest positive entries of each token; of equal ones the first. token, pre [n]."""
    by_value = torch.argsort(pre, descending=True, stable=True)
    by_token = by_value[torch.argsort(token[by_value], stable=True)]
    first = torch.zeros(tokens, dtype=torch.int64)
    first[1:] = torch.bincount(token, minlength=tokens).cumsum(0)[:-1]
    owner = token[by_token].long()
    rank = torch.arange(len(token)) - first[owner]
    keep = torch.zeros(len(token), dtype=torch.bool)
    keep[by_token] = rank < (k[owner] if isinstance(k, Tensor) else k)
    return keep & (pre > 0)
