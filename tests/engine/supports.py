"""Helpers for tests of supports: finding one, its dense form and layout, data in which ties or rounding matter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from jumpahead.engine.batch_topk import select_support
from tests.engine.cases import layer, standard_normal


def support_of(name, x, w, b, selection):
    """Return the support of x [B, d] by the kernel layer `name` (or a layer); w [M, d], b [M]."""
    kernels = layer(name) if isinstance(name, str) else name
    centred = kernels.centre_input(x, torch.zeros(x.shape[1], dtype=x.dtype))
    return select_support(centred, kernels.prepare_encoder(w), b, selection, kernels).support


def to_dense(support, width, values=None):
    """Return the bits of `part` (1 if it is None) as [B, M] float64, or the given values [|S|]; 0 elsewhere."""
    out = torch.zeros(len(support.indptr) - 1, width, dtype=torch.float64)
    entries = (support.part if support.part is not None else torch.ones(len(support.pre))) if values is None else values
    out[support.token.long(), support.feature.long()] = entries.double()
    return out


def assert_layout(support, tokens, width):
    """Assert that colptr, feature and token are consistent, and that indptr and order list the entries by token."""
    token, feature, order = support.token.long(), support.feature.long(), support.order.long()
    assert support.colptr[0] == 0
    assert support.colptr[-1] == len(token) == len(support.pre) == len(order)
    assert torch.equal(feature, torch.arange(width).repeat_interleave(support.colptr.diff()))
    assert bool(((feature * tokens + token).diff() > 0).all()), "entries ascend by feature, then by token, once each"
    assert torch.equal(token[order], torch.arange(tokens).repeat_interleave(support.indptr.diff()))
    assert bool(((token * width + feature)[order].diff() > 0).all())


def data_with_exact_sums(tokens, d, width, seed, dtype, levels=3):
    """Return x, W_enc and b_enc whose products and sums are exact in every order, so that equal π are equal in bits."""
    random = np.random.default_rng(seed)

    def some(*shape):
        return torch.from_numpy(random.integers(-levels, levels + 1, shape) / 8.0).to(dtype)

    return some(tokens, d), some(width, d), some(width)


class Data(NamedTuple):
    """A batch and an encoder."""

    x: Any
    """[B, d]"""
    w: Any
    """[M, d]"""
    b: Any
    """[M]"""


def data_with_large_rounding(kind, tokens=48, d=40, width=210):
    """Return float32 data for which a too small error bound loses entries. kind: what makes rounding large."""
    x, w = standard_normal(tokens, d, seed=1).float(), standard_normal(width, d, seed=2).float() / d**0.5
    b, half = 0.1 * standard_normal(width, seed=3).float(), d // 2
    if kind == "constant":  # the worst case: every rounding of a sum has the same sign
        x[:] = (1 + (torch.arange(tokens) // 8)[:, None] * 0.137) * (
            1 + 1e-6 * standard_normal(tokens, 1, seed=4).float()
        )
        w[:] = 1 + 0.5 * standard_normal(width, 1, seed=5).float().abs().clamp_max(1.0)
        w[:30] = 1.9 * (1 + 3e-6 * standard_normal(30, 1, seed=6).float())
        b[:] = 0.0
    if kind == "massive":
        x[:, 3] = 1e4 * (1 + 0.1 * standard_normal(tokens, seed=5).float())
        w[:, 3] *= 1e-3
    if kind == "cancelling":  # large partial sums, small π
        x[:, :half], w[:, :half] = x[:, :half].abs(), w[:, :half].abs()
        x[:, half:], w[:, half:] = x[:, :half], -w[:, :half] * (1 + 1e-6 * standard_normal(width, half, seed=6).float())
        b[:] = 0.0
    if kind == "bias":
        b = 3e3 * standard_normal(width, seed=7).float()
    if kind == "tiny":
        x, w = x * 1e-15, w * 1e-15
        b = b * 1e-30
    return Data(x, w, b)
