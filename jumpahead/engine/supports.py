"""The support: its layout, and how one is made, cut and united.

A layer that does not wait for its device to count the entries returns arrays with room to spare: there are colptr[M]
entries, and what follows them is PADDING of token 0 and feature 0. No colptr and no indptr reaches it.

B tokens · M features · |S| entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.sae.base import DEAD, MAIN

PADDING = -1e30
"""π where an array is longer than its entries: finite, and so low that no architecture gives it a value."""


class Support(NamedTuple):
    """The entries, feature by feature and within a feature by token; and how to walk them token by token."""

    colptr: Tensor
    """[M + 1] int64: feature j's entries are colptr[j] … colptr[j + 1] − 1."""
    token: Tensor
    """[|S|] int32."""
    feature: Tensor
    """[|S|] int32."""
    pre: Tensor
    """[|S|] π, recomputed canonically: products and sum in float64, rounded once."""
    part: Tensor | None
    """[|S|] uint8 (base.MAIN | base.DEAD); None where there is one part."""
    indptr: Tensor
    """[B + 1] int64: token i's entries are order[indptr[i]] … order[indptr[i + 1] − 1]."""
    order: Tensor
    """[|S|] int32: entries sorted by token, then by feature."""


def assemble(feature: Tensor, token: Tensor, pre: Tensor, part: Tensor | None, tokens: int, width: int) -> Support:
    """A Support from entries that are sorted by feature, then by token."""
    colptr = torch.zeros(width + 1, dtype=torch.int64, device=pre.device)
    colptr[1:] = torch.bincount(feature, minlength=width).cumsum(0)
    indptr = torch.zeros(tokens + 1, dtype=torch.int64, device=pre.device)
    indptr[1:] = torch.bincount(token, minlength=tokens).cumsum(0)
    order = torch.argsort(token, stable=True).int()
    return Support(colptr, token.int(), feature.int(), pre, part, indptr, order)


def union(
    feature: Tensor, token: Tensor, pre: Tensor, feature2: Tensor, token2: Tensor, pre2: Tensor, tokens: int, width: int
) -> Support:
    """One Support from main entries and entries among dead features; an entry of both has both bits."""
    key = torch.cat([feature * tokens + token, feature2 * tokens + token2])
    bits = torch.cat([torch.full_like(feature, MAIN), torch.full_like(feature2, DEAD)]).to(torch.uint8)
    unique, inverse = torch.unique(key, sorted=True, return_inverse=True)
    part = torch.zeros(len(unique), dtype=torch.uint8, device=pre.device).index_add_(0, inverse, bits)
    merged = pre.new_empty(len(unique)).index_copy_(0, inverse, torch.cat([pre, pre2]))
    return assemble(unique // tokens, unique % tokens, merged, part, tokens, width)


def without(support: Support, leaving: Tensor) -> Support:
    """The support without some entries. leaving bool [|S|]."""
    kept = ~leaving
    nothing = support.colptr[:1]
    before = torch.cat([nothing, kept.cumsum(0)])
    by_token = kept[support.order.long()]
    through = torch.cat([nothing, by_token.cumsum(0)])
    return support._replace(
        colptr=before[support.colptr], token=support.token[kept], feature=support.feature[kept], pre=support.pre[kept],
        part=None if support.part is None else support.part[kept],
        indptr=through[support.indptr], order=before[support.order[by_token].long()].to(support.order.dtype),
    )  # fmt: skip


def trimmed(support: Support) -> Support:
    """The support without padding; waits for the device that knows how many entries there are."""
    n = int(support.colptr[-1])
    if n == len(support.pre):
        return support
    token, feature, pre, order = (one[:n] for one in (support.token, support.feature, support.pre, support.order))
    part = None if support.part is None else support.part[:n]
    return support._replace(token=token, feature=feature, pre=pre, part=part, order=order)
