"""Exponent and significand, from the bits of float64, and scaling by a power of two.

Semantics and errors: `samebits.core.primitives`, of which these have the bits.
"""

import torch
from torch import Tensor

from ..arrays import narrowed
from .operands import Operand, primitive

MANTISSA, BIAS = 52, 1023
FIELD = 0x7FF << MANTISSA


@primitive(1)
def exponent(x: Operand) -> Tensor:
    """``floor(log2 |x|)``, exact, also of subnormal numbers: -inf for zeros, inf for infinities, NaN for NaN."""
    wide = x.to(torch.float64)
    _, whole = parts(wide)
    ordinary = (wide != 0) & (wide.abs() < torch.inf)
    special = torch.where(wide == 0, -torch.inf, wide.abs())
    return narrowed(torch.where(ordinary, whole.to(torch.float64), special), x.dtype)


@primitive(1)
def significand(x: Operand) -> Tensor:
    """``x / 2**exponent(x)``, exact: its magnitude is in [1, 2). Zeros, infinities and NaN are themselves."""
    wide = x.to(torch.float64)
    within, _ = parts(wide)
    ordinary = (wide != 0) & (wide.abs() < torch.inf)
    return narrowed(torch.where(ordinary, within, wide), x.dtype)


@primitive(2)
def scale_by_power(x: Operand, n: Operand) -> Tensor:
    """``x * 2**n``, rounded once (IEEE 754 ``scaleB``).

    Args:
        n: whole numbers; others count as they are rounded toward zero. Infinities count as the limits: ``x * inf`` and
            ``x * 0``.
    """
    wide, power = x.to(torch.float64), n.to(torch.float64)
    finite = power.abs() < torch.inf
    whole = torch.where(finite, power, 0.0).trunc()
    value = scaled(wide, whole, x.dtype)
    limit = torch.where(power < 0, 0.0, power)
    return narrowed(torch.where(finite, value, wide * limit), x.dtype)


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of float64: a significand of the sign of ``x``, in [1, 2), and the exponent, int64. No meaning for 0."""
    small = x.abs() < 2.0**-900
    normal = torch.where(small, x * 2.0**200, x)
    pattern = normal.view(torch.int64)
    exponents = ((pattern & FIELD) >> MANTISSA) - torch.where(small, BIAS + 200, BIAS)
    return ((pattern & ~FIELD) | (BIAS << MANTISSA)).view(torch.float64), exponents


def scaled(x: Tensor, n: Tensor, dtype: torch.dtype) -> Tensor:
    """``x * 2**n`` of float64, which is rounded to ``dtype`` afterwards, for whole ``n``."""
    if dtype != torch.float64:  # whatever lies beyond is 0 or infinite there
        return x * power_of_two(n.clamp(-500.0, 500.0).to(torch.int64))
    within, exponents = parts(x)
    total = (exponents + n.clamp(-5000.0, 5000.0).to(torch.int64)).clamp(-1100, 1100)
    first = total.clamp(1 - BIAS, BIAS)  # exact, so that the other one rounds once
    value = within * power_of_two(first) * power_of_two(total - first)
    return torch.where((x != 0) & (x.abs() < torch.inf), value, x)


def power_of_two(n: Tensor) -> Tensor:
    """``2**n`` in float64, a normal number."""
    return ((n + BIAS) << MANTISSA).view(torch.float64)
