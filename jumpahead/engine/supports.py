"""The support of a batch: its sparse layout, and building, merging, filtering and trimming one.

An asynchronous layer does not wait for its device to count the entries and returns padded arrays: the first
colptr[M] elements are entries, the others have π = PADDING, token 0 and feature 0; colptr and indptr end before them.

B tokens · M features · |S| entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.sae.support import DEAD, MAIN

PADDING = -1e30
"""π of padding elements: finite, and so low that no architecture gives them a value."""


class Support(NamedTuple):
    """The entries (token, feature) in compressed sparse columns, and the permutation to compressed sparse rows."""

    colptr: Tensor
    """[M + 1] int64: feature j's entries are colptr[j] … colptr[j + 1] − 1."""
    token: Tensor
    """[|S|] int32: the token of each entry, ascending within a feature."""
    feature: Tensor
    """[|S|] int32: the feature of each entry, ascending."""
    pre: Tensor
    """[|S|] the canonical π of each entry (`canonical.py`)."""
    part: Tensor | None
    """[|S|] uint8, bits MAIN and DEAD; None if all entries are MAIN."""
    indptr: Tensor
    """[B + 1] int64: token i's entries are order[indptr[i]] … order[indptr[i + 1] − 1]."""
    order: Tensor
    """[|S|] int32: the entries sorted by token, then by feature."""


def support_from_entries(
    feature: Tensor, token: Tensor, pre: Tensor, part: Tensor | None, tokens: int, width: int
) -> Support:
    """Return the Support of entries sorted by feature, then by token.

    feature, token [n] int64; pre [n] π; part [n] uint8 or None; tokens: B; width: M.
    """
    colptr = torch.zeros(width + 1, dtype=torch.int64, device=pre.device)
    colptr[1:] = torch.bincount(feature, minlength=width).cumsum(0)
    indptr = torch.zeros(tokens + 1, dtype=torch.int64, device=pre.device)
    indptr[1:] = torch.bincount(token, minlength=tokens).cumsum(0)
    order = torch.argsort(token, stable=True).int()
    return Support(colptr, token.int(), feature.int(), pre, part, indptr, order)


def merge_supports(
    feature: Tensor, token: Tensor, pre: Tensor, feature2: Tensor, token2: Tensor, pre2: Tensor, tokens: int, width: int
) -> Support:
    """Return one Support of main entries and of entries among dead features (…2); an entry of both has both bits."""
    key = torch.cat([feature * tokens + token, feature2 * tokens + token2])
    bits = torch.cat([torch.full_like(feature, MAIN), torch.full_like(feature2, DEAD)]).to(torch.uint8)
    unique, inverse = torch.unique(key, sorted=True, return_inverse=True)
    part = torch.zeros(len(unique), dtype=torch.uint8, device=pre.device).index_add_(0, inverse, bits)
    merged = pre.new_empty(len(unique)).index_copy_(0, inverse, torch.cat([pre, pre2]))
    return support_from_entries(unique // tokens, unique % tokens, merged, part, tokens, width)


def drop_entries(support: Support, dropped: Tensor) -> Support:
    """Return the support without the entries where `dropped` is set, [|S|] bool."""
    kept = ~dropped
    zero = support.colptr[:1]
    before = torch.cat([zero, kept.cumsum(0)])
    by_token = kept[support.order.long()]
    through = torch.cat([zero, by_token.cumsum(0)])
    return support._replace(
        colptr=before[support.colptr], token=support.token[kept], feature=support.feature[kept], pre=support.pre[kept],
        part=None if support.part is None else support.part[kept],
        indptr=through[support.indptr], order=before[support.order[by_token].long()].to(support.order.dtype),
    )  # fmt: skip


def trim_support(support: Support) -> Support:
    """Return the support without padding; waits for the device, which counts the entries."""
    n = int(support.colptr[-1])
    if n == len(support.pre):
        return support
    token, feature, pre, order = (one[:n] for one in (support.token, support.feature, support.pre, support.order))
    part = None if support.part is None else support.part[:n]
    return support._replace(token=token, feature=feature, pre=pre, part=part, order=order)
