"""Logarithm, exponential and power of our own, so that they have the same bits everywhere; libraries differ in theirs.

Formulas, special values, errors and sources stand in `samebits.core.elementary`, of which these have the bits: the same
sequence of float32 operations, exponents by shifts of the bits.
"""

import math

import torch
from torch import Tensor

from . import devices

SQRT_HALF_BITS = 0x3F3504F3  # of the float32 nearest to the square root of 1/2
LOG = (2.88539, 0.96179885, 0.57671416, 0.43174228)
EXP = (0.6931472, 0.2402265, 0.05550328, 0.009618004, 0.001340027, 0.00015476301)
SMALLEST = 2.0**-126


def log2(x: Tensor) -> Tensor:
    """The binary logarithm. ``-inf`` for zeros and subnormal numbers of either sign, NaN for other negative ones.

    Args:
        x: float32, or float64, which is rounded to float32 first.
    Returns:
        Same shape and dtype.
    """
    single = x.to(torch.float32)
    k, of_rest = _parts(single)
    value = torch.where(single < torch.inf, k + of_rest, torch.inf)
    value = torch.where(single.abs() < SMALLEST, -torch.inf, value)
    return torch.where(single > -SMALLEST, value, torch.nan).to(x.dtype)


def exp2(x: Tensor) -> Tensor:
    """``2**x``: 0 below -126, infinity from 128 upwards. Arguments and result as `log2`."""
    single = x.to(torch.float32)
    inside = torch.where(single != single, 0.0, single).clamp(-256.0, 256.0)
    n = inside.round()
    return torch.where(single != single, torch.nan, _power_of_two(n, inside - n)).to(x.dtype)


def power(x: Tensor, r: float) -> Tensor:
    """``x**r`` for ``x >= 0``; NaN for NaN and for ``x < 0``. 1 for ``r = 0``; zeros and infinity as IEEE 754 has them.

    Args:
        x: as `log2`.
        r: 0, or 2**-64 to 8 in magnitude.
    Raises:
        ValueError: another ``r``.
    """
    if r != 0 and not 2.0**-64 <= abs(r) <= 8:
        raise ValueError(f"`r` must be 0, or 2**-64 to 8 in magnitude, got {r!r}")
    single = x.to(torch.float32)
    k, of_rest = _parts(single)
    whole = devices.product(k, _short(r))
    n = whole.round()
    f = (whole - n) + (devices.product(k, _short(r - _short(r))) + devices.product(of_rest, r))
    more = f.round()
    value = _power_of_two(n + more, f - more)
    of_zero, of_infinity = (0.0, torch.inf) if r > 0 else (torch.inf, 0.0) if r < 0 else (1.0, 1.0)
    value = torch.where(single < torch.inf, value, of_infinity)
    value = torch.where(single.abs() < SMALLEST, of_zero, value)
    return torch.where(single > -SMALLEST, value, torch.nan).to(x.dtype)


def _short(r: float) -> float:
    """``r`` rounded to 16 bits, ties to even."""
    significand, exponent = math.frexp(r)
    return math.ldexp(round(significand * 2.0**16), exponent - 16)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """``k`` (a float) and ``log2(m)`` with ``x = m * 2**k``. No meaning for what is not positive and finite."""
    bits = x.view(torch.int32)
    k = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (k << 23)).view(torch.float32)
    s = devices.quotient(m - 1.0, m + 1.0)
    z = s * s
    polynomial = torch.full_like(z, LOG[-1])
    for coefficient in LOG[-2::-1]:
        polynomial = devices.product(polynomial, z) + coefficient
    return k.to(torch.float32), devices.product(s, polynomial)


def _power_of_two(n: Tensor, f: Tensor) -> Tensor:
    """``2**(n + f)`` for whole ``n`` and ``f`` in [-1/2, 1/2]: ``n`` is added to the exponent in the bits."""
    polynomial = torch.full_like(f, EXP[-1])
    for coefficient in EXP[-2::-1]:
        polynomial = devices.product(polynomial, f) + coefficient
    near = (1.0 + devices.product(polynomial, f)).view(torch.int32)
    value = (near + (n.clamp(-126.0, 127.0).to(torch.int32) << 23)).view(torch.float32)
    last = torch.where(f < 0, ((near + (127 << 23)).view(torch.float32)) * 2.0, torch.inf)  # n = 128
    value = torch.where(n < 128, value, torch.where(n > 128, torch.inf, last))
    return torch.where((n < -126) | ((n == -126) & (f < 0)), 0.0, value)
