"""Mean and size of activations, from which the unit of training follows: x ← (x − μ)/C, so that E‖x‖² = 1.

Measured in one pass over the first groups with at least `activations.scale_rows` rows. Its first PILOT_ROWS rows, the
pilot, give a centre p, the median of each coordinate, and the median m of ‖x − p‖. Sums of x − p are accumulated in
float64: a mean that is large beside the spread then loses no digits. With a norm limit, rows longer than limit·m are
scaled down to m, as in training:

    z = x − p, or (x − p)·m/‖x − p‖ if ‖x − p‖ > limit·m        μ = p + E z        C² = E‖z‖² − ‖E z‖²

so that a few very long rows decide neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.activations.base import Activations
from jumpahead.errors import DataError
from jumpahead.sae.recipe import UnitName
from jumpahead.sae.unit import Unit

PILOT_ROWS = 8192
"""Maximum number of rows that the centre p and the median norm m are measured on: the first ones."""
OUTLIER_LIMIT = 10.0
"""Evaluations call a row an outlier if its distance from the centre is above OUTLIER_LIMIT·m."""
ROUNDING_ROWS = 1024
"""Maximum number of rows that the variance of rounding is measured on: the first ones."""
MAX_ROUNDING_SHARE = 0.01
"""Largest accepted share of the variance that is due to rounding to the activations' dtype."""
MANTISSA_BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


class CentredMoments(NamedTuple):
    """Mean and spread of activations, with rows scaled down to one norm limit."""

    mean: Tensor
    """float32 [d]: μ, in the LM's unit."""
    spread: float
    """C = √E‖x − μ‖²."""


class Moments(NamedTuple):
    """Mean and size of the activations of one site."""

    rms: float
    """√E‖x‖² of all rows, as they are."""
    mean: Tensor
    """float32 [d]: the mean of all rows, as they are."""
    median_norm: float
    """m, the median of ‖x − p‖; 0 if most rows are equal to p."""
    by_limit: dict[float, CentredMoments]
    """μ and C by norm limit; 0 is no limit."""

    def outliers(self) -> dict[str, Any] | None:
        """Return which rows evaluations call outliers, for JSON: those farther than `norm` from the mean `centre`.

        None if that is undefined, because most rows are equal.
        """
        if self.median_norm == 0:
            return None
        return {"centre": self.by_limit[OUTLIER_LIMIT].mean.tolist(), "norm": OUTLIER_LIMIT * self.median_norm}

    def unit(self, name: UnitName, norm_limit: float) -> Unit:
        """Return the unit of training.

        norm_limit: in multiples of the median norm, 0 for none; the unit `published` has none.
        """
        if name == "published":
            return Unit(self.rms)
        mean, spread = self.by_limit[norm_limit]
        median = self.median_norm / spread
        return Unit(spread, mean, norm_limit * median if norm_limit * median > 0 else None, median)


class _Sums:
    """Sums over the rows of one site."""

    def __init__(self, pilot: Tensor, limits: Iterable[float]) -> None:
        self.count, self.square = 0, 0.0
        # float32 is enough here: any p near the rows will do, if every row is shifted by the same.
        shift = pilot.float().median(0).values
        self.median_norm = float((pilot.float() - shift).norm(dim=1).median())
        self.shift, some = shift.double(), pilot[:ROUNDING_ROWS]
        self.dtype = stored_dtype(some)
        self.rounding = rounding_variance(some, self.dtype)
        self.totals = {limit: torch.zeros_like(self.shift) for limit in limits}
        self.squares = dict.fromkeys(self.totals, 0.0)

    def add(self, rows: Tensor) -> None:
        """Add rows [n, d] of any dtype and device."""
        x = rows.to(device="cpu", dtype=torch.float64)
        self.count += len(x)
        self.square += float(x.square().sum())
        shifted = x - self.shift
        norms = shifted.norm(dim=1)
        total = shifted.sum(0)
        for limit in self.totals:
            is_long = norms > limit * self.median_norm if limit * self.median_norm > 0 else torch.zeros(len(x)).bool()
            scaled = shifted[is_long] * (self.median_norm / norms[is_long, None])
            self.totals[limit] += shifted[~is_long].sum(0) + scaled.sum(0) if bool(is_long.any()) else total
            self.squares[limit] += float(norms[~is_long].square().sum()) + int(is_long.sum()) * self.median_norm**2

    def moments(self) -> Moments:
        """Return mean and size of the rows added so far."""
        by_limit = {}
        for limit, total in self.totals.items():
            mean = total / self.count
            variance = max(0.0, self.squares[limit] / self.count - float(mean.square().sum()))
            by_limit[limit] = CentredMoments((self.shift + mean).float(), variance**0.5)
        return Moments((self.square / self.count) ** 0.5, by_limit[0].mean, self.median_norm, by_limit)


