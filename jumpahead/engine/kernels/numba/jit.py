"""The compilers of loops: with IEEE-exact floating point, with reassociation of sums allowed, and for callees."""

from __future__ import annotations

from numba import njit

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reassociated, at compile time, so results are reproducible; NaN and infinity keep their meaning."""

strict = njit(cache=True, nogil=True, error_model="numpy")
"""Every operation is rounded as written."""

reassociating = njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
"""Sums may be vectorised."""

inlined = njit(nogil=True, error_model="numpy", fastmath=FASTMATH, forceinline=True)
"""As `reassociating`, for every function that another compiled function calls: its code becomes part of the caller's.

Otherwise caller and callee each have machine code of the callee under one name, optimised and therefore rounded
differently, and a process runs whichever it loaded first. That is the callee's own if the process compiled it, and the
caller's copy if the caller was read from the cache. Not cached: only compiling a caller needs it.
"""
