"""What `ScaleRule` says of the scales of all blocks, once more: by tables and comparisons in float64.

A quotient in float64 that is rounded again to float32 is the correctly rounded one (53 >= 2 * 24 + 2).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.descriptions import Denominator, Quantizer, Restriction
from ..core.formats import significand_bits
from .numbers import numbers

Array = NDArray[Any]
EXPONENTS = np.arange(-1074, 1025)  # of all numbers of float64, and what the largest are rounded up to
POWERS = np.append(np.exp2(EXPONENTS[:-1].astype(np.float64)), np.inf)


def raw_scale(q: Quantizer, low: Array, high: Array) -> Array:
    """The scales before the floor and before POWER_OF_TWO. ``low``, ``high``: smallest and largest element, and 0."""
    lo, hi = q.format.lo, q.format.hi
    if q.affine:
        with np.errstate(over="ignore"):
            span = high - low
        halved = _over(high / 2 - low / 2, (hi - lo) / 2)
        return np.where(np.isinf(span), halved, _over(span, hi - lo))
    magnitude = np.maximum(-low, high)
    match q.scale.restriction:
        case Restriction.QUANTIZED:
            return _quantized(q, magnitude)
        case Restriction.FLOAT | Restriction.POWER_OF_TWO:
            if q.scale.denominator is Denominator.LARGER:
                return np.maximum(_over(-low, -lo), _over(high, hi)) if lo else _over(high, hi)
            return _over(magnitude, divisor(q))
        case _:
            return _shared_exponent(q, magnitude)


def divisor(q: Quantizer) -> float:
    """What the largest magnitude is divided by."""
    lo, hi = q.format.lo, q.format.hi
    match q.scale.denominator:
        case Denominator.HALF_RANGE:
            return (hi - lo) / 2
        case Denominator.LO:
            return -lo
        case Denominator.EDGE:
            return hi + 0.5
        case _:
            return hi


def raised(q: Quantizer, scale: Array) -> Array:
    """The scales raised to the floor, then to a power of two where the rule wants one."""
    limits = np.finfo(scale.dtype)
    floor = limits.smallest_normal if q.scale.floor is None else np.asarray(q.scale.floor, scale.dtype)
    above = np.maximum(scale, floor)
    if q.scale.restriction in (Restriction.FLOAT, Restriction.QUANTIZED):
        return np.asarray(above, scale.dtype)
    powers = np.ldexp(np.ones(1, scale.dtype), np.arange(limits.minexp, limits.maxexp))
    return np.asarray(powers[np.minimum(np.searchsorted(powers, above), len(powers) - 1)], scale.dtype)


def _over(a: Array, b: Any) -> Array:
    """``a / b``, rounded to the dtype of ``a``."""
    return np.asarray((a.astype(np.float64) / np.asarray(b, a.dtype)).astype(a.dtype))


def _shared_exponent(q: Quantizer, magnitude: Array) -> Array:
    """How many powers of two lie below the magnitude (or, for EVEN, the numbers that round up to powers of two)."""
    m = magnitude.astype(np.float64)
    match q.scale.restriction:
        case Restriction.POWER_OF_TWO_CEIL:
            place = np.searchsorted(POWERS, m, side="left")
        case Restriction.POWER_OF_TWO_EVEN:
            place = np.searchsorted(POWERS * (1 - 2.0 ** -(significand_bits(q.format) + 2)), m, side="right") - 1
        case _:
            place = np.searchsorted(POWERS, m, side="right") - 1
    own = np.searchsorted(POWERS, float(divisor(q)), side="right") - 1
    largest = np.finfo(magnitude.dtype).maxexp - 1
    exponent = np.minimum(EXPONENTS[np.maximum(place, 0)] - EXPONENTS[own], largest)
    return np.asarray(np.exp2(exponent.astype(np.float64)).astype(magnitude.dtype))


def _quantized(q: Quantizer, magnitude: Array) -> Array:
    """The nearest number of the scale's format, of two equally near ones that with an even code; times ``t``."""
    format = q.scale.scale_format
    if format is None:
        raise TypeError("`q.scale.scale_format` must be a FloatFormat, got None")
    floor = np.finfo(magnitude.dtype).smallest_normal if q.scale.floor is None else q.scale.floor
    least = np.asarray(floor, magnitude.dtype)
    whole = np.asarray(1, magnitude.dtype)
    if q.scale.two_level:
        whole = np.maximum(_over(magnitude.max(initial=0), divisor(q) * format.hi), least)
    level = _over(np.maximum(_over(magnitude, divisor(q)), least), whole).astype(np.float64)
    listed = np.array([v for v in numbers(format) if 2.0**format.min_exponent <= v <= format.hi])
    upper = np.clip(np.searchsorted(listed, level), 1, len(listed) - 1)
    middle = (listed[upper - 1] + listed[upper]) / 2
    above = (level > middle) | ((level == middle) & (upper % 2 == 0))  # the first has a significand of 0
    nearest = np.where(above, listed[upper], listed[upper - 1])
    return np.asarray((nearest * whole.astype(np.float64)).astype(magnitude.dtype))
