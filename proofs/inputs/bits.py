"""Floating-point numbers as bit patterns and as places in the ordered list of all numbers of their dtype.

Works for float32, float64, bfloat16 and float16 alike, because all of them are sign and magnitude: read as an integer,
the magnitude's bits count the numbers from zero upwards. `ordinal` has one zero, `place` both.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype is a binary floating-point one, those of ml_dtypes included."""
    return dtype.kind == "f" or dtype == np.dtype(ml_dtypes.bfloat16)


def raw_bits(x: Array) -> Array:
    """The bits of every element, as unsigned integers of the same width and shape."""
    x = np.asarray(x)
    if x.dtype == np.bool_:
        return x.view(np.uint8)
    return np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")


def ordinal(x: Array) -> Array:
    """Place of every number in the order of its dtype, int64: both zeros at 0, the next number up at 1, and so on.

    Infinities lie one place beyond the largest finite number. NaN has no place; what stands there means nothing.
    """
    x = np.asarray(x)
    width = 8 * x.dtype.itemsize
    bits = raw_bits(x).astype(np.uint64)
    magnitude = (bits & np.uint64(2 ** (width - 1) - 1)).astype(np.int64)
    return np.where(bits >> np.uint64(width - 1), -magnitude, magnitude)


def from_ordinal(place: Array, dtype: Any) -> Array:
    """The number of ``dtype`` at each place (inverse of `ordinal`, +0.0 at 0); places past an infinity give it."""
    dtype = np.dtype(dtype)
    width = 8 * dtype.itemsize
    end = int(ordinal(np.asarray(np.inf, dtype)))
    place = np.clip(np.asarray(place, np.int64), -end, end)
    sign = np.where(place < 0, np.uint64(2 ** (width - 1)), np.uint64(0))
    return np.asarray((np.abs(place).astype(np.uint64) | sign).astype(f"u{dtype.itemsize}")).view(dtype)


def place(x: Array) -> Array:
    """Place of every number on a line that has both zeros, int64: -0.0 at -1, +0.0 at 0, and so on; NaN has none.

    What bisection goes along: neighbouring numbers lie one place apart, infinities included.
    """
    x = np.asarray(x)
    bits = raw_bits(x).view(f"i{x.dtype.itemsize}").astype(np.int64)
    return _mirrored(bits, x.dtype)


def at_place(places: Array, dtype: Any) -> Array:
    """The number of ``dtype`` at each place, inverse of `place`; places past an infinity are NaN."""
    dtype = np.dtype(dtype)
    return _mirrored(np.asarray(places, np.int64), dtype).astype(f"i{dtype.itemsize}").view(dtype)


def _mirrored(bits: Array, dtype: np.dtype[Any]) -> Array:
    """Magnitudes of negative numbers counted the other way round: ``~magnitude`` for ``sign + magnitude``, and back."""
    return np.where(bits < 0, bits ^ (2 ** (8 * dtype.itemsize - 1) - 1), bits)


def stored_bits(dtype: Any) -> int:
    """Stored significand bits (23 for float32): a binade holds ``2**stored_bits`` numbers, and so do the subnormals."""
    one = np.asarray(1, dtype)
    return round(-math.log2(float(from_ordinal(ordinal(one) + 1, dtype)) - 1))


def neighbours(x: Array, distance: int = 1) -> Array:
    """Every number of ``x`` with its neighbours up to ``distance`` places away: 1-D, ascending, without repetitions.

    NaN has no neighbours and is refused (ValueError). Zero appears as +0.0 only.
    """
    x = np.asarray(x).reshape(-1)
    if np.isnan(x).any():
        raise ValueError("`x` must not hold NaN, which has no neighbours")
    offsets = np.arange(-distance, distance + 1)
    places = ordinal(x)[:, None] + offsets
    end = int(ordinal(np.asarray(np.inf, x.dtype)))
    return from_ordinal(np.unique(np.clip(places, -end, end)), x.dtype)
