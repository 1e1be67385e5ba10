"""Histogram of the firing frequencies of features."""

from __future__ import annotations

import numpy as np

BINS_PER_DECADE = 4
"""Bins per factor of 10 of the firing-frequency histogram."""


def frequency_histogram(counts: np.ndarray, rows: int) -> dict[str, list]:
    """Return a histogram of log10 firing frequencies as {"log10_edges", "counts"}, lists of numbers.

    counts [M]: number of rows on which each feature fires, of `rows` rows. Features that never fire are left out.
    Bin edges depend only on `rows`, so all SAEs evaluated on the same text have the same edges.
    """
    decades = max(1, int(np.ceil(np.log10(rows))))
    edges = np.arange(-decades * BINS_PER_DECADE, 1) / BINS_PER_DECADE
    alive = np.asarray(counts, np.float64)
    alive = alive[alive > 0]
    log10_frequency = np.clip(np.log10(alive) - np.log10(rows), edges[0], edges[-1])
    return {"log10_edges": edges.tolist(), "counts": np.histogram(log10_frequency, edges)[0].tolist()}
