"""What `ScaleRule` says of the scales of all blocks, once more: by tables and comparisons in float64.

A quotient in float64 that is rounded again to float32 is the correctly rounded one (53 >= 2 * 24 + 2).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ...core.elementary import exp2, log2
from ...core.formats import significand_bits
from ...core.scales import SEARCHED, SHARED_EXPONENT, Denominator, Restriction, Statistic
from ..inputs.numbers import numbers

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
        case _ if q.scale.restriction not in SHARED_EXPONENT:
            if q.scale.denominator is Denominator.LARGER:
                return np.maximum(_over(-low, -lo), _over(high, hi)) if lo else _over(high, hi)
            return _over(magnitude, divisor(q))
        case _:
            return _shared_exponent(q, magnitude)


def ends(q: Quantizer, rows: Array) -> tuple[Array, Array]:
    """The range of the statistic, of every row; rows of finite numbers. Of MSE and HQO where the search starts."""
    smallest, largest = rows.min(-1, initial=0), rows.max(-1, initial=0)
    if not rows.shape[-1] or q.scale.statistic in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX, *SEARCHED):
        return smallest, largest
    found = _percentiles(q, rows) if q.scale.statistic is Statistic.PERCENTILE else _averages(q, rows)
    return (np.minimum(found[0], 0), np.maximum(found[1], 0)) if q.affine else found


def signs(q: Quantizer, rows: Array) -> Array:
    """The sign of every row's scale: -1 where the first element of the largest magnitude is positive."""
    smallest, largest = rows.min(-1, initial=0), rows.max(-1, initial=0)
    if not q.scale.signed:
        return np.ones_like(largest)
    places = [next((i for i, v in enumerate(row) if v == m), len(row)) for row, m in zip(rows, largest, strict=True)]
    earlier = [not (row[:n] == -m).any() for row, m, n in zip(rows, largest, places, strict=True)]
    positive = (largest > -smallest) | ((largest == -smallest) & (largest > 0) & earlier)
    return np.where(positive, -1, 1).astype(rows.dtype)


