"""Cosines of decoder rows: the nearest features in the same SAE, and the same feature in other SAEs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jumpahead.sae.saved import SAE

ROWS_AT_ONCE = 1024
"""Features whose cosines with all others are held in memory together."""


def unit_rows(sae: SAE) -> Tensor:
    """Return the decoder rows with norm one, float32 [M, d]; a row of zeros stays zero."""
    rows = sae.params["W_dec"].detach().float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def best_cosines(queries: Tensor, keys: Tensor, k: int, own: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k keys with the largest cosine for each query, and the cosines: int64 and float32 [n, k].

    queries [n, d], keys [m, d]: rows of norm one. own: int64 [n], the key that each query is itself, which is left out.
    """
    index, cosine = list[Tensor](), list[Tensor]()
    k = min(k, len(keys) - (own is not None))
    for start in range(0, len(queries), ROWS_AT_ONCE):
        block = queries[start : start + ROWS_AT_ONCE] @ keys.T
        if own is not None:
            block[torch.arange(len(block)), own[start : start + ROWS_AT_ONCE].to(block.device)] = -2
        values, found = block.max(1, keepdim=True) if k == 1 else block.topk(k)
        index.append(found.cpu())
        cosine.append(values.cpu())
    if not index:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    return torch.cat(index).numpy(), torch.cat(cosine).numpy()
