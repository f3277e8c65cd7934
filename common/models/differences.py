"""Differences of networks on the wire: weights as rounded changes to a network that both sides hold.

A change is rounded row by row (a row: what one output channel has), to int8 or float16 in units of the row's largest.
Rounding loses nothing for good: who rounds adds what was left out to the next change. A site keeps it on its disk
(error feedback: Seide et al., "1-Bit Stochastic Gradient Descent", 2014; Karimireddy et al., ICML 2019). The server
always sends the change to what a site really holds, which has the same effect.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_Arrays = dict[str, np.ndarray]

# Groups of a message in the place of "weights": codes of the weights' shapes, and a scale for each of their rows.
CODES = "differences"
SCALES = "scales"

# The option, and the fact, that names by hash the weights to which changes are added.
REFERENCE = "reference"

# The phase of a round in which networks that stay at the sites are shown to the server, which scores them.
SHOWN = "shown"

# Largest code of int8; -128 stays unused, so that a change and its opposite are rounded alike.
_LARGEST = 127.0


def rows(shape: tuple[int, ...]) -> int:
    """Return how many scales an array has: one for each output channel, one in all for a bias or a norm."""
    return shape[0] if len(shape) > 1 else 1


def encode_change(change: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Round a change to codes int8 or float16 of its own shape, and scales float32 [rows].

    Raises ValueError where it holds NaN or infinity.
    """
    flat = np.asarray(change, dtype=np.float32).reshape(rows(change.shape), -1)
    largest = np.abs(flat).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise ValueError("a network that is to be sent holds NaN or infinity")
    scales = (largest / np.float32(_LARGEST if kind == "int8" else 1)).astype(np.float32)
    # the smallest floats vanish when they are divided: such a row is sent as no change, and waits for more
    units = np.divide(flat, scales[:, None], out=np.zeros_like(flat), where=scales[:, None] > 0)
    whole = kind == "int8"
    codes = (
        np.clip(np.rint(units), -_LARGEST, _LARGEST).astype(np.int8) if whole else units.astype(np.float16)
    )
    return codes.reshape(change.shape), scales


def decode_change(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the change float32 that codes and scales stand for; both sides compute the same bits."""
    flat = codes.astype(np.float32).reshape(rows(codes.shape), -1)
    changed: np.ndarray = (flat * scales.astype(np.float32)[:, None]).reshape(codes.shape)
    return changed


def add_changes(base: Mapping[str, np.ndarray], codes: _Arrays, scales: _Arrays) -> _Arrays:
    """Return the weights float32 that changes make of ``base``, in the order of the codes' names."""
    return {key: base[key] + decode_change(codes[key], scales[key]) for key in codes}
