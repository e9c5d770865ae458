"""Exponentials, logarithms, powers, tanh, sigmoid and erf by the float64 operations that core lists.

A -0.0 that compilers do not know is added to every product that is added to: they may contract the two, and nothing
else. Subnormal numbers are told by their bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.coefficients import ATANH, ERF, ERFC, ERFC_CENTRE, EXP, LN2, LN2_HIGH, LN2_LOW, LOG2_E
from ..arrays import (
    bit_pattern,
    divide,
    from_pattern,
    is_concrete,
    is_subnormal_or_zero,
    layout,
    magnitude,
    scaled_subnormal,
    with_float64,
    with_sign_of,
)
from ..ieee_any import is_zero, multiply_any
from ..operations import FLOAT64
from .doubles import narrowed, widened
from .exponents import LARGE, scaled
from .operands import Operand, primitive

Array = jax.Array
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD  # of the float64 nearest to the square root of 1/2
QUIET = 0x7FF0000000024555  # a NaN that nobody makes


@primitive(1)
def exp(x: Operand) -> Array:
    """``e**x``. In float64 within 1 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        n, p = _exponential(lax.clamp(np.float64(-800), wide, np.float64(800)), zero)
        return _narrow(scaled(1 + p, n, x.dtype), x)


@primitive(1)
def exp2(x: Operand) -> Array:
    """``2**x``; exact for integers. In float64 within 1 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        wide = lax.clamp(np.float64(-1200), wide, np.float64(1200))
        n = _nearest(wide)
        p = _less_one((wide - n) * LN2 + zero, zero)
        return _narrow(scaled(1 + p, n, x.dtype), x)


@primitive(1)
def log(x: Operand) -> Array:
    """The natural logarithm: -inf for zeros, NaN for other negative numbers. In float64 within 1.5 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        k, rest = _logarithm(wide, zero)
        return _narrow(_of_logarithm(wide, (k * LN2_HIGH + zero) + (rest + (k * LN2_LOW + zero))), x)


@primitive(1)
def log2(x: Operand) -> Array:
    """The binary logarithm; exact for powers of two. Special values as `log`. In float64 within 2.5 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        k, rest = _logarithm(wide, zero)
        return _narrow(_of_logarithm(wide, k + (rest * LOG2_E + zero)), x)


@primitive(2)
def power(x: Operand, y: Operand) -> Array:
    """``x**y``; special values as IEEE 754 ``pow``: 1 for ``y = 0`` and for ``x = 1``, even if the other one is NaN.

    A negative ``x`` has powers of whole ``y`` only, NaN else. In float64 the error is up to 2 ulp for each unit of
    ``|y * log2(x)|``, and 2 more.
    """
    with with_float64(FLOAT64):
        (a, zero), (b, _) = _wide(x), _wide(y)
        size = from_pattern(magnitude(a), FLOAT64)
        return _narrow(_special_power(a, b, _power(size, b, x.dtype, zero)), x)


@primitive(1)
def tanh(x: Operand) -> Array:
    """The hyperbolic tangent. In float64 within 3 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        size = from_pattern(magnitude(wide), FLOAT64)
        n, p = _exponential(jnp.minimum(2 * size, 44), zero)
        power = scaled(jnp.ones_like(p), n, np.float32)
        q = (p * power + zero) + (power - 1)
        value = with_sign_of(from_pattern(magnitude(divide(q, q + 2, subnormals=False)), FLOAT64), wide)
        return _narrow(jnp.where(magnitude(wide) < np.float64(2.0**-28).view(np.int64), wide, value), x)


