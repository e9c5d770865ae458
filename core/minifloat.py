"""Rounding to floating-point formats, and their codes. By definition: an integer multiple of the quantum, in float64.

Around a number of exponent ``e`` (``2**e <= |u| < 2**(e+1)``) the numbers of a format are the multiples of the quantum
``2**(max(e, min_exponent) - mantissa_bits)``. Dividing by a power of two is exact in float64, so rounding is that of
`round_to_integer`, once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .directions import Rounding
from .formats import FloatFormat, Specials
from .rounding import round_to_integer

Array = NDArray[Any]


def round_to_float(u: Array, format: FloatFormat, rounding: Rounding, noise: Array | None = None) -> Array:
    """``u`` rounded to a number of the format, as if its exponents had no upper end.

    Args:
        u: any shape, floating point.
        noise: of stochastic rounding, see `round_to_integer`; here of the multiple of the quantum.
    Returns:
        Same shape and dtype. NaN and infinities are kept. Zero keeps the sign of ``u``, except in formats without a
        negative zero.
    """
    wide = u.astype(np.float64)
    _, exponent = np.frexp(wide)  # |wide| = f * 2**exponent, f in [1/2, 1)
    quantum = np.maximum(exponent - 1, format.min_exponent) - format.mantissa_bits
    quotient = np.ldexp(wide, -quantum)
    vanished = (quotient == 0) & (wide != 0)  # a float64 so small that its quotient by a quantum above 1 underflows
    quotient = np.where(vanished, np.copysign(np.finfo(np.float64).smallest_subnormal, wide), quotient)
    multiple = round_to_integer(quotient, rounding, noise)
    rounded = np.where(np.isfinite(wide), np.ldexp(multiple, quantum), wide)
    if format.specials is Specials.NEGATIVE_ZERO:
        rounded = np.where(rounded == 0, 0.0, rounded)
    return rounded.astype(u.dtype)


def overflow(rounded: Array, format: FloatFormat) -> Array:
    """Magnitudes beyond the largest number: that number when the format saturates or has neither infinity nor NaN, else
    infinity, else NaN. NaN stays NaN.
    """
    if format.saturate or format.specials is Specials.NONE:
        instead = format.hi
    else:
        instead = float("inf") if format.specials is Specials.IEEE else float("nan")
    beyond = np.abs(rounded) > format.hi
    return np.where(beyond, np.copysign(np.asarray(instead, rounded.dtype), rounded), rounded)


def decode_float(codes: Array, format: FloatFormat) -> Array:
    """Values of codes (bits in any integer dtype), float64: exact for every format."""
    bits = codes.astype(np.int64)
    mantissa = bits & (2**format.mantissa_bits - 1)
    exponent = (bits >> format.mantissa_bits) & (2**format.exponent_bits - 1)
    sign = np.where(bits >> (format.bits - 1) & 1, -1.0, 1.0)
    significand = mantissa + np.where(exponent > 0, 2**format.mantissa_bits, 0)
    power = np.maximum(exponent, 1) - format.offset - format.mantissa_bits
    value = sign * np.ldexp(significand.astype(np.float64), power)
    top, ones = 2**format.exponent_bits - 1, 2**format.mantissa_bits - 1
    match format.specials:
        case Specials.IEEE:
            value = np.where(exponent == top, np.where(mantissa == 0, sign * np.inf, np.nan), value)
        case Specials.NAN_ONLY:
            value = np.where((exponent == top) & (mantissa == ones), np.nan, value)
        case Specials.NEGATIVE_ZERO:
            value = np.where(bits == 2 ** (format.bits - 1), np.nan, value)
        case Specials.NONE:
            pass
    return np.asarray(value)


def encode_float(values: Array, format: FloatFormat) -> Array:
    """Codes of numbers of the format, by search among all of them; the NaN of a format is its code with sign 0.

    Returns:
        Same shape, dtype `format.storage`.
    Raises:
        ValueError: a value that no code stands for.
    """
    codes = np.arange(2**format.bits)
    numbers = decode_float(codes, format)
    keys = _ordered(numbers)
    order = np.argsort(keys, kind="stable")  # of several NaN codes the first, the positive one
    wanted = _ordered(np.where(np.isnan(values), np.nan, values).astype(np.float64))
    found = np.minimum(np.searchsorted(keys[order], wanted), len(codes) - 1)
    if not (keys[order][found] == wanted).all():
        bad = values.reshape(-1)[np.flatnonzero((keys[order][found] != wanted).reshape(-1))[0]]
        raise ValueError(f"`values` must be numbers of {format}, got {bad!s}")
    return codes[order][found].astype(format.storage)


def _ordered(values: Array) -> Array:
    """int64 keys in the order of the values, -0 before +0 and every NaN the same, last."""
    bits = np.where(np.isnan(values), np.nan, values).view(np.int64)
    keys = np.where(bits < 0, np.int64(-(2**63)) - bits - 1, bits)
    return np.where(np.isnan(values), np.int64(2**63 - 1), keys)
