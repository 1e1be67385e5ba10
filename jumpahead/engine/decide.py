"""What decides an entry: how far a product can be off, the canonical π, the largest of each token.

B tokens · d dimensions · M features · n entries.
"""

from __future__ import annotations

from collections.abc import Callable

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


def low_slack(d: int, norms: Tensor, gaps: Tensor, gap: float | Tensor) -> Tensor:
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
    out = x.new_empty(len(token))
    size = max(1, GATHER // x.shape[1])
    for start in range(0, len(token), size):
        t, j = token[start : start + size], feature[start : start + size]
        product = (x.index_select(0, t).double() * w_enc.index_select(0, j).double()).sum(1)
        out[start : start + size] = (product + b_enc.index_select(0, j).double()).to(x.dtype)
    return out


def largest_of_each(token: Tensor, pre: Tensor, k: int | Tensor, tokens: int) -> Tensor:
    """bool [n]: the k (or k[token]) largest positive entries of each token; of equal ones the first. token, pre [n].

    Entries of a token `tokens`, which is none, may be there and mean nothing.
    """
    by_value = torch.argsort(pre, descending=True, stable=True)
    by_token = by_value[torch.argsort(token[by_value], stable=True)]
    owner = token[by_token].long()
    first = torch.searchsorted(owner, torch.arange(tokens + 1, device=owner.device))
    rank = torch.arange(len(token), device=owner.device) - first[owner]
    keep = torch.zeros(len(token), dtype=torch.bool, device=owner.device)
    keep[by_token] = rank < (k[owner] if isinstance(k, Tensor) else k)
    return keep & (pre > 0)


def is_exact(multiply: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether the error of a product in `dtype` stays within its bound, on random rows, constant rows, one massive
    dimension.

    float32: d·2⁻²⁴·‖x‖·‖w‖. bfloat16: that, of the rounded rows, and 2⁻⁸ of the result for its own rounding.
    """
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 512, generator=generator)
    w = torch.randn(96, 512, generator=generator)
    x[0], w[0] = 1.0 + 2.0**-9, 1.0 - 2.0**-10
    x[1, 3] = 3e3
    x, w = x.to(device, dtype), w.to(device, dtype)
    exact = x.double() @ w.double().T
    error = (multiply(x, w.T).double() - exact).abs()
    bound = torch.outer(x.double().norm(dim=1), w.double().norm(dim=1)) * (512 * 2.0**-24)
    if dtype == torch.bfloat16:
        bound += 2.0**-8 * (exact.abs() + bound)
    return bool((error <= bound).all())
