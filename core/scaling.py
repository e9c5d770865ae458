"""Scales from the range of a block. Scalars per block, so written for clarity."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import Arithmetic
from .descriptions import Denominator, Quantizer, Restriction
from .operations import add, flush, round_to_dtype, true_divide

Array = NDArray[Any]


def symmetric_scale(q: Quantizer, low: Array, high: Array) -> Array:
    """Scale of a symmetric quantizer, before floor and restriction: ``max(-low, high) / denominator``.

    Args:
        low: at most 0, per block; ``high``: at least 0, per block; same dtype, in which the division rounds.
    """
    lo, hi = q.format.lo, q.format.hi
    magnitude = np.maximum(-low, high)

    def over(a: Array, divisor: float) -> Array:
        return _over(a, divisor, q.arithmetic)

    match q.scale.denominator:
        case Denominator.HI:
            return over(magnitude, hi)
        case Denominator.HALF_RANGE:
            return over(magnitude, (hi - lo) / 2)
        case Denominator.LO:
            return over(magnitude, -lo)
        case Denominator.EDGE:
            return over(magnitude, hi + 0.5)
        case Denominator.LARGER:
            return np.maximum(over(-low, -lo), over(high, hi)) if lo else over(high, hi)


def affine_scale(q: Quantizer, low: Array, high: Array) -> Array:
    """Scale of an affine quantizer, before floor and restriction: ``(high - low) / (hi - lo)``, each step rounded.

    Where ``high - low`` overflows, both it and the divisor are halved first, which changes nothing else.
    """
    span = q.format.hi - q.format.lo
    whole = _over(add(high, -low, q.arithmetic), span, q.arithmetic)
    half = _over(add(high / 2, -low / 2, q.arithmetic), span / 2, q.arithmetic)
    return np.where(np.isinf(whole) & np.isfinite(low) & np.isfinite(high), half, whole)


def restrict_scale(q: Quantizer, scale: Array) -> Array:
    """``scale`` raised to the floor of the rule, then restricted. NaN and infinities become NaN: no scale."""
    smallest = np.finfo(scale.dtype).smallest_normal if q.scale.floor is None else q.scale.floor
    floored = np.maximum(scale, np.asarray(smallest, scale.dtype))
    if q.scale.restriction is Restriction.POWER_OF_TWO:
        significand, exponent = np.frexp(floored)  # floored = significand * 2**exponent, significand in [1/2, 1)
        exponent = np.minimum(exponent - (significand == 0.5), np.finfo(scale.dtype).maxexp - 1)
        floored = np.ldexp(np.ones_like(floored), exponent)
    return np.where(np.isfinite(scale), floored, np.asarray(np.nan, scale.dtype))


def _over(a: Array, divisor: float, arithmetic: Arithmetic) -> Array:
    """``a / divisor``; through float32 for 16-bit dtypes, which do not hold every divisor (torch does the same)."""
    wide = np.float32 if a.dtype.itemsize == 2 else a.dtype
    quotient = true_divide(a.astype(wide), np.asarray(divisor, wide), arithmetic)
    return flush(round_to_dtype(quotient, a.dtype), arithmetic)
