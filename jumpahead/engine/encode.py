"""Sparse encoding and decoding with a saved SAE, on the kernels of the training step. Used by evaluation."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine.interface import Kernels
from jumpahead.engine.kernels import kernel_layer
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.saved import SAE
from jumpahead.sae.support import TopKOfBatch


class SparseFeatures(NamedTuple):
    """The active features of n tokens, in compressed sparse rows."""

    indptr: Tensor
    """[n + 1] int64: token i's entries are indptr[i] … indptr[i + 1] − 1."""
    feature: Tensor
    """[entries] int32: the feature of each entry, ascending within a token."""
    value: Tensor
    """[entries] f > 0."""


@final
class SparseEncoder:
    """A saved SAE prepared for encoding many batches: norms and low-precision copy of W_enc are computed once.

    device: the device of the inputs; the SAE is moved there. kernels: a synchronous layer for that device; by default
    the fastest one installed.
    """

    def __init__(self, sae: SAE, kernels: Kernels | None = None, device: torch.device | str = "cpu"):
        self.sae, self._layer = sae.to(device), kernels or kernel_layer(device=device, is_async=False)
        assert not self._layer.is_async, "an asynchronous layer checks its buffers only at the next step"
        self._encoder = self._layer.prepare_encoder(self.sae.params["W_enc"])

    def encode(self, x: Tensor | np.ndarray) -> SparseFeatures:
        """Return the active features of x [..., d], activations as the LM produces them, of any floating-point dtype.

        The n tokens of the features are those of x in the order of its leading dimensions.
        """
        x = self.sae.cast(x, self.sae.d, "Activations for this SAE").reshape(-1, self.sae.d)
        p, arch = self.sae.params, self.sae.arch
        derived = arch.derive(p)
        selection = arch.selection(p, derived, StepInputs(), training=False)
        assert not isinstance(selection, TopKOfBatch), "features of a saved SAE depend on their token alone"
        b_pre = x.new_zeros(self.sae.d) if self.sae.b_pre is None else self.sae.b_pre
        centred = self._layer.centre_input(x, b_pre)
        support = self._layer.find_support(centred, self._encoder, p["b_enc"], selection)
        f = arch.features(arch.values(self._layer.support_entries(support), p, derived))
        order = support.order.long()
        feature, f = support.feature[order], f[order]
        on = f > 0
        if bool(on.all()):
            return SparseFeatures(support.indptr, feature, f)
        before = torch.cat([support.indptr[:1], on.cumsum(0)])
        return SparseFeatures(before[support.indptr], feature[on], f[on])

    def decode(self, features: SparseFeatures) -> Tensor:
        """Return the reconstructions x̂ [n, d] of sparse features."""
        return decode(self.sae, features)


def encode(sae: SAE, x: Tensor | np.ndarray, kernels: Kernels | None = None) -> SparseFeatures:
    """Return the active features of x [..., d], activations as the LM produces them, on the device of x.

    For many batches use `SparseEncoder`, which prepares the SAE once.
    """
    return SparseEncoder(sae, kernels, x.device if isinstance(x, Tensor) else "cpu").encode(x)


def decode(sae: SAE, features: SparseFeatures) -> Tensor:
    """Return the reconstructions x̂ [n, d] of sparse features."""
    w, b = sae.params["W_dec"], sae.params["b_dec"]
    offsets = features.indptr.to(torch.int64)
    return torch.nn.functional.embedding_bag(
        features.feature.to(torch.int64), w, offsets, mode="sum", per_sample_weights=features.value,
        include_last_offset=True,
    ) + b  # fmt: skip
