"""FLOPs and bytes of one training step, counted on paper. No torch.

    B tokens · d dimensions · M features · n = |S|·B entries of the support · T features with an entry ("touched")
    R reconstructions, of which `live` train W_dec           (JumpReLU 1 and 1, Gated 2 and 1, TopK with AuxK 2 and 2);
      one and those that continue it (Matryoshka) count as one: each entry has a value in one of them

A multiplication and an addition are two FLOPs; numbers have four bytes. Bytes are the least that the algorithm moves:
every operand is read, and every result written, once per pass, and a gathered row counts once per entry. Elementwise
operations on B×M entries are left out of the FLOPs (a few per entry, where a product has 2d) but not out of the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

NUMBER = 4
"""Bytes."""
DENSE_ADAM, LAZY_ADAM = 13, 10
"""FLOPs per parameter: m 3, v 4, √v·c + ε 3, w 3; lazy Adam with β₁ = 0 has no m."""
RADIAL, RENORMALISE, NORM = 4, 3, 2
"""FLOPs per number of a row: g − (g·w)w; w/‖w‖; ‖w‖."""


class Step(NamedTuple):
    """What the counts depend on."""

    batch: int
    """B."""
    d: int
    width: int
    """M."""
    entries: float = 0.0
    """n: entries of the support, of the whole batch."""
    touched: float = 0.0
    """T."""
    reconstructions: int = 1
    """R, in this step's loss."""
    live: int = 1
    """Those that train W_dec."""
    is_unit: bool = True
    """Whether rows of W_dec are kept at norm one."""


def product_flops(s: Step) -> float:
    """One product of B×d by d×M: 2·B·d·M."""
    return 2.0 * s.batch * s.d * s.width


def dense_products(s: Step) -> int:
    """B×d×M products of a dense step: π; ∂W_enc and ∂(x − b_dec), which b_dec needs; and per reconstruction x̂, ∂f, and
    where it is live ∂W_dec."""
    return 3 + 2 * s.reconstructions + s.live


def dense_flops(s: Step) -> float:
    """products·2BdM + 2Md·13 (Adam) + Md·(4 + 3) where rows have norm one."""
    matrix = s.width * s.d
    norm = matrix * (RADIAL + RENORMALISE) if s.is_unit else 0
    return dense_products(s) * product_flops(s) + 2 * matrix * DENSE_ADAM + norm


def dense_bytes(s: Step) -> float:
    """4·[ products·(Bd + Md + BM) + R·5BM + 7·2Md + (3 + 3)·Md where rows have norm one ].

    5BM: the activation reads π and writes f, its backward reads ∂f and π and writes ∂π. 7·2Md: Adam reads w, m, v, g
    and writes w, m, v. (3 + 3)·Md: the projection reads g and w and writes g; the norm reads w, the division reads and
    writes it. Eager torch makes more passes than these.
    """
    matrix, wide, narrow = s.width * s.d, s.batch * s.width, s.batch * s.d
    numbers = dense_products(s) * (narrow + matrix + wide) + 5 * s.reconstructions * wide + 14 * matrix
    return NUMBER * (numbers + (6 * matrix if s.is_unit else 0))


def engine_flops(s: Step) -> float:
    """2BdM (the encoder product) + 2nd·[ 1 + 2R + 1 + live ] + Td·(2·10 + 2) + 2Md, + Td·(4 + 3) at norm one.

    Per entry: π again, per reconstruction x̂ and the projection, ∂W_enc, per live one ∂W_dec. Per touched row: lazy Adam
    on both matrices and ‖w_enc‖. 2Md: ∂b_dec through x − b_dec.
    """
    per_entry = 2 * s.entries * s.d * (2 + 2 * s.reconstructions + s.live)
    per_row = 2 * LAZY_ADAM + NORM + (RADIAL + RENORMALISE if s.is_unit else 0)
    return product_flops(s) + per_entry + s.touched * s.d * per_row + 2 * s.width * s.d


def engine_bytes(s: Step) -> float:
    """4·[ Bd + Md + 2BM + nd·(2 + 2R) + 8Td + Md ].

    The product is written and screened in blocks: BM twice. Gathered per entry: x for π and for ∂W_enc, and per
    reconstruction the row of W_dec for x̂ and the residual for projection and ∂W_dec. 8Td: the touched rows of both
    matrices and both second moments, read and written. Md: ∂b_dec.
    """
    matrix, wide, narrow = s.width * s.d, s.batch * s.width, s.batch * s.d
    gathered = s.entries * s.d * (2 + 2 * s.reconstructions)
    return NUMBER * (narrow + 2 * matrix + 2 * wide + gathered + 8 * s.touched * s.d)


def rows_bytes(s: Step) -> float:
    """4·8Td: the touched rows of both matrices and both second moments, read and written once."""
    return NUMBER * 8.0 * s.touched * s.d


def state_bytes(s: Step, moments: int) -> float:
    """4·2Md·(1 + moments): both matrices, and so many moments of each."""
    return NUMBER * 2.0 * s.width * s.d * (1 + moments)


def members(k: int, width: int, recall: float) -> int:
    """How many of `width` features share a group of grouped maxima, so that the k largest come back with that recall.

    G ≥ (k − 1)/(1 − recall) groups (arXiv 2206.14286): at most k − 1 entries are larger, each in the same group once in
    G. Groups are alike, so their size divides `width`.
    """
    most = max(1, int(width * (1.0 - recall) / max(1, k - 1)))
    return next(size for size in range(most, 0, -1) if width % size == 0 and width // size >= k)


def dense_peak(s: Step) -> float:
    """About how much memory a dense step takes beside parameters and moments: 4·(8BM + 5Md), as measured."""
    return NUMBER * (8.0 * s.batch * s.width + 5.0 * s.width * s.d)
