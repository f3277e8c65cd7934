"""How can numbers be added so that the order in which they arrive changes nothing, not even the last bit?

Floating-point addition is not associative, so a running sum depends on who answers first. `ExactSum`
does not round at all: every number is cut on one fixed grid of 40-bit digits, the digits are added as
integers, and only the final total is turned into a float. Integer addition is associative, hence any
order (and any grouping) gives the same bits, and memory stays at a handful of digits per element however
many terms there are. The idea is that of a superaccumulator (Kulisch); see also Demmel and Nguyen,
"Parallel Reproducible Summation" (2015).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS = 40  # one digit; leaves 2^22 additions before an int64 could overflow
_HALF = 1 << (_BITS - 1)
_TOP = 10  # digits stand for 2^(40*index): magnitudes up to 2^440 can be added ...
_BOTTOM = -10  # ... and bits below 2^-400 are dropped, always at the same place
_MAX_TERMS = 1 << 22

LIMIT = 2.0 ** (_BITS * (_TOP + 1))
"""Magnitude from which a term is refused. All of float32 (times any sensible weight) lies below."""


class ExactSum:
    """The exact element-wise sum of float64 arrays of one shape.

    Float32 values times weights of up to 29 bits are products without rounding, so that such a weighted
    sum is exact from end to end.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.terms = 0
        self._digits: dict[int, NDArray[np.int64]] = {}

    def add(self, values: NDArray[np.float64]) -> None:
        """Add one array; raises `ValueError` for another shape, non-finite or absurdly large values."""
        if values.shape != self.shape:
            raise ValueError(f"cannot add an array of shape {values.shape} to a sum of shape {self.shape}")
        if self.terms >= _MAX_TERMS:
            raise ValueError(f"more than {_MAX_TERMS} terms")
        largest = float(np.max(np.abs(values), initial=0.0))
        if not largest < LIMIT:
            raise ValueError(f"cannot add a value of magnitude {largest}")
        self.terms += 1
        if largest == 0.0:
            return
        # Scaling by powers of two, truncation and the subtraction below are all free of rounding; a digit
        # depends on its own element only, never on `largest`, which merely skips leading zero digits.
        index = max(int(np.frexp(largest)[1] - 1) // _BITS, _BOTTOM)
        rest = values * 2.0 ** (-_BITS * index)
        while True:
            digit = np.trunc(rest)
            if index not in self._digits:
                self._digits[index] = np.zeros(self.shape, dtype=np.int64)
            self._digits[index] += digit.astype(np.int64)
            rest -= digit
            index -= 1
            if index < _BOTTOM or not rest.any():
                return
            rest *= 2.0**_BITS

    def value(self) -> NDArray[np.float64]:
        """Return the sum, rounded to float64 (within two units in the last place)."""
        total = np.zeros(self.shape)
        if not self._digits:
            return total
        # Carry to balanced digits in [-2^39, 2^39): the leading digit then dominates all below it, so that
        # adding from the smallest upwards cannot cancel.
        carry = np.zeros(self.shape, dtype=np.int64)
        for index in range(min(self._digits), _TOP + 3):
            digit = carry + self._digits.get(index, 0)
            carry = (digit + _HALF) >> _BITS
            total += (digit - (carry << _BITS)).astype(np.float64) * 2.0 ** (_BITS * index)
            if index >= max(self._digits) and not carry.any():
                break
        return total

    @property
    def nbytes(self) -> int:
        """Memory held by the digits, in bytes."""
        return sum(digit.nbytes for digit in self._digits.values())
