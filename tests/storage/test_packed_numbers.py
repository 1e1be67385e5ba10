"""Numbers in 16 bits each: exact for counts, close for others, and small in JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jumpahead.storage.packed_numbers import pack_numbers, packed_length, unpack_numbers


def test_counts_are_exact():
    counts = np.random.default_rng(1).integers(-300, 65_000 - 300, 999).astype(float)
    np.testing.assert_array_equal(unpack_numbers(pack_numbers(counts)), counts)
    np.testing.assert_array_equal(unpack_numbers(pack_numbers(np.full(7, 12.5))), np.full(7, 12.5))


@pytest.mark.parametrize("scale", [1e-9, 0.37, 4e8])
def test_others_are_within_half_a_step(scale):
    values = scale * np.random.default_rng(2).normal(size=2_000)
    error = np.abs(unpack_numbers(pack_numbers(values)) - values).max()
    assert error <= np.ptp(values) / 2**17 * 1.001
    assert error > 0


def test_values_that_are_not_finite_are_nan():
    np.testing.assert_array_equal(
        unpack_numbers(pack_numbers(np.array([np.nan, 3, np.inf, 5]))), [np.nan, 3, np.nan, 5]
    )
    np.testing.assert_array_equal(unpack_numbers(pack_numbers(np.full(3, np.nan))), np.full(3, np.nan))


def test_the_format_by_hand():
    packed = pack_numbers(np.array([7.0, 8, np.nan, 263]))  # codes 0, 1, 65,535 and 256: low byte first
    assert packed == {"first": 7.0, "step": 1.0, "codes": "AAABAP//AAE="}


def test_it_is_small_in_json_and_counted():
    values = np.random.default_rng(3).normal(size=2_000)
    packed = json.loads(json.dumps(pack_numbers(values)))
    assert len(json.dumps(packed)) < 5_500
    assert packed_length(packed) == 2_000
    assert packed_length(None) == packed_length({}) == packed_length(pack_numbers(np.empty(0))) == 0
    assert len(unpack_numbers(pack_numbers(np.empty(0)))) == 0
