"""Entries in feature-major order, in device buffers of fixed capacity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.engine.kernels.triton import screen
from jumpahead.engine.kernels.triton.launch import ceil_div
from jumpahead.engine.supports import PADDING, Support


class BufferedEntries(NamedTuple):
    """Entries sorted by feature, then by token (CSC format), in buffers with unused capacity at the end."""

    colptr: Tensor
    """[M + 1] int64."""
    token: Tensor
    """[capacity] int32."""
    feature: Tensor
    """[capacity] int32."""
    pre: Tensor
    """[capacity] π."""

    @property
    def num_entries(self) -> Tensor:
        """Return the number of entries, [1] int64."""
        return self.colptr[-1:]

    def is_used(self) -> Tensor:
        """Return which slots hold an entry, bool [capacity]."""
        return torch.arange(len(self.token), device=self.token.device) < self.num_entries


def keep_entries(
    entries: BufferedEntries, keep: Tensor, part: Tensor | None = None
) -> tuple[BufferedEntries, Tensor | None]:
    """Return the entries with keep[q], and their parts."""
    keep = keep & entries.is_used()
    positions = torch.cat([entries.colptr.new_zeros(1), keep.cumsum(0)])
    token, feature = torch.zeros_like(entries.token), torch.zeros_like(entries.feature)
    pre, out_part = torch.full_like(entries.pre, PADDING), None if part is None else torch.zeros_like(part)
    if len(keep):
        screen.compact[(ceil_div(len(keep), 1024),)](
            keep.view(torch.uint8), positions, entries.num_entries, entries.token, entries.feature, entries.pre,
            entries.token if part is None else part, token, feature, pre, token if out_part is None else out_part,
            PART=part is not None, TILE=1024,
        )  # fmt: skip
    return BufferedEntries(positions[entries.colptr], token, feature, pre), out_part


def to_support(entries: BufferedEntries, part: Tensor | None, tokens: int) -> Support:
    """Return the entries as a Support, with their order by token from a stable sort."""
    dtype = torch.int16 if tokens < 2**15 else torch.int32
    owner, order = torch.sort(torch.where(entries.is_used(), entries.token, tokens).to(dtype), stable=True)
    indptr = torch.searchsorted(owner, torch.arange(tokens + 1, dtype=dtype, device=owner.device))
    return Support(entries.colptr, entries.token, entries.feature, entries.pre, part, indptr, order.int())
