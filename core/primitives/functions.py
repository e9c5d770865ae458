"""Exponentials, logarithms, powers, tanh, sigmoid and erf, whose bits are specified here; libraries differ in theirs.

Everything is computed in float64, every operation rounded to nearest, none fused, and the result is rounded once to the
dtype of the arguments: for float32 and 16 bits it is the correctly rounded one but where the exact value lies within
2**-20 units in the last place of halfway (docs/primitives.md says what was measured). Constants:
`samebits.core.coefficients`. ``poly(v; c)`` is ``(... (c[-1] * v + c[-2]) * v + ...) + c[0]``.

    exp(x):  n = ties_to_even(x * LOG2_E), r = (x - n * LN2_HIGH) - n * LN2_LOW, p = r * poly(r; EXP),
             (1 + p) * 2**n                                             x is limited to [-800, 800] first
    exp2(x): n = ties_to_even(x), r = (x - n) * LN2, the same           x is limited to [-1200, 1200] first
    log(x):  x = m * 2**k, m in [sqrt(1/2), sqrt(2)), s = (m - 1) / (m + 1), z = s * s,
             l = 2 * s + s * (z * poly(z; ATANH)),
             k * LN2_HIGH + (rest + k * LN2_LOW)
    log2(x): k + l * LOG2_E
    power(x, y): of |x|: a = y * k, b = y * (l * LOG2_E), n = ties_to_even(a), f = (a - n) + b,
             h = ties_to_even(f), r = (f - h) * LN2, (1 + p) * 2**(n + h)   a + b beyond +-5000: 0 or infinity
    tanh(x): n, p of exp for 2 * |x|, at most 44, q = 2**n * p + (2**n - 1), q / (q + 2) with the sign of x;
             x where |x| < 2**-28
    sigmoid(x): n, p of exp for -|x|, e = (1 + p) * 2**max(n, -100), 1 / (1 + e), or for x < 0
             ((1 + p) / (1 + e)) * 2**n
    erf(x):  |x| <= 1: x * poly(x * x; ERF); else, with a = min(|x|, 6), t = (a - 2.5) / (a + 2.5) and n, p of exp for
             -(a * a): 1 - ((1 + p) * 2**n) * poly(t; ERFC), with the sign of x
"""

from typing import Any

import numpy as np

from ..coefficients import ATANH, ERF, ERFC, ERFC_CENTRE, EXP, LN2, LN2_HIGH, LN2_LOW, LOG2_E
from ..operations import round_to_dtype
from .exponents import scaled
from .operands import Array, Operand, primitive

SQRT_HALF_BITS = 0x3FE6A09E667F3BCD  # of the float64 nearest to the square root of 1/2


@primitive(1)
def exp(x: Operand) -> Array:
    """``e**x``. In float64 within 1 ulp."""
    wide = _wide(x)
    n, p = _exponential(np.clip(wide, -800, 800))
    return _narrow(scaled(1 + p, n), x)


@primitive(1)
def exp2(x: Operand) -> Array:
    """``2**x``; exact for integers. In float64 within 1 ulp."""
    wide = np.clip(_wide(x), -1200, 1200)
    n = np.rint(wide)
    return _narrow(scaled(1 + _less_one((wide - n) * LN2), n), x)


@primitive(1)
def log(x: Operand) -> Array:
    """The natural logarithm: -inf for zeros, NaN for other negative numbers. In float64 within 1.5 ulp."""
    wide = _wide(x)
    k, rest = _logarithm(wide)
    return _narrow(_of_logarithm(wide, k * LN2_HIGH + (rest + k * LN2_LOW)), x)


@primitive(1)
def log2(x: Operand) -> Array:
    """The binary logarithm; exact for powers of two. Special values as `log`. In float64 within 2.5 ulp."""
    wide = _wide(x)
    k, rest = _logarithm(wide)
    return _narrow(_of_logarithm(wide, k + rest * LOG2_E), x)


@primitive(2)
def power(x: Operand, y: Operand) -> Array:
    """``x**y``; special values as IEEE 754 ``pow``: 1 for ``y = 0`` and for ``x = 1``, even if the other one is NaN.

    A negative ``x`` has powers of whole ``y`` only, NaN else. In float64 the error is up to 2 ulp for each unit of
    ``|y * log2(x)|``, and 2 more.
    """
    a, b = np.broadcast_arrays(_wide(x), _wide(y))
    return _narrow(_special_power(a, b, _power(np.abs(a), b)), x)


