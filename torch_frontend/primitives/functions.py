"""Exponentials, logarithms, powers, tanh, sigmoid and erf by the float64 operations that core lists.

Exponents are added and taken away in the bits. Numbers that are rounded to less than float64 need no power beyond its
own range.
"""

import torch
from torch import Tensor

from ...core.coefficients import ATANH, ERF, ERFC, ERFC_CENTRE, EXP, LN2, LN2_HIGH, LN2_LOW, LOG2_E
from .. import devices
from ..arrays import narrowed
from .exponents import scaled
from .operands import Operand, primitive

SQRT_HALF_BITS = 0x3FE6A09E667F3BCD  # of the float64 nearest to the square root of 1/2


@primitive(1)
def exp(x: Operand) -> Tensor:
    """``e**x``. In float64 within 1 ulp."""
    wide = _wide(x)
    n, p = _exponential(wide.clamp(-800.0, 800.0))
    return _narrow(scaled(1.0 + p, n, x.dtype), x)


@primitive(1)
def exp2(x: Operand) -> Tensor:
    """``2**x``; exact for integers. In float64 within 1 ulp."""
    wide = _wide(x).clamp(-1200.0, 1200.0)
    n = wide.round()
    return _narrow(scaled(1.0 + _less_one((wide - n) * LN2), n, x.dtype), x)


@primitive(1)
def log(x: Operand) -> Tensor:
    """The natural logarithm: -inf for zeros, NaN for other negative numbers. In float64 within 1.5 ulp."""
    wide = _wide(x)
    k, rest = _logarithm(wide)
    return _narrow(_of_logarithm(wide, devices.product(k, LN2_HIGH) + (rest + devices.product(k, LN2_LOW))), x)


@primitive(1)
def log2(x: Operand) -> Tensor:
    """The binary logarithm; exact for powers of two. Special values as `log`. In float64 within 2.5 ulp."""
    wide = _wide(x)
    k, rest = _logarithm(wide)
    return _narrow(_of_logarithm(wide, k + devices.product(rest, LOG2_E)), x)


@primitive(2)
def power(x: Operand, y: Operand) -> Tensor:
    """``x**y``; special values as IEEE 754 ``pow``: 1 for ``y = 0`` and for ``x = 1``, even if the other one is NaN.

    A negative ``x`` has powers of whole ``y`` only, NaN else. In float64 the error is up to 2 ulp for each unit of
    ``|y * log2(x)|``, and 2 more.
    """
    a, b = torch.broadcast_tensors(_wide(x), _wide(y))  # type: ignore[no-untyped-call]
    return _narrow(_special_power(a, b, _power(a.abs(), b, x.dtype)), x)


@primitive(1)
def tanh(x: Operand) -> Tensor:
    """The hyperbolic tangent. In float64 within 3 ulp."""
    wide = _wide(x)
    n, p = _exponential((2.0 * wide.abs()).clamp(max=44.0))
    power = scaled(torch.ones_like(p), n, torch.float32)
    q = devices.product(p, power) + (power - 1.0)
    return _narrow(torch.where(wide.abs() < 2.0**-28, wide, torch.copysign(devices.quotient(q, q + 2.0), wide)), x)


@primitive(1)
def sigmoid(x: Operand) -> Tensor:
    """``1 / (1 + e**-x)``. In float64 within 2.5 ulp."""
    wide = _wide(x)
    n, p = _exponential((-wide.abs()).clamp(min=-800.0))
    below = 1.0 + scaled(1.0 + p, n.clamp(min=-100.0), torch.float32)
    return _narrow(
        torch.where(wide < 0, scaled(devices.quotient(1.0 + p, below), n, x.dtype), devices.reciprocal(below)),
        x,
    )


