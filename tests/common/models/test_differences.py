"""Are changes rounded as said, the same on both sides, and is nothing lost that the next change could bring?"""

from __future__ import annotations

import numpy as np
import pytest

from common.models.differences import add_changes, decode_change, encode_change


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.5 / 127), ("float16", 2.0**-11)])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 1, 3, 3), (7,), ()], ids=str)
def test_a_change_is_rounded_row_by_row(kind: str, error: float, shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    change = drawn * (10.0 ** np.arange(-3, 3)[: shape[0], None, None, None] if len(shape) > 1 else 1)
    change = change.astype(np.float32)
    codes, scales = encode_change(change, kind)
    assert codes.dtype == kind and codes.shape == shape
    assert scales.dtype == np.float32 and scales.shape == (shape[0] if len(shape) > 1 else 1,)
    found = decode_change(codes, scales)
    assert found.dtype == np.float32 and found.shape == shape
    largest = np.abs(change).reshape(len(scales), -1).max(axis=1)
    apart = np.abs(found - change).reshape(len(scales), -1).max(axis=1)
    assert (apart <= 1.01 * error * largest).all(), "each row by its own largest change"


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_no_change_and_the_smallest_change_stay_what_they_are(kind: str) -> None:
    for value in (0.0, 1e-45):
        change = np.full((2, 3), value, np.float32)
        assert (np.abs(decode_change(*encode_change(change, kind))) <= value).all()


def test_a_network_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_change(np.array([[1.0, np.nan]], np.float32), "int8")


@pytest.mark.parametrize("feedback", [True, False])
def test_what_rounding_leaves_out_comes_with_later_changes(feedback: bool) -> None:
    """One weight changes a thousandth of what its neighbor does: alone by rounding it would never move."""
    step = np.array([[1.0, 0.001]], np.float32)
    held, left = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)
    for _ in range(1000):
        change = step + (left if feedback else 0)
        codes, scales = encode_change(change, "int8")
        left = change - decode_change(codes, scales)
        held = add_changes({"w": held}, {"w": codes}, {"w": scales})["w"]
    assert held[0, 0] == pytest.approx(1000, rel=1e-3)
    assert held[0, 1] == pytest.approx(1.0 if feedback else 0.0, abs=0.01)
