"""Encoding and decoding with a saved SAE on its support: what evaluation uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.engine.step import Kernels
from jumpahead.sae.base import SAE, Entries, Knobs


class Features(NamedTuple):
    """Active features of n tokens, sparse."""

    indptr: Tensor
    """[n + 1] int64: token i's entries are indptr[i] … indptr[i + 1] − 1."""
    feature: Tensor
    """[entries] int32 feature, ascending within a token."""
    value: Tensor
    """[entries] f > 0."""


def encode(sae: SAE, x: Tensor, kernels: Kernels | None = None) -> Features:
    """Active features of x [n, d], the LM's own activations."""
    from jumpahead.engine import kernels as choose

    p, arch = sae.params, sae.arch
    v = arch.derive(p)
    selection = arch.selection(p, v, Knobs(), training=False)
    layer = kernels or choose()
    centred = layer.centre(x, torch.zeros(sae.d, dtype=x.dtype))
    support = layer.support(centred, p["W_enc"], p["b_enc"], p["W_enc"].norm(dim=1), selection)
    f = arch.values(Entries(support.pre, support.feature, support.part), p, v)[0]
    on = f > 0
    if bool(on.all()):
        return Features(support.indptr, support.feature, f)
    before = torch.cat([torch.zeros(1, dtype=torch.int64), on.cumsum(0)])
    return Features(before[support.indptr], support.feature[on], f[on])


def decode(sae: SAE, features: Features) -> Tensor:
    """Reconstructions x̂ [n, d] from sparse features."""
    w, b = sae.params["W_dec"], sae.params["b_dec"]
    offsets = features.indptr.to(torch.int64)
    return torch.nn.functional.embedding_bag(
        features.feature.to(torch.int64), w, offsets, mode="sum", per_sample_weights=features.value,
        include_last_offset=True,
    ) + b  # fmt: skip
