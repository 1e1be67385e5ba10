"""FLOPs and bytes of one training step, from formulas. Does not import torch.

    B tokens · d dimensions · M features · n = |S|·B entries of the support · T features with an entry ("touched")
    R reconstructions, of which `live` train W_dec           (JumpReLU 1 and 1, Gated 2 and 1, TopK with AuxK 2 and 2);
      a prefix chain (Matryoshka) counts as one reconstruction: each entry has a value in exactly one of its members

A multiplication and an addition are two FLOPs; a number has four bytes. Bytes are a lower bound on memory traffic:
every operand is read, and every result written, once per pass, and a gathered row counts once per entry. FLOPs exclude
elementwise operations on B×M entries (a few per entry, against 2d in a product); bytes include them.
"""

from __future__ import annotations

from typing import NamedTuple

BYTES_PER_NUMBER = 4
ADAM, MOMENTUM = 10, 3
"""FLOPs per parameter: v 4, √v·c + ε 3, w 3; m 3 with momentum (β₁ > 0)."""
REMOVE_RADIAL, RENORMALISE, NORM = 4, 3, 2
"""FLOPs per element of a row: g − (g·w)w; w/‖w‖; ‖w‖."""


class StepSize(NamedTuple):
    """The quantities that the formulas depend on."""

    batch: int
    """B."""
    d: int
    width: int
    """M."""
    entries: float = 0.0
    """n: entries of the support in the whole batch."""
    touched: float = 0.0
    """T."""
    reconstructions: int = 1
    """R."""
    live: int = 1
    """Reconstructions that train W_dec."""
    unit_norm: bool = True
    """True if the rows of W_dec are kept at norm 1."""
    momentum: bool = False
    """True if Adam has first moments."""

    @property
    def adam(self) -> int:
        """Return Adam's FLOPs per parameter."""
        return ADAM + (MOMENTUM if self.momentum else 0)


def product_flops(s: StepSize) -> float:
    """Return the FLOPs of one product of B×d by d×M: 2·B·d·M."""
    return 2.0 * s.batch * s.d * s.width


def dense_products(s: StepSize) -> int:
    """Return the number of B×d×M products in a dense step.

    π; ∂W_enc and ∂(x − b_dec), needed for b_dec; per reconstruction x̂ and ∂f; per live reconstruction ∂W_dec.
    """
    return 3 + 2 * s.reconstructions + s.live


def dense_flops(s: StepSize) -> float:
    """Return the FLOPs of a dense step: products·2BdM + 2Md·13 (Adam), + Md·(4 + 3) with unit-norm rows."""
    matrix = s.width * s.d
    norm = matrix * (REMOVE_RADIAL + RENORMALISE) if s.unit_norm else 0
    return dense_products(s) * product_flops(s) + 2 * matrix * (ADAM + MOMENTUM) + norm


def dense_bytes(s: StepSize) -> float:
    """Return the bytes of a dense step: 4·[ products·(Bd + Md + BM) + R·5BM + 7·2Md ], + 4·(3 + 3)·Md with unit rows.

    5BM: the activation reads π and writes f, its backward reads ∂f and π and writes ∂π. 7·2Md: Adam reads w, m, v, g
    and writes w, m, v. (3 + 3)·Md: the projection reads g and w and writes g; the norm reads w, the division reads and
    writes it. Eager torch makes more passes than counted here.
    """
    matrix, wide, narrow = s.width * s.d, s.batch * s.width, s.batch * s.d
    numbers = dense_products(s) * (narrow + matrix + wide) + 5 * s.reconstructions * wide + 14 * matrix
    return BYTES_PER_NUMBER * (numbers + (6 * matrix if s.unit_norm else 0))


def engine_flops(s: StepSize) -> float:
    """Return the FLOPs of a step of the sparse engine.

    2BdM (the encoder product) + 2nd·[ 1 + 2R + 1 + live ] + Td·(2·10 + 2) + 2Md, + Td·(4 + 3) with unit-norm
    rows, + Td·2·3 with momentum.
    Per entry: π recomputed, x̂ and the projection per reconstruction, ∂W_enc, and ∂W_dec per live reconstruction. Per
    touched row: lazy Adam on both matrices, and ‖w_enc‖. 2Md: ∂b_dec through x − b_dec.
    """
    per_entry = 2 * s.entries * s.d * (2 + 2 * s.reconstructions + s.live)
    per_row = 2 * s.adam + NORM + (REMOVE_RADIAL + RENORMALISE if s.unit_norm else 0)
    return product_flops(s) + per_entry + s.touched * s.d * per_row + 2 * s.width * s.d


def engine_bytes(s: StepSize) -> float:
    """Return the bytes of a step of the sparse engine: 4·[ Bd + Md + 2BM + nd·(2 + 2R) + 8Td + Md ].

    The product is written and screened in blocks: 2BM. Gathered per entry: x for π and for ∂W_enc, and per
    reconstruction the row of W_dec for x̂ and the residual for projection and ∂W_dec. 8Td: the touched rows of both
    matrices and both second moments, read and written; 12Td with momentum. Md: ∂b_dec.
    """
    matrix, wide, narrow = s.width * s.d, s.batch * s.width, s.batch * s.d
    gathered = s.entries * s.d * (2 + 2 * s.reconstructions)
    return BYTES_PER_NUMBER * (narrow + 2 * matrix + 2 * wide + gathered) + rows_bytes(s)


def rows_bytes(s: StepSize) -> float:
    """Return 4·8Td, or 4·12Td with momentum: the touched rows of both matrices and of their moments, read and written
    once."""
    return BYTES_PER_NUMBER * (12.0 if s.momentum else 8.0) * s.touched * s.d


def state_bytes(s: StepSize, moments: int) -> float:
    """Return 4·2Md·(1 + moments): the bytes of both matrices and of their Adam moments (1 or 2)."""
    return BYTES_PER_NUMBER * 2.0 * s.width * s.d * (1 + moments)


def group_size(k: int, width: int, recall: float) -> int:
    """Return the number of features per group with which approximate top-k over group maxima reaches this recall.

    G ≥ (k − 1)/(1 − recall) groups are needed (arXiv 2206.14286): each of at most k − 1 larger entries falls into the
    same group with probability 1/G. All groups have the same size, so it divides `width`.
    """
    most = max(1, int(width * (1.0 - recall) / max(1, k - 1)))
    return next(size for size in range(most, 0, -1) if width % size == 0 and width // size >= k)


def dense_peak_bytes(s: StepSize) -> float:
    """Estimate the memory of a dense step beyond parameters and moments: 4·(8BM + 5Md), fitted to measurements."""
    return BYTES_PER_NUMBER * (8.0 * s.batch * s.width + 5.0 * s.width * s.d)