def zero_point(q: Quantizer, low: Array, scale: Array) -> Array:
    """The zero points of such ranges: the codes of 0.0, or the values of the middle code."""
    if q.arithmetic.has_float_zeros:
        return line(scale, int(q.format.lo + q.format.hi + 1) // 2, low)
    ratio = np.asarray((low.astype(np.float64) / scale.astype(np.float64)).astype(scale.dtype), np.float64)
    floor = np.floor(ratio)
    rest, to_even = ratio - floor, floor + floor % 2  # of a half
    below, above = floor, np.ceil(ratio)
    half = {
        Rounding.TIES_TO_EVEN: to_even,
        Rounding.TIES_TO_AWAY: np.where(ratio < 0, below, above),
        Rounding.TIES_TOWARD_POSITIVE: above,
        Rounding.DPU: np.where(ratio < 0, above, to_even),
    }
    match q.scale.zero_point_rounding:
        case Rounding.TOWARD_NEGATIVE:
            whole = below
        case Rounding.TOWARD_POSITIVE:
            whole = above
        case Rounding.TOWARD_ZERO:
            whole = np.where(ratio < 0, above, below)
        case direction:
            whole = np.where(rest < 0.5, below, np.where(rest > 0.5, above, half[direction]))
    return np.asarray(np.clip(q.format.lo - whole, q.format.lo, q.format.hi), np.int32)


def line(scale: Array, steps: Any, start: Array) -> Array:
    """``steps * scale + start``, the product and the sum rounded to the dtype of the scale."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = (steps * scale.astype(np.float64)).astype(scale.dtype).astype(np.float64)
        return np.asarray((product + start).astype(scale.dtype))


def _percentiles(q: Quantizer, rows: Array) -> tuple[Array, Array]:
    """By partition, at the places that stand in the table of `ScaleRule`."""
    n = rows.shape[-1]
    high = int(np.clip(int(0.01 * q.scale.percentile * n + 0.5), 1, n)) - 1
    if not q.affine:
        m = np.partition(np.abs(rows), high, axis=-1)[:, high]
        return -m, m
    low = int(np.clip(int(np.ceil(0.01 * q.scale.low_percentile * n)), 1, n)) - 1
    return np.partition(rows, low, axis=-1)[:, low], np.partition(rows, high, axis=-1)[:, high]


def _averages(q: Quantizer, rows: Array) -> tuple[Array, Array]:
    """Means and norms in units of a power of two, every operation in float64 and then rounded to the dtype."""
    work, n = rows.dtype, rows.shape[-1]
    limits = np.finfo(work)
    wide = rows.astype(np.float64)
    exponent = np.clip(np.floor(_log2(np.abs(wide).max(-1))), limits.minexp, -limits.minexp)
    v = _counted(np.ldexp(wide, -exponent.astype(int)[:, None]), work)
    v = v if q.affine else np.abs(v)

    def of(value: Array) -> Array:
        found = np.ldexp(value.astype(np.float64), exponent.astype(int))
        return np.asarray(np.clip(found, limits.min, limits.max).astype(work))

    match q.scale.statistic:
        case Statistic.ABSMEAN:
            m = of(_over(_total(v), n))
        case Statistic.L1:
            m = of(_total(v))
        case Statistic.L2:
            m = of(np.sqrt(_total(v * v)))
        case Statistic.RMS:
            m = of(np.sqrt(_over(_total(v * v), n)))
        case _:
            mean = _over(_total(v), n)
            apart = _counted((v - mean[:, None]).astype(np.float64), work)
            spread = np.sqrt(_over(_total(apart * apart), max(n - 1, 1))) * np.asarray(q.scale.sigma, work)
            return (of(mean - spread) if q.affine else -of(mean + spread)), of(mean + spread)
    return -m, m


def _log2(largest: Array) -> Array:
    """The exponent of the power of two at or below each number, from a table; that of the smallest one for 0."""
    return np.asarray(EXPONENTS[np.maximum(np.searchsorted(POWERS, largest, side="right") - 1, 0)], np.float64)


def _counted(v: Array, work: Any) -> Array:
    """In the dtype, without what is too small."""
    least = 2.0**-508 if work == np.float64 else 2.0**-60
    return np.asarray(np.where(np.abs(v) >= least, v, 0).astype(work))


def _total(v: Array) -> Array:
    """Sum of each row: as a cube of two along each of its axes, summed along one after the other."""
    axes = max(v.shape[-1] - 1, 0).bit_length()
    cube = np.zeros((len(v), 2**axes), v.dtype)
    cube[:, : v.shape[-1]] = v
    cube = cube.reshape(len(v), *[2] * axes)
    for _ in range(axes):
        cube = np.add(cube[:, 0], cube[:, 1], dtype=v.dtype)
    return cube


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
        case Denominator.NEXT:
            return hi + 1
        case _:
            return hi


def raised(q: Quantizer, scale: Array) -> Array:
    """The scales raised to the floor, then to a power of two where the rule wants one."""
    limits = np.finfo(scale.dtype)
    floor = limits.smallest_normal if q.scale.floor is None else np.asarray(q.scale.floor, scale.dtype)
    above = np.maximum(scale, floor)
    match q.scale.restriction:
        case Restriction.FLOAT | Restriction.QUANTIZED:
            return np.asarray(above, scale.dtype)
        case Restriction.LOG_FLOAT:  # the functions are judged by tests/verbs/test_elementary.py
            back = np.minimum(exp2(log2(np.asarray(above, scale.dtype))), np.finfo(np.float32).max)
            return np.asarray(np.maximum(back, floor), scale.dtype)
        case Restriction.INTEGER:
            return np.asarray(np.maximum(-np.floor(-above), 1), scale.dtype)
        case Restriction.INTEGER_NEAREST:
            return np.asarray(np.maximum(np.rint(above), 1), scale.dtype)
        case _:
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
            least = 1 - 2.0 ** -(significand_bits(q.format) + 2)  # of what rounds up to 1
            thresholds = np.append(POWERS[:-1] * least, 2.0**1023 * (2 * least))
            place = np.searchsorted(thresholds, m, side="right") - 1
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
