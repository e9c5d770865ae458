"""Logarithm, exponential and power of our own, so that they have the same bits everywhere; libraries differ in theirs.

Everything is computed in float32, whatever the dtype of the argument, every operation rounded to nearest. Constants
are numbers of float32. With ``x = m * 2**k``, ``m`` in [sqrt(1/2), sqrt(2)), both taken from the bits:

    s = (m - 1) / (m + 1)                                   the difference is exact
    z = s * s
    l = s * (((L3 z + L2) z + L1) z + L0)                   log2(m)
    log2(x) = k + l

With ``n = ties_to_even(x)`` and ``f = x - n``, which is exact:

    p = f * (((((E5 f + E4) f + E3) f + E2) f + E1) f + E0)   2**f - 1
    exp2(x) = (1 + p) * 2**n                                the product is exact

``power(x, r)`` does not round ``r * k``: with ``h`` for ``r`` rounded to 16 bits and ``t`` for ``r - h`` rounded to 16
bits (ties to even), both products with ``k`` are exact, and

    f = (h * k - n) + (t * k + r * l)                       n = ties_to_even(h * k), then exp2 of n + f

Subnormal numbers count as zeros, and results below 2**-126 are 0: no machine that flushes them sees any. Exact at
powers of two: ``log2(2**k) = k``, ``exp2(k) = 2**k``, ``power(2**k, r) = 2**(k * r)`` where that is a whole power.

Errors in units in the last place of the exact result, as tests/verbs/test_elementary.py measures them: ``log2`` below 3
(over every ``m``, with the ``k`` where most is cancelled), ``exp2`` below 1.25, ``power`` below ``2 + |r|``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SQRT_HALF = np.float32(0.70710677)
LOG = tuple(map(np.float32, (2.88539, 0.96179885, 0.57671416, 0.43174228)))
EXP = tuple(map(np.float32, (0.6931472, 0.2402265, 0.05550328, 0.009618004, 0.001340027, 0.00015476301)))
LEAST, LARGEST = -126, 128  # exponents of the smallest result that is not 0, and of infinity


@np.errstate(all="ignore")  # special values are meant
def log2(x: Array) -> Array:
    """The binary logarithm. ``-inf`` for zeros and subnormal numbers of either sign, NaN for other negative ones.

    Args:
        x: float32, or float64, which is rounded to float32 first.
    Returns:
        Same shape and dtype.
    """
    single = _single(x)
    k, of_rest = _parts(single)
    value = np.where(np.isinf(single), single, k.astype(np.float32) + of_rest)
    value = np.where(single == 0, np.float32(-np.inf), value)
    return np.where(np.isnan(single) | (single < 0), np.float32(np.nan), value).astype(x.dtype)


@np.errstate(all="ignore")  # special values are meant
def exp2(x: Array) -> Array:
    """``2**x``: 0 below -126, infinity from 128 upwards. Arguments and result as `log2`."""
    single = x.astype(np.float32)
    inside = np.clip(np.where(np.isnan(single), 0, single), np.float32(-256), np.float32(256)).astype(np.float32)
    n = np.rint(inside)
    return np.where(np.isnan(single), np.float32(np.nan), _power_of_two(n, inside - n)).astype(x.dtype)


@np.errstate(all="ignore")  # special values are meant
def power(x: Array, r: float) -> Array:
    """``x**r`` for ``x >= 0``; NaN for NaN and for ``x < 0``. 1 for ``r = 0``; zeros and infinity as IEEE 754 has them.

    Args:
        x: as `log2`.
        r: 0, or 2**-64 to 8 in magnitude.
    Raises:
        ValueError: another ``r``.
    """
    if r != 0 and not 2.0**-64 <= abs(r) <= 8:
        raise ValueError(f"`r` must be 0, or 2**-64 to 8 in magnitude, got {r!r}")
    single = _single(x)
    k, of_rest = _parts(single)
    whole = k.astype(np.float32) * _short(r)
    n = np.rint(whole)
    f = (whole - n) + (k.astype(np.float32) * _short(r - float(_short(r))) + np.float32(r) * of_rest)
    more = np.rint(f)
    value = _power_of_two(n + more, f - more)
    value = np.where(single == 0, np.float32(np.inf if r < 0 else 0.0 if r > 0 else 1.0), value)
    value = np.where(np.isinf(single), np.float32(np.inf if r > 0 else 0.0 if r < 0 else 1.0), value)
    return np.where(np.isnan(single) | (single < 0), np.float32(np.nan), value).astype(x.dtype)


def _single(x: Array) -> Array:
    """``x`` in float32, subnormal numbers as zeros."""
    single = x.astype(np.float32)
    return np.where(np.abs(single) < np.finfo(np.float32).smallest_normal, np.float32(0), single)


def _short(r: float) -> np.float32:
    """``r`` rounded to 16 bits, ties to even."""
    significand, exponent = np.frexp(r)
    return np.float32(np.ldexp(np.rint(significand * 2.0**16), exponent - 16))


def _parts(x: Array) -> tuple[Array, Array]:
    """``k`` and ``log2(m)`` with ``x = m * 2**k``. No meaning for what is not positive and finite."""
    m, k = np.frexp(x)
    low = m < SQRT_HALF
    m, k = np.where(low, m + m, m), np.where(low, k - 1, k)
    s = (m - 1) / (m + 1)
    z = s * s
    polynomial = np.full_like(z, LOG[-1])
    for coefficient in LOG[-2::-1]:
        polynomial = polynomial * z + coefficient
    return k, s * polynomial


def _power_of_two(n: Array, f: Array) -> Array:
    """``2**(n + f)`` for whole ``n`` and ``f`` in [-1/2, 1/2]."""
    polynomial = np.full_like(f, EXP[-1])
    for coefficient in EXP[-2::-1]:
        polynomial = polynomial * f + coefficient
    value = np.ldexp(1 + polynomial * f, n.astype(np.int32))
    below = (n < LEAST) | ((n == LEAST) & (f < 0))
    return np.where(below, np.float32(0), value)
