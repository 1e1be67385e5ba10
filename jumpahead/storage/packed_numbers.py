"""Long lists of numbers in JSON with 16 bits each: bootstrap replicates, of which no more digits are needed.

{"first": a, "step": b, "codes": "…"}     base64 of little-endian uint16 codes; value = a + b · code, NaN for 65,535

The error of a value is at most 2⁻¹⁷ of the range of the list. report/ask.js reads the same format.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

NAN_CODE = 2**16 - 1
"""Code of a value that is not finite."""


def pack_numbers(values: np.ndarray) -> dict[str, Any]:
    """Return a one-dimensional array in packed form. Whole numbers with a range below 65,535 are kept exactly."""
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    first, span = (float(finite.min()), float(np.ptp(finite))) if len(finite) else (0.0, 0.0)
    is_whole = span < NAN_CODE and bool((finite == np.round(finite)).all())
    step = 1.0 if is_whole else span / (NAN_CODE - 1)
    codes = np.full(len(values), NAN_CODE, "<u2")
    codes[np.isfinite(values)] = np.round((finite - first) / step) if step else 0
    return {"first": first, "step": step, "codes": base64.b64encode(codes.tobytes()).decode("ascii")}


def unpack_numbers(packed: Mapping[str, Any]) -> np.ndarray:
    """Return the numbers of a packed list, float64 [n]."""
    codes = np.frombuffer(base64.b64decode(packed["codes"]), "<u2")
    return np.where(codes == NAN_CODE, np.nan, packed["first"] + packed["step"] * codes.astype(np.float64))


def packed_length(packed: Mapping[str, Any] | None) -> int:
    """Return the number of numbers of a packed list; 0 for None or an empty dict."""
    return len(base64.b64decode(packed["codes"])) // 2 if packed else 0