@primitive(1)
def erf(x: Operand) -> Tensor:
    """The error function. In float64 within 2 ulp."""
    wide = _wide(x)
    a = wide.abs().clamp(max=6.0)
    small = a.clamp(max=1.0)
    n, p = _exponential(-(a * a))
    t = devices.quotient(a - ERFC_CENTRE, a + ERFC_CENTRE)
    large = 1.0 - devices.product(scaled(1.0 + p, n, torch.float32), _polynomial(t, ERFC))
    near = wide * _polynomial(small * small, ERF)
    value = torch.where(a <= 1.0, near, torch.copysign(large, wide))
    return _narrow(torch.where(wide != wide, wide, value), x)


def _wide(x: Operand) -> Tensor:
    wide: Tensor = x.to(torch.float64)
    return wide


def _narrow(value: Tensor, like: Operand) -> Tensor:
    return narrowed(value, like.dtype)


def _polynomial(v: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(v, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = devices.product(value, v) + coefficient
    return value


def _exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    """``n`` and ``p`` with ``e**x = (1 + p) * 2**n``; NaN in ``p``, and 0 in ``n``, for NaN."""
    n = (x * LOG2_E).round()
    p = _less_one((x - devices.product(n, LN2_HIGH)) - devices.product(n, LN2_LOW))
    return torch.where(n == n, n, 0.0), p


def _less_one(r: Tensor) -> Tensor:
    """``e**r - 1``."""
    return devices.product(r, _polynomial(r, EXP))


def _logarithm(x: Tensor) -> tuple[Tensor, Tensor]:
    """``k`` and ``log(m)`` with ``x = m * 2**k``. No meaning for what is not positive and finite."""
    small = x < 2.0**-1022
    bits = torch.where(small, x * 2.0**54, x).view(torch.int64)
    k = (bits - SQRT_HALF_BITS) >> 52
    m = (bits - (k << 52)).view(torch.float64)
    s = devices.quotient(m - 1.0, m + 1.0)
    z = s * s
    return (k - torch.where(small, 54, 0)).to(torch.float64), 2.0 * s + devices.product(s, z * _polynomial(z, ATANH))


def _of_logarithm(x: Tensor, value: Tensor) -> Tensor:
    value = torch.where(x == torch.inf, torch.inf, torch.where(x == 0, -torch.inf, value))
    return torch.where(x >= 0, value, torch.nan)


def _power(a: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Of finite numbers other than 0, ``a`` positive."""
    k, of_rest = _logarithm(a)
    whole, rest = devices.product(y, k), devices.product(y, of_rest * LOG2_E)
    total = whole + rest
    beyond = total.abs() > 5000.0
    whole, rest = torch.where(beyond, total.clamp(-5000.0, 5000.0), whole), torch.where(beyond, 0.0, rest)
    n = whole.round()
    f = (whole - n) + rest
    h = f.round()
    exponents = n + h
    return scaled(1.0 + _less_one((f - h) * LN2), torch.where(exponents == exponents, exponents, 0.0), dtype)


def _special_power(x: Tensor, y: Tensor, value: Tensor) -> Tensor:
    """``value`` for finite numbers other than 0, of the magnitude of ``x``; else what IEEE 754 says."""
    a, whole = x.abs(), y.trunc() == y
    odd = whole & ((y * 0.5).trunc() != y * 0.5)
    upward = (y > 0) == (a > 1)
    infinite = (a == torch.inf) | (y.abs() == torch.inf)
    value = torch.where((a == 0) | infinite, torch.where(upward, torch.inf, 0.0), value)
    value = torch.where((x < 0) & ~whole & (a < torch.inf), torch.nan, value)
    negative = odd & (x.view(torch.int64) < 0)
    bits = value.view(torch.int64)
    value = torch.where(negative, bits ^ (-(2**63)), bits).view(torch.float64)
    value = torch.where((x != x) | (y != y), torch.nan, value)
    return torch.where((x == 1) | (y == 0) | ((a == 1) & (y.abs() == torch.inf)), 1.0, value)
