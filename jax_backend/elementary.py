"""Logarithm, exponential and power of our own, so that they have the same bits everywhere; libraries differ in theirs.

Formulas, special values, errors and sources stand in `samebits.core.elementary`, of which these have the bits: the same
sequence of float32 operations, with `product` wherever XLA would contract a product and a sum, and special values told
by their bit patterns.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .arrays import bit_pattern, divide, from_pattern, magnitude, product

Array = jax.Array
SQRT_HALF = np.float32(0.70710677).view(np.int32)
LOG = tuple(map(np.float32, (2.88539, 0.96179885, 0.57671416, 0.43174228)))
EXP = tuple(map(np.float32, (0.6931472, 0.2402265, 0.05550328, 0.009618004, 0.001340027, 0.00015476301)))
SMALLEST, INFINITY = np.int32(1 << 23), np.int32(255 << 23)  # bits


def log2(x: Array) -> Array:
    """The binary logarithm. ``-inf`` for zeros and subnormal numbers of either sign, NaN for other negative ones.

    Args:
        x: float32, or float64, which is rounded to float32 first.
    Returns:
        Same shape and dtype.
    """
    single = x.astype(np.float32)
    k, of_rest = _parts(single)
    return _with_specials(single, k + of_rest, -np.inf, np.inf).astype(x.dtype)


def exp2(x: Array) -> Array:
    """``2**x``: 0 below -126, infinity from 128 upwards. Arguments and result as `log2`."""
    single = x.astype(np.float32)
    inside = lax.clamp(np.float32(-256), jnp.where(jnp.isnan(single), 0, single), np.float32(256))
    n = lax.round(inside, lax.RoundingMethod.TO_NEAREST_EVEN)
    return jnp.where(jnp.isnan(single), np.float32(np.nan), _power_of_two(n, inside - n)).astype(x.dtype)


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
    single = x.astype(np.float32)
    k, of_rest = _parts(single)
    whole, rest = (k * np.float32(part) for part in (_short(r), _short(r - _short(r))))  # exact
    n = lax.round(whole, lax.RoundingMethod.TO_NEAREST_EVEN)
    f = (whole - n) + (rest + product(of_rest, jnp.full(of_rest.shape, np.float32(r))))
    more = lax.round(f, lax.RoundingMethod.TO_NEAREST_EVEN)
    value = _power_of_two(n + more, f - more)
    of_zero = 1.0 if r == 0 else np.inf if r < 0 else 0.0
    of_infinity = 1.0 if r == 0 else np.inf if r > 0 else 0.0
    return _with_specials(single, value, of_zero, of_infinity).astype(x.dtype)


def _short(r: float) -> float:
    """``r`` rounded to 16 bits, ties to even."""
    significand, exponent = math.frexp(r)
    return math.ldexp(round(significand * 2**16), exponent - 16)


def _with_specials(x: Array, value: Array, of_zero: float, of_infinity: float) -> Array:
    """``value``, but for zeros and subnormals, infinity, and what is negative or NaN."""
    size, nan = magnitude(x), np.float32(np.nan)
    other = jnp.where(bit_pattern(x) < 0, nan, jnp.where(size == INFINITY, np.float32(of_infinity), nan))
    value = jnp.where((bit_pattern(x) > 0) & (size < INFINITY), value, other)
    return jnp.where(size < SMALLEST, np.float32(of_zero), value)


def _parts(x: Array) -> tuple[Array, Array]:
    """``k`` (a float) and ``log2(m)`` with ``x = m * 2**k``. No meaning for what is not positive and finite."""
    bits = bit_pattern(x)
    k = (bits - SQRT_HALF) >> 23
    m = from_pattern(bits - (k << 23), np.float32)
    s = divide(m - 1, m + 1, subnormals=False)
    z = product(s, s)
    polynomial = jnp.full(z.shape, LOG[-1])
    for coefficient in LOG[-2::-1]:
        polynomial = product(z, polynomial) + coefficient
    return k.astype(np.float32), product(s, polynomial)


def _power_of_two(n: Array, f: Array) -> Array:
    """``2**(n + f)`` for whole ``n`` and ``f`` in [-1/2, 1/2]; the power is a number made of bits, in two halves."""
    polynomial = jnp.full(f.shape, EXP[-1])
    for coefficient in EXP[-2::-1]:
        polynomial = product(f, polynomial) + coefficient
    exponent = jnp.clip(n, -128, 130).astype(np.int32)
    half = exponent >> 1
    halves = (from_pattern((127 + part) << 23, np.float32) for part in (half, exponent - half))
    value = 1 + product(f, polynomial)
    for factor in halves:  # both products are exact, or infinite
        value = value * factor
    return jnp.where((n < -126) | ((n == -126) & (f < 0)), np.float32(0), value)
