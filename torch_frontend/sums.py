"""Sums over blocks whose bits do not depend on who adds: one fixed order, numbers that are never subnormal.

Additions of halves, powers of two by exponent bits, square roots corrected by an exact remainder.
"""

import torch
from torch import Tensor
from torch.nn import functional

from . import devices


def ordered_sum(terms: Tensor) -> Tensor:
    """Sum over the last axis: zeros appended up to a power of two, then ``v[: n/2] + v[n/2 :]`` until one is left.

    Every addition is rounded. With ``u = 2**-24`` (float64: 2**-53) and ``d = ceil(log2 n)``, the error is at most
    ``((1 + u)**d - 1) * sum(|terms|)``. 0 for an empty axis.
    """
    n = int(terms.shape[-1])
    half = (1 << max(n - 1, 0).bit_length()) // 2
    v = functional.pad(terms, (0, max(2 * half, 1) - n))
    while half:
        v = v[..., :half] + v[..., half:]
        half //= 2
    return v[..., 0]


def square_root(x: Tensor) -> Tensor:
    """The square root, correctly rounded (IEEE 754). ``x``: 0 or positive normal numbers.

    `torch.sqrt` may be off by one in the last place. With ``x = m * 4**k``, ``m`` an integer, the root ``r`` of
    ``m * 2**mantissa`` is an integer too, and right if ``-r < m * 2**mantissa - r**2 <= r``. (That remainder is small:
    integers that wrap around on the way do no harm.)
    """
    integer, mantissa, bias = _layout(x)
    bits = x.view(integer).to(torch.int64)
    exponent = (bits >> mantissa) - bias
    odd = exponent & 1
    whole = ((bits & ((1 << mantissa) - 1)) | (1 << mantissa)) << odd
    near = (whole.double() * 2.0**mantissa).sqrt().round().to(torch.int64)
    remainder = (whole << mantissa) - near * near
    root = near + (remainder > near).to(torch.int64) - (remainder <= -near).to(torch.int64)
    power = (((exponent - odd) // 2 - mantissa + bias) << mantissa).to(integer).view(x.dtype)
    return torch.where(x > 0, root.to(x.dtype) * power, 0.0)


def unit_of(largest: Tensor) -> Tensor:
    """The power of two ``2**floor(log2 largest)``, within [2**-126, 2**126] (float64: 1022). No meaning for NaN."""
    integer, mantissa, bias = _layout(largest)
    return ((largest.view(integer) >> mantissa).clamp(1, 2 * bias - 1) << mantissa).view(largest.dtype)


def in_units(x: Tensor, unit: Tensor) -> Tensor:
    """``x / unit``, exact, with 0 for quotients below 2**-60 in magnitude (float64: 2**-508).

    Args:
        x: one axis more than ``unit``, the last.
    """
    return without_small(devices.quotient(x, unit[..., None]))


def without_small(x: Tensor) -> Tensor:
    """``x`` with 0 for numbers below 2**-60 (float64: 2**-508) in magnitude: their squares are normal numbers or 0."""
    least = 2.0**-508 if x.dtype == torch.float64 else 2.0**-60
    return torch.where(x.abs() < least, 0.0, x)


def of_units(value: Tensor, unit: Tensor) -> Tensor:
    """``value * unit``, rounded; the largest number instead of an infinity. Same shapes."""
    limit = torch.finfo(value.dtype).max
    return (value * unit).clamp(-limit, limit)


def _layout(x: Tensor) -> tuple[torch.dtype, int, int]:
    """Integer dtype, bits of the mantissa and bias of the exponent."""
    return (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
