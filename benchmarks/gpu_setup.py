"""Sizes and SAEs of the GPU benchmark."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture
from jumpahead.sae.parameters import Params

PAPER_TOKENS = 8e9


TIMING_LR = 1e-6
"""Learning rate of timed steps: weights hardly change, so L0 stays as requested."""


NARROW_WIDTH = 1024
"""Features of the SAE whose vectors initialise a wide SAE."""


DENSE_VARIANTS = (("jumprelu", "bfloat16"), ("jumprelu", "tf32"), ("topk", "bfloat16"))


FRONTIER_SAES = tuple((name, share) for share in (1.0, 0.5, 2.0, 0.25) for name in ("jumprelu", "gated", "topk"))
"""Twelve SAEs: (architecture, L0 as a multiple of the size's)."""


class Size(NamedTuple):
    """The shape of a timed step: dimension, features, tokens, active features per token."""

    d: int
    width: int
    tokens: int
    l0: int

    def __str__(self) -> str:
        return f"d {self.d:,}, M {self.width:,}, B {self.tokens:,}, L0 {self.l0}"


SIZES = [Size(3584, 131072, 4096, 64), Size(2304, 131072, 4096, 64), Size(768, 16384, 4096, 50)]


L0S = (16, 64, 256, 1024)


CHECKED_SIZE = Size(768, 4096, 1024, 16)


CEILING_SIZES = (8192, 2**28)
"""Side of the square product, and float32 numbers of the copy."""


TINY = Size(24, 96, 32, 4)


def params_at_dictionary(arch: Architecture, dictionary: Tensor, sample: Tensor) -> Params:
    """Return the parameters of an SAE at the dictionary [M, d]; its vectors are those of a fresh narrow SAE.

    Initialising a wide SAE takes half a minute.
    """
    width, d = dictionary.shape
    narrow = min(width, NARROW_WIDTH)
    p = arch.initialise(d, narrow, torch.Generator().manual_seed(0), sample.float().cpu())
    vectors = {
        name: tensor.flatten()[:1].expand(width).clone() if tensor.shape == (narrow,) and name != "b_dec" else tensor
        for name, tensor in p.items()
    }
    return vectors | {"W_enc": dictionary.clone(), "W_dec": dictionary.clone(), "b_dec": torch.zeros(d)}


def installed_version(package: str) -> str:
    """Return a package's version, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
