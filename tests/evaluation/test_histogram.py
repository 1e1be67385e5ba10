"""The histogram of firing frequencies."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpahead.evaluation.histogram import frequency_histogram


def test_histogram_by_hand():
    found = frequency_histogram(np.array([0, 0, 1, 9, 10, 100, 1000]), rows=1000)
    assert found["log10_edges"] == [i / 4 for i in range(-12, 1)]
    #        10^-3 … 10^-2.25 … 10^-2 (10 of 1000) … 10^-1 (100) … 10^0 (1000)
    assert found["counts"] == [1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 777), min_size=1, max_size=50))
def test_histogram_counts_every_feature_that_fires(counts):
    found = frequency_histogram(np.array(counts), rows=777)
    assert sum(found["counts"]) == sum(count > 0 for count in counts)
    assert len(found["log10_edges"]) == len(found["counts"]) + 1
    assert found["log10_edges"] == frequency_histogram(np.array([1]), rows=777)["log10_edges"]
