"""The two compilers of loops: with IEEE-exact floating point, and with reassociation of sums allowed."""

from __future__ import annotations

from numba import njit

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reassociated, at compile time, so results are reproducible; NaN and infinity keep their meaning."""

strict = njit(cache=True, nogil=True, error_model="numpy")
"""Every operation is rounded as written."""

reassociating = njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
"""Sums may be vectorised."""
