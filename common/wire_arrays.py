"""Reads arrays of the wire without trusting them, and sends sums in as few bytes as hold them exactly."""

from __future__ import annotations

import io
import math

import numpy as np

# Numbers below which an array's own header is most of its bytes.
_HEADER = 64
# Numbers alone: objects would have to be unpickled.
_ALLOWED_KINDS = frozenset("fiub")


class WireError(ValueError):
    """A message cannot be read; the text says what was wrong with it and is fit for a log."""


def narrowed(array: np.ndarray) -> np.ndarray:
    """Return float64 as float32 where nothing is lost by it, as in sums of codes on a grid: half the bytes."""
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    return single if array.size > _HEADER and np.array_equal(single, array) else array


def read_array(data: bytes, where: str, limit: int) -> np.ndarray:
    """Read one array without trusting it: size and type are looked at before memory is taken."""
    if len(data) > limit:
        raise WireError(f"{where} is oversized: {len(data)} bytes, at most {limit} are expected")
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("an unknown version of numpy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or dtype.kind not in _ALLOWED_KINDS:
            raise WireError(f"{where} has a type that is not allowed on the wire")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != len(data) - stream.tell():
            raise ValueError(f"{len(data) - stream.tell()} bytes follow where {size} are announced")
        value = np.load(io.BytesIO(data), allow_pickle=False)
    except WireError:
        raise
    except Exception as error:  # bytes from elsewhere may break numpy's parser in any way
        raise WireError(f"{where} cannot be read as an array ({error})") from None
    return value.astype(np.float32) if dtype == np.float16 else np.asarray(value)


def widened(array: np.ndarray) -> np.ndarray:
    """Undo `narrowed`: sums are added up in float64."""
    return array.astype(np.float64) if array.dtype == np.float32 else array
