"""Rigorous error bounds of the encoder product in low precision, relative to exact arithmetic.

Screening keeps every entry whose π could matter given these bounds; the canonical π of those entries decides
(`canonical.py`). B tokens · d dimensions · M features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def product_error_bound(x: Tensor, norms: Tensor) -> Tensor:
    """Return the per-feature error bound of the encoder product in the precision of x, relative to ‖x_i‖, [M].

    x [B, d]; norms [M] ‖w_j‖. The product is within ‖x_i‖·bound_j of the exact one: a sum of d products in precision u
    is off by at most d·u·‖x‖·‖w‖ to first order, whatever the order of summation; the factor 1.05 covers higher orders
    and the rounding of the norms, + 4 the bias and the comparison.
    """
    u = torch.finfo(x.dtype).eps / 2
    return norms * (1.05 * (x.shape[1] + 4) * u)


def bf16_product_error_bound(d: int, norms: Tensor, rounding_norms: Tensor, max_rounding: float | Tensor) -> Tensor:
    """Return the per-feature error bound of the product of bfloat16 rows summed in float32, relative to ‖x_i‖, [M].

    norms [M] ‖w_j‖; rounding_norms [M] ‖w_j − w̃_j‖; max_rounding: the largest ‖x − x̃‖/‖x‖. Excludes the rounding of the
    output (`BF16_OUTPUT_ERROR`).

    |x·w − x̃·w̃| ≤ ‖x − x̃‖·‖w̃‖ + ‖x‖·‖w − w̃‖ with the measured rounding residuals; the sum adds d·2⁻²⁴·‖x̃‖·‖w̃‖. The
    last term covers squares that underflow in float32 when the residuals are measured.
    """
    bf16_norms = norms + rounding_norms
    rounding = max_rounding * bf16_norms + rounding_norms + bf16_norms * ((1 + max_rounding) * (d + 4) * 2.0**-24)
    return 1.05 * rounding + 1e-17


BF16_OUTPUT_ERROR = 1.05 * 2.0**-8
"""A sum s is written as a bfloat16 within BF16_OUTPUT_ERROR·|s|."""


def bias_error_bound(b_enc: Tensor) -> Tensor:
    """Return the part of the error bound that does not scale with ‖x_i‖: the rounding of the bias, [M]. b_enc [M]."""
    return b_enc.abs() * (4 * torch.finfo(b_enc.dtype).eps)


def is_within_error_bound(
    multiply: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, device: torch.device | str
) -> bool:
    """Return whether the error of a matrix product stays within its bound for random rows, constant rows and rows with
    one massive dimension.

    The bound in float32: d·2⁻²⁴·‖x‖·‖w‖. In bfloat16: that of the rounded rows, and 2⁻⁸ of the result for its own
    rounding.
    """
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 512, generator=generator)
    w = torch.randn(96, 512, generator=generator)
    x[0], w[0] = 1.0 + 2.0**-9, 1.0 - 2.0**-10
    x[1, 3] = 3e3
    x, w = x.to(device, dtype), w.to(device, dtype)
    exact = x.double() @ w.double().T
    error = (multiply(x, w.T).double() - exact).abs()
    bound = torch.outer(x.double().norm(dim=1), w.double().norm(dim=1)) * (512 * 2.0**-24)
    if dtype == torch.bfloat16:
        bound += 2.0**-8 * (exact.abs() + bound)
    return bool((error <= bound).all())