def measure_moments(activations: Activations, n_rows: int, limits: Iterable[float] = ()) -> dict[str, Moments]:
    """Return mean and size of the activations of every site, on groups 0, 1, … with at least `n_rows` rows in total.

    limits: the norm limits to measure with, beside none and OUTLIER_LIMIT. Raises DataError if all activations of a
    site are equal, or if rounding to their dtype holds more than MAX_ROUNDING_SHARE of their variance.
    """
    limits = tuple(dict.fromkeys((0.0, OUTLIER_LIMIT, *limits)))
    pilot: dict[str, list[Tensor]] = {site: [] for site in activations.widths}
    sums: dict[str, _Sums] = {}
    count, groups = 0, len(activations.rows_per_group)
    for group in range(groups):
        if count >= n_rows:
            break
        count += int(activations.rows_per_group[group])
        is_last = count >= n_rows or group + 1 == groups
        for site, rows in activations.rows(group).items():
            if site in sums:
                sums[site].add(rows)
                continue
            pilot[site].append(rows.to("cpu"))
            if count >= PILOT_ROWS or is_last:
                first = torch.cat(pilot.pop(site))
                sums[site] = _Sums(first[:PILOT_ROWS], limits)
                sums[site].add(first)
    for site, each in sums.items():
        _require_spread(site, each, activations.dtype)
    return {site: each.moments() for site, each in sums.items()}


def stored_dtype(x: Tensor) -> torch.dtype:
    """Return the coarsest of bfloat16, float16 and x's own dtype that holds every value of x exactly."""
    return next(
        (dtype for dtype in (torch.bfloat16, torch.float16) if torch.equal(x.to(dtype).to(x.dtype), x)), x.dtype
    )


def rounding_variance(x: Tensor, dtype: torch.dtype) -> float:
    """Return the variance that rounding to a dtype adds to a row of x [n, d]: the median over rows.

    A number is rounded by at most half its unit in the last place, u; the error then has the variance u²/12.
    """
    exact = x.double()
    exponent = torch.frexp(exact).exponent.double() - 1 - MANTISSA_BITS[dtype]
    return float((torch.where(exact == 0, 0.0, torch.exp2(2 * exponent)).sum(1) / 12).median())


def _require_spread(site: str, sums: _Sums, dtype: torch.dtype) -> None:
    """Raise DataError if the activations of a site are all equal, or vary too little for the dtype that holds them.

    dtype: the dtype of the study's activations.
    """
    spread = sums.moments().by_limit[OUTLIER_LIMIT].spread
    if sums.square == 0:
        raise DataError(f"the activations at {site} are all zero ({sums.count} rows): nothing can be learned there.")
    if sums.rounding <= MAX_ROUNDING_SHARE * spread**2:
        return
    name = str(sums.dtype).removeprefix("torch.")
    vary = f"the activations at {site} vary less than {name} can hold beside their mean"
    if sums.dtype == dtype != torch.float32:
        raise DataError(f"{vary}: set activations.dtype = 'float32'.")
    if spread == 0:
        raise DataError(f"the activations at {site} are all equal ({sums.count} rows): nothing can be learned there.")
    if sums.dtype == torch.float32:
        raise DataError(f"{vary}: subtract their mean before you give them.")
    raise DataError(f"{vary}, and they were computed in {name}: compute them in float32.")