@primitive(1)
def sigmoid(x: Operand) -> Array:
    """``1 / (1 + e**-x)``. In float64 within 2.5 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        n, p = _exponential(jnp.maximum(-jnp.abs(wide), -800), zero)
        below = 1 + (scaled(1 + p, jnp.maximum(n, -100), np.float32) + zero)
        part = divide(jnp.where(wide < 0, 1 + p, jnp.ones_like(p)), below, subnormals=False)
        return _narrow(jnp.where(wide < 0, scaled(part, n, x.dtype), part), x)


@primitive(1)
def erf(x: Operand) -> Array:
    """The error function. In float64 within 2 ulp."""
    with with_float64(FLOAT64):
        wide, zero = _wide(x)
        a = jnp.minimum(jnp.abs(wide), 6)
        small = jnp.minimum(a, 1)
        n, p = _exponential(-(a * a + zero), zero)
        t = divide(a - ERFC_CENTRE, a + ERFC_CENTRE, subnormals=False)
        large = 1 - (scaled(1 + p, n, np.float32) * _polynomial(t, ERFC, zero) + zero)
        slope = _polynomial(small * small + zero, ERF, zero)
        near = multiply_any(wide, slope) if x.dtype == FLOAT64 else wide * slope + zero
        return _narrow(jnp.where(a <= 1, near, with_sign_of(jnp.abs(large), wide)), x)


def _wide(x: Any) -> tuple[Array, Array]:
    """``x`` in float64, and a -0.0 that compilers do not know; op by op there is nothing to be kept apart."""
    wide = widened(x)
    if is_concrete(wide) or not wide.size:
        return wide, jnp.asarray(-0.0, FLOAT64)
    pattern = bit_pattern(wide[(0,) * wide.ndim])
    return wide, from_pattern(layout(FLOAT64).sign | (pattern == QUIET).astype(np.int64), FLOAT64)


def _narrow(value: Array, like: Any) -> Array:
    return narrowed(value, like.dtype)


def _nearest(x: Array) -> Array:
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


def _polynomial(v: Array, coefficients: tuple[float, ...], zero: Array) -> Array:
    value = jnp.full_like(v, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = (value * v + zero) + coefficient
    return value


def _exponential(x: Array, zero: Array) -> tuple[Array, Array]:
    """``n`` and ``p`` with ``e**x = (1 + p) * 2**n``; NaN in ``p``, and 0 in ``n``, for NaN."""
    n = _nearest(x * LOG2_E + zero)
    p = _less_one((x - (n * LN2_HIGH + zero)) - (n * LN2_LOW + zero), zero)
    return jnp.where(jnp.isnan(n), 0, n), p


def _less_one(r: Array, zero: Array) -> Array:
    """``e**r - 1``, not to be contracted with what is added to it."""
    return r * _polynomial(r, EXP, zero) + zero


def _logarithm(x: Array, zero: Array) -> tuple[Array, Array]:
    """``k`` and ``log(m)`` with ``x = m * 2**k``. No meaning for what is not positive and finite."""
    small = is_subnormal_or_zero(x)
    bits = bit_pattern(jnp.where(small, scaled_subnormal(x), x))
    k = (bits - SQRT_HALF_BITS) >> 52
    m = from_pattern(bits - (k << 52), FLOAT64)
    s = divide(m - 1, m + 1, subnormals=False)
    z = s * s + zero
    of_rest = (2 * s) + (s * (z * _polynomial(z, ATANH, zero) + zero) + zero)
    return _whole(k - jnp.where(small, 1022, 0)), of_rest


def _whole(k: Array) -> Array:
    """int64 of few bits in float64: as the last bits of a large number, since no instruction converts many at once."""
    return from_pattern(k + np.float64(LARGE).view(np.int64), FLOAT64) - LARGE


def _of_logarithm(x: Array, value: Array) -> Array:
    infinity = layout(FLOAT64).exponent
    value = jnp.where(bit_pattern(x) == infinity, np.inf, jnp.where(is_zero(x), -np.inf, value))
    return jnp.where((bit_pattern(x) <= infinity) & ((bit_pattern(x) >= 0) | is_zero(x)), value, np.nan)


def _power(a: Array, y: Array, dtype: Any, zero: Array) -> Array:
    """Of finite numbers other than 0, ``a`` positive."""
    k, of_rest = _logarithm(a, zero)
    whole, rest = y * k + zero, y * (of_rest * LOG2_E + zero) + zero
    total = whole + rest
    beyond = jnp.abs(total) > 5000
    whole = jnp.where(beyond, jnp.clip(total, -5000, 5000), whole)
    rest = jnp.where(beyond, 0, rest)
    n = _nearest(whole)
    f = (whole - n) + rest
    h = _nearest(f)
    p = _less_one((f - h) * LN2 + zero, zero)
    return scaled(1 + p, jnp.where(jnp.isnan(n + h), 0, n + h), dtype)


def _special_power(x: Array, y: Array, value: Array) -> Array:
    """``value`` for finite numbers other than 0, of the magnitude of ``x``; else what IEEE 754 says."""
    form, zero_x, zero_y = layout(FLOAT64), is_zero(x), is_zero(y)
    negative, infinite_x, infinite_y = bit_pattern(x) < 0, magnitude(x) == form.exponent, magnitude(y) == form.exponent
    whole = ((lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN) == y) & ~is_subnormal_or_zero(y)) | zero_y
    half = y * 0.5
    odd = whole & ~zero_y & (_nearest(half) != half)
    upward = (bit_pattern(y) > 0) == (magnitude(x) > form.one)
    value = jnp.where(zero_x | infinite_x | infinite_y, jnp.where(upward, np.inf, 0.0), value)
    value = jnp.where(negative & ~zero_x & ~whole & ~infinite_x, np.nan, value)
    value = from_pattern(jnp.where(negative & odd, bit_pattern(value) ^ form.sign, bit_pattern(value)), FLOAT64)
    value = jnp.where(jnp.isnan(x) | jnp.isnan(y), np.nan, value)
    return jnp.where((x == 1) | zero_y | ((magnitude(x) == form.one) & infinite_y), 1.0, value)
