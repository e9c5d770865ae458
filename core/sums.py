"""Sums over blocks whose bits do not depend on who adds: one fixed order, numbers that are never subnormal.

Elements are divided by a power of two near the largest of their block, so that neither they nor their squares overflow;
those too small to count are left out, so that no machine that reads subnormals as zero sees any.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def ordered_sum(terms: Array) -> Array:
    """Sum over the last axis: zeros appended up to a power of two, then ``v[: n/2] + v[n/2 :]`` until one is left.

    Every addition is rounded. With ``u = 2**-24`` (float64: 2**-53) and ``d = ceil(log2 n)``, the error is at most
    ``((1 + u)**d - 1) * sum(|terms|)``. 0 for an empty axis.
    """
    n = terms.shape[-1]
    size = 1 << max(n - 1, 0).bit_length()
    v = np.concatenate([terms, np.zeros((*terms.shape[:-1], size - n), terms.dtype)], axis=-1)
    while v.shape[-1] > 1:
        half = v.shape[-1] // 2
        v = v[..., :half] + v[..., half:]
    return np.asarray(v[..., 0])


def square_root(x: Array) -> Array:
    """The square root, correctly rounded (IEEE 754). ``x``: 0 or positive normal numbers."""
    return np.sqrt(x)


def unit_of(largest: Array) -> Array:
    """The power of two ``2**floor(log2 largest)``, within [2**-126, 2**126] (float64: 1022). No meaning for NaN."""
    limit = -int(np.finfo(largest.dtype).minexp)
    exponent = np.clip(np.frexp(largest)[1] - 1, -limit, limit)
    return np.where(largest == 0, np.ldexp(np.ones_like(largest), -limit), np.ldexp(np.ones_like(largest), exponent))


def in_units(x: Array, unit: Array) -> Array:
    """``x / unit``, exact, with 0 for quotients below 2**-60 in magnitude (float64: 2**-508).

    Args:
        x: one axis more than ``unit``, the last.
    """
    return without_small(x / unit[..., None])


def without_small(x: Array) -> Array:
    """``x`` with 0 for numbers below 2**-60 (float64: 2**-508) in magnitude: their squares are normal numbers or 0."""
    least = np.ldexp(np.ones((), x.dtype), int(np.finfo(x.dtype).minexp) // 2 + 3)
    return np.where(np.abs(x) < least, np.zeros_like(x), x)


def of_units(value: Array, unit: Array) -> Array:
    """``value * unit``, rounded; the largest number instead of an infinity. Same shapes."""
    limits = np.finfo(value.dtype)
    return np.asarray(np.clip(value * unit, limits.min, limits.max))
