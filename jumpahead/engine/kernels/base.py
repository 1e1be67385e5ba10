"""Code that kernel layers share: default methods by torch operations, and the bounds that screening compares with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jumpahead.engine.error_bounds import (
    BF16_OUTPUT_ERROR,
    bf16_product_error_bound,
    bias_error_bound,
    product_error_bound,
)
from jumpahead.engine.interface import CentredInput, EncoderWeights, Item
from jumpahead.engine.supports import Support
from jumpahead.sae.gradients import Affine
from jumpahead.sae.support import Entries

MAX_RELATIVE_ROUNDING = 2.0**-8
"""Upper bound on ‖row − bf16 row‖/‖row‖; also used for rows that are not finite."""


class DefaultKernels(ABC):
    """Methods of `Kernels` by torch operations, and one item after the other."""

    @abstractmethod
    def sum_per_feature(self, support: Support, vector: Tensor) -> Tensor:
        """Return the per-feature sums of a support vector, [M]."""

    def support_entries(self, support: Support) -> Entries:
        return Entries(support.pre, support.feature, support.part, support.token)

    def count_active_per_feature(self, support: Support, values: Tensor) -> Tensor:
        return self.sum_per_feature(support, (values > 0).to(support.pre.dtype))

    def sum_gradient_per_feature(self, support: Support, gradient: Affine, projections: tuple[Tensor, ...]) -> Tensor:
        return self.sum_per_feature(support, gradient.evaluate(projections))

    def max_concurrent(self, items: int) -> int:
        return 1

    def run_concurrently(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        for item in items:
            work(item)


def encoder_error_slope(x: CentredInput, encoder: EncoderWeights) -> Tensor:
    """Return the per-feature error bound of the encoder product, relative to ‖x_i‖, [M]; excludes output rounding."""
    if encoder.bf16 is None:
        return product_error_bound(x.x, encoder.norms)
    return bf16_product_error_bound(x.x.shape[1], encoder.norms, encoder.rounding_norms, x.max_rounding)


def cutoffs_above(x: CentredInput, encoder: EncoderWeights, b_enc: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cutoff, error_slope), [M] each: π > lower implies product + error_slope·‖x_i‖ > cutoff.

    The product is x_i·w_j without the bias, as it is stored: in bfloat16 it includes the rounding of its output.
    """
    error_slope = encoder_error_slope(x, encoder)
    cutoff = lower - b_enc - bias_error_bound(b_enc) - bias_error_bound(torch.nan_to_num(lower, neginf=0.0, posinf=0.0))
    if encoder.bf16 is not None:
        error_slope = error_slope * (1 + BF16_OUTPUT_ERROR)
        cutoff = torch.where(cutoff.isinf(), cutoff, cutoff - cutoff.abs() * BF16_OUTPUT_ERROR)
    return cutoff, error_slope
