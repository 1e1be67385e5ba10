"""Encoding and decoding with a saved SAE on its support: what evaluation uses."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from jumpahead.engine.step import Kernels
from jumpahead.sae.base import SAE, Knobs, LargestOfBatch


class Features(NamedTuple):
    """Active features of n tokens, sparse."""

    indptr: Tensor
    """[n + 1] int64: token i's entries are indptr[i] … indptr[i + 1] − 1."""
    feature: Tensor
    """[entries] int32 feature, ascending within a token."""
    value: Tensor
    """[entries] f > 0."""


@final
class Coder:
    """A saved SAE made ready for many batches: what screening needs to know of W_enc is computed once.

    device: where x will be, and the SAE with it. kernels: a layer for that device, not a late one; by default its own.
    """

    def __init__(self, sae: SAE, kernels: Kernels | None = None, device: torch.device | str = "cpu"):
        from jumpahead.engine import kernel_layer as choose

        self.sae, self._layer = sae.to(device), kernels or choose(device=device, late=False)
        assert not self._layer.late, "a late layer leaves what did not fit to the step after"
        self._encoder = self._layer.encoder(self.sae.params["W_enc"])

    def encode(self, x: Tensor) -> Features:
        """Active features of x [n, d], the LM's own activations."""
        p, arch = self.sae.params, self.sae.arch
        v = arch.derive(p)
        selection = arch.selection(p, v, Knobs(), training=False)
        assert not isinstance(selection, LargestOfBatch), "features of a saved SAE depend on their token alone"
        centred = self._layer.centre(x, x.new_zeros(self.sae.d))
        support = self._layer.support(centred, self._encoder, p["b_enc"], selection)
        f = arch.features(arch.values(self._layer.entries(support), p, v))
        order = support.order.long()
        feature, f = support.feature[order], f[order]
        on = f > 0
        if bool(on.all()):
            return Features(support.indptr, feature, f)
        before = torch.cat([support.indptr[:1], on.cumsum(0)])
        return Features(before[support.indptr], feature[on], f[on])

    def decode(self, features: Features) -> Tensor:
        """Reconstructions x̂ [n, d]."""
        return decode(self.sae, features)


def encode(sae: SAE, x: Tensor, kernels: Kernels | None = None) -> Features:
    """Active features of x [n, d], the LM's own activations, where x is. For many batches: `Coder`."""
    return Coder(sae, kernels, x.device).encode(x)


def decode(sae: SAE, features: Features) -> Tensor:
    """Reconstructions x̂ [n, d] from sparse features."""
    w, b = sae.params["W_dec"], sae.params["b_dec"]
    offsets = features.indptr.to(torch.int64)
    return torch.nn.functional.embedding_bag(
        features.feature.to(torch.int64), w, offsets, mode="sum", per_sample_weights=features.value,
        include_last_offset=True,
    ) + b  # fmt: skip
