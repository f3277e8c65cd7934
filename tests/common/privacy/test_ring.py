"""Do totals in the ring equal totals of the numbers, and is what does not fit refused?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy.secure_masks import fraction_bits, from_ring, to_ring, words


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=9),
    st.integers(0, 2**32),
)
def test_masked_totals_equal_plain_totals(sites: list[list[float]], seed: int) -> None:
    bits = fraction_bits(1e6, len(sites))
    total = np.zeros(3, np.uint64)
    masks = np.zeros(3, np.uint64)
    for index, values in enumerate(sites):
        mask = words((seed + index).to_bytes(32, "big"), 3)
        total += to_ring(np.array(values), bits, len(sites)) + mask
        masks += mask
    expected = np.sum(np.array(sites), axis=0)
    found = from_ring(total - masks, bits)
    assert np.abs(found - expected).max() <= (len(sites) + 1) * 2.0**-bits + 1e-15 * np.abs(sites).sum()


@pytest.mark.parametrize("largest", [1e-6, 0.3, 1.0, 5e4, 1e12])
@pytest.mark.parametrize("sites", [1, 8, 1000])
def test_the_largest_values_of_all_sites_do_not_wrap(largest: float, sites: int) -> None:
    bits = fraction_bits(largest, sites)
    one = to_ring(np.array([largest, -largest]), bits, sites)
    total = from_ring(one * np.uint64(sites), bits)
    assert np.allclose(total, [largest * sites, -largest * sites], rtol=1e-9)


def test_a_finer_grid_would_not_fit() -> None:
    bits = fraction_bits(1000.0, 8)
    with pytest.raises(ValueError, match="larger than"):
        to_ring(np.array([1000.0]), bits + 1, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e3])
def test_what_cannot_be_encoded_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="larger than"):
        to_ring(np.array([0.0, bad]), fraction_bits(1e3, 4), 4)


def test_integers_come_back_exactly() -> None:
    counts = np.array([0.0, 1.0, 12345.0, 999_999.0])
    bits = fraction_bits(1e6, 3)
    assert np.array_equal(from_ring(to_ring(counts, bits, 3) * np.uint64(3), bits), 3 * counts)
