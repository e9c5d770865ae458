"""Rounding to floating-point formats, and their codes, by the bits of float32 and float64.

With its significand masked away, a number leaves the power of two below it; from that comes the quantum, the distance
of the format's numbers there. Dividing by it is exact, so torch's own rounding to integers rounds once. Codes are the
fields of float32, shifted; subnormal numbers get such fields by adding the smallest normal one.
"""

import torch
from torch import Tensor

from ..core.directions import Rounding
from ..core.formats import FloatFormat, Specials
from . import devices
from .arrays import may_hold_nan
from .rounding import round_to_integer


def round_to_float(u: Tensor, format: FloatFormat, rounding: Rounding, noise: Tensor | None = None) -> Tensor:
    """``u`` rounded to a number of the format, as if its exponents had no upper end.

    Args:
        u: any shape, float32 or float64.
        noise: of stochastic rounding, see `round_to_integer`; here of the multiple of the quantum.
    Returns:
        Same shape and dtype. NaN and infinities are kept. Zero keeps the sign of ``u``, except in formats without a
        negative zero.
    """
    if format.min_exponent > format.mantissa_bits:  # quanta above 1: the quotient could vanish
        least = 2.0 ** (format.min_exponent - format.mantissa_bits - 25)  # of a quantum less than any noise but 0
        u = torch.where(u == 0, u, torch.copysign(u.abs().clamp(min=least), u))
    integer, exponent, largest = (
        (torch.int64, 0x7FF << 52, 2.0**1023) if u.dtype == torch.float64 else (torch.int32, 0xFF << 23, 2.0**127)
    )
    power = (u.view(integer) & exponent).view(u.dtype)  # 0 for subnormal numbers, infinite for NaN
    quantum = power.clamp(2.0**format.min_exponent, largest) * 2.0**-format.mantissa_bits
    rounded = round_to_integer(devices.quotient(u, quantum), rounding, noise) * quantum
    if format.negative_zero:
        return rounded
    bits = rounded.view(integer)  # compilers may take one zero for the other, but not among integers
    return torch.where(bits << 1 == 0, 0, bits).view(u.dtype)


def overflow(rounded: Tensor, format: FloatFormat) -> Tensor:
    """Magnitudes beyond the largest number: that number when the format saturates or has neither infinity nor NaN, else
    infinity, else NaN. NaN stays NaN.
    """
    lo, hi = format.lo, format.hi
    if format.saturate or format.specials is Specials.NONE:
        return rounded.clamp(lo, hi)
    if format.specials is Specials.IEEE:
        return torch.where(rounded > hi, torch.inf, torch.where(rounded < lo, -torch.inf, rounded))
    return torch.where(rounded.abs() > hi, torch.nan, rounded)


def decode_float(codes: Tensor, format: FloatFormat) -> Tensor:
    """Values of codes (bits in any integer dtype), float32: exact for every format."""
    bits, mantissa_bits, normal = codes.to(torch.int32), format.mantissa_bits, 1 << format.mantissa_bits
    magnitude = bits & ((1 << (format.bits - 1)) - 1)
    fields = (magnitude.clamp(min=normal) << (23 - mantissa_bits)) + ((127 - format.offset) << 23)
    missing = (magnitude.clamp(max=normal) - normal).to(torch.float32)  # of a subnormal number to the first normal one
    value = fields.view(torch.float32) + missing * 2.0 ** (format.min_exponent - mantissa_bits)
    top, ones = _top(format), normal - 1
    if format.specials is Specials.IEEE:
        value = torch.where(magnitude < top, value, torch.where(magnitude == top, torch.inf, torch.nan))
    elif format.specials is Specials.NAN_ONLY:
        value = torch.where(magnitude == top + ones, torch.nan, value)
    negative = (bits >> (format.bits - 1)) & 1
    value = (value.view(torch.int32) | (-negative & -(2**31))).view(torch.float32)
    if format.specials is Specials.NEGATIVE_ZERO:
        value = torch.where(bits == _nan_code(format), torch.nan, value)
    return value


def encode_float(values: Tensor, format: FloatFormat) -> Tensor:
    """Codes of numbers of the format, float32 or float64; the NaN of a format is its code with sign 0.

    Returns:
        Same shape, dtype `format.storage`. Values are not checked: for what is no number of the format some code.
    """
    single, smallest = values.to(torch.float32), 2.0**format.min_exponent
    magnitude, shift = single.abs(), 23 - format.mantissa_bits
    normal = magnitude.clamp(min=smallest).view(torch.int32) >> shift
    subnormal = (magnitude.clamp(max=smallest) + smallest).view(torch.int32) >> shift
    code = normal + subnormal - ((256 - 2 * format.offset) << format.mantissa_bits)
    if format.specials is Specials.IEEE:
        code = code.clamp(max=_top(format))  # the exponent of infinity is larger in float32
    code = code | ((single.view(torch.int32) >> 31) & (1 << (format.bits - 1)))
    if format.has_nan and may_hold_nan(values):
        code = torch.where(values != values, _nan_code(format), code)
    return code.to(getattr(torch, format.storage))


def _top(format: FloatFormat) -> int:
    """The code with the largest exponent and significand 0."""
    return ((1 << format.exponent_bits) - 1) << format.mantissa_bits


def _nan_code(format: FloatFormat) -> int:
    """The first code of a format, counted from sign 0, that is NaN."""
    match format.specials:
        case Specials.IEEE:
            return _top(format) + 1
        case Specials.NAN_ONLY:
            return _top(format) + (1 << format.mantissa_bits) - 1
        case _:
            return 1 << (format.bits - 1)