@primitive(1)
def tanh(x: Operand) -> Array:
    """The hyperbolic tangent. In float64 within 3 ulp."""
    wide = _wide(x)
    n, p = _exponential(np.minimum(2 * np.abs(wide), 44))
    q = scaled(p, n) + (scaled(np.ones_like(p), n) - 1)
    value = np.where(np.abs(wide) < 2.0**-28, wide, np.copysign(q / (q + 2), wide))
    return _narrow(value, x)


@primitive(1)
def sigmoid(x: Operand) -> Array:
    """``1 / (1 + e**-x)``. In float64 within 2.5 ulp."""
    wide = _wide(x)
    n, p = _exponential(np.maximum(-np.abs(wide), -800))
    below = 1 + scaled(1 + p, np.maximum(n, -100))
    return _narrow(np.where(wide < 0, scaled((1 + p) / below, n), 1 / below), x)


@primitive(1)
def erf(x: Operand) -> Array:
    """The error function. In float64 within 2 ulp."""
    wide = _wide(x)
    a = np.minimum(np.abs(wide), 6)
    small = np.minimum(a, 1)
    n, p = _exponential(-(a * a))
    t = (a - ERFC_CENTRE) / (a + ERFC_CENTRE)
    large = 1 - scaled(1 + p, n) * _polynomial(t, ERFC)
    near = wide * _polynomial(small * small, ERF)
    return _narrow(np.where(a <= 1, near, np.copysign(large, wide)), x)


def _wide(x: Operand) -> Array:
    return np.asarray(x).astype(np.float64)


def _narrow(value: Array, like: Operand) -> Array:
    return round_to_dtype(np.asarray(value), np.asarray(like).dtype)


def _polynomial(v: Array, coefficients: tuple[float, ...]) -> Array:
    value = np.full_like(v, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * v + coefficient
    return value


def _exponential(x: Array) -> tuple[Array, Array]:
    """``n`` and ``p`` with ``e**x = (1 + p) * 2**n``."""
    n = np.rint(x * LOG2_E)
    return n, _less_one((x - n * LN2_HIGH) - n * LN2_LOW)


def _less_one(r: Array) -> Array:
    """``e**r - 1``."""
    return np.asarray(r * _polynomial(r, EXP))


def _logarithm(x: Array) -> tuple[Array, Array]:
    """``k`` and ``log(m)`` with ``x = m * 2**k``. No meaning for what is not positive and finite."""
    m, exponent = np.frexp(np.abs(x))
    low = m.view(np.int64) < SQRT_HALF_BITS
    m, k = np.where(low, m + m, m), np.where(low, exponent - 1, exponent).astype(np.float64)
    s = (m - 1) / (m + 1)
    z = s * s
    return k, 2 * s + s * (z * _polynomial(z, ATANH))


def _of_logarithm(x: Array, value: Array) -> Array:
    value = np.where(x == np.inf, x, np.where(x == 0, -np.inf, value))
    return np.where(np.isnan(x) | (x < 0), np.nan, value)


def _power(a: Array, y: Array) -> Array:
    """Of finite numbers other than 0, ``a`` positive."""
    k, of_rest = _logarithm(a)
    whole, rest = y * k, y * (of_rest * LOG2_E)
    beyond = np.abs(whole + rest) > 5000
    whole, rest = np.where(beyond, np.copysign(5000, whole + rest), whole), np.where(beyond, 0, rest)
    n = np.rint(whole)
    f = (whole - n) + rest
    h = np.rint(f)
    return scaled(1 + _less_one((f - h) * LN2), n + h)


def _special_power(x: Array, y: Array, value: Array) -> Array:
    """``value`` for finite numbers other than 0, of the magnitude of ``x``; else what IEEE 754 says."""
    a, whole = np.abs(x), np.trunc(y) == y
    odd: Any = whole & (np.trunc(y * 0.5) != y * 0.5)
    upward = (y > 0) == (a > 1)
    value = np.where((a == 0) | np.isinf(a) | np.isinf(y), np.where(upward, np.inf, 0), value)
    value = np.where((x < 0) & ~whole & ~np.isinf(x), np.nan, value)
    value = np.where(np.signbit(x) & odd, -value, value)
    value = np.where(np.isnan(x) | np.isnan(y), np.nan, value)
    return np.where((x == 1) | (y == 0) | ((a == 1) & np.isinf(y)), 1.0, value)
