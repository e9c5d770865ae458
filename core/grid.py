"""From a quotient to a number of the format: rounding as if there were no ends, then the rule at the ends.

What lies between is what the clipping mask looks at. All numbers here are in units of the scale.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clamp import clamp
from .descriptions import Grid, Quantizer
from .formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from .minifloat import decode_float, encode_float, overflow, round_to_float
from .rounding import round_to_integer

Array = NDArray[Any]


def round_to_grid(q: Quantizer | Grid, u: Array, noise: Array | None = None) -> Array:
    """``u`` rounded in the direction of ``q``, as if the format had no smallest and largest number.

    For binary, ternary and codebook formats, whose steps do not go on beyond their ends, ``u`` itself.

    Args:
        noise: of stochastic rounding, see `round_to_integer`.
    """
    match q.format:
        case IntegerFormat():
            return round_to_integer(u, q.rounding, noise)
        case FloatFormat():
            return round_to_float(u, q.format, q.rounding, noise)
        case _:
            return u


def limit_to_grid(q: Quantizer | Grid, rounded: Array) -> Array:
    """The number of the format for a result of `round_to_grid`. NaN stays NaN."""
    match q.format:
        case IntegerFormat():
            return clamp(rounded, q.format.lo, q.format.hi)
        case FloatFormat():
            return overflow(rounded, q.format)
        case BinaryFormat():
            number = np.where(rounded >= 0, 1.0, -1.0)
        case TernaryFormat():
            threshold = np.asarray(q.format.threshold, rounded.dtype)
            number = np.where(np.abs(rounded) > threshold, np.sign(rounded), 0.0)
        case CodebookFormat():
            upper = np.searchsorted(np.asarray(q.format.midpoints, np.float64), rounded.astype(np.float64), side="left")
            number = np.asarray(q.format.values)[upper.clip(0, len(q.format.values) - 1)]
    return np.where(np.isnan(rounded), np.nan, number).astype(rounded.dtype)


def encode(q: Quantizer, numbers: Array) -> Array:
    """Codes of numbers of the format, in its `storage` dtype."""
    match q.format:
        case FloatFormat():
            return encode_float(numbers, q.format)
        case CodebookFormat():
            return np.searchsorted(np.asarray(q.format.values), numbers.astype(np.float64)).astype(q.format.storage)
        case _:
            return numbers.astype(q.format.storage)


def decode(q: Quantizer, codes: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers of the format in ``dtype`` (each is one of float32; bfloat16 only where every one is)."""
    match q.format:
        case FloatFormat():
            return decode_float(codes, q.format).astype(dtype)
        case CodebookFormat():
            return np.asarray(q.format.values)[codes].astype(dtype)
        case _:
            return codes.astype(dtype)
