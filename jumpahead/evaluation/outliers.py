"""Outliers of an evaluation: few rows that are so long that they would hold most of the variance.

A row x is an outlier if ‖x − centre‖ is above a norm that the training activations of the site determine, so that all
SAEs of a site share it. Sums over outliers are kept beside the sums over all rows, and metrics are also given without
them (`metrics.METRICS`: `fvu_ordinary`, `outlier_variance`, …).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import SparseFeatures
from jumpahead.formatting import format_number, format_percent

REPORTED_SHARE = 0.1
"""Share of the variance above which an evaluation has a note on the outliers."""


class OutlierRule(NamedTuple):
    """Which rows of a site are outliers."""

    centre: Tensor
    """float32 [d]: the mean of the training activations."""
    norm: float
    """Largest distance from the centre of a row that is no outlier; ∞ for no outliers."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> OutlierRule | None:
        """Return the rule in a saved SAE's metadata; None if it has none."""
        found = about.get("outliers")
        return None if found is None else cls(torch.tensor(found["centre"]), found["norm"])

    def mask(self, x_float64: Tensor) -> Tensor:
        """Return True for the outliers among rows [n, d], [n] bool."""
        return (x_float64 - self.centre.to(x_float64)).norm(dim=1) > self.norm


def find_outliers(rule: OutlierRule | None, x_float64: Tensor) -> Tensor | None:
    """Return the mask of the outliers among rows x [n, d], [n] bool; None if there are none."""
    mask = None if rule is None else rule.mask(x_float64)
    return mask if mask is not None and bool(mask.any()) else None


def outlier_terms(mask: Tensor | None, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return per-row terms `outlier_NAME` for each term NAME, which are zero at rows that are no outliers.

    mask: [n] bool, or None for no outliers: then nothing is returned. terms: [n, …] each.
    """
    if mask is None:
        return {}
    shape = {name: (-1,) + (1,) * (term.dim() - 1) for name, term in terms.items()}
    return {f"outlier_{name}": term * mask.to(term.device).view(shape[name]) for name, term in terms.items()}


def outlier_firing(mask: Tensor | None, features: SparseFeatures, width: int) -> np.ndarray | int:
    """Return the number of outliers on which each feature fires, [M] int64; 0 for no outliers. width: M."""
    if mask is None:
        return 0
    on_outlier = mask.to(features.indptr.device).repeat_interleave(features.indptr.diff())
    return torch.bincount(features.feature[on_outlier], minlength=width).cpu().numpy()


def outlier_note(share: float, outliers: int, rows: int, fvu: float, never_fired: int) -> str | None:
    """Return a sentence on outliers that hold much of the variance; None if they do not.

    share: their share of the variance. outliers, rows: number of outliers, and of all rows. fvu, never_fired: FVU and
    the number of features that never fired, without outliers.
    """
    if not share > REPORTED_SHARE:
        return None
    return (
        f"{outliers:,} of {rows:,} activations hold {format_percent(share)} of the variance; without them FVU is "
        f"{format_number(fvu)} and {never_fired:,} features never fired: judge by these."
    )
